import { describe, expect, it } from 'vitest';
import { defaultGsiRoutes, encodeGsiRoutes } from './gsi-routes.ts';

describe('GSI routes', () => {
  it('default: a PC with the timer on IOAPIC pin 2', () => {
    const routes = defaultGsiRoutes();
    const to = (gsi: number) =>
      routes
        .filter((r) => r.gsi === gsi)
        .map((r) => (r.kind === 'msi' ? 'msi' : `${r.kind} ${r.pin}`));
    expect(to(0)).toEqual(['pic-master 0', 'ioapic 2']);
    expect(to(2)).toEqual(['pic-master 2']);
    expect(to(4)).toEqual(['pic-master 4', 'ioapic 4']);
    expect(to(15)).toEqual(['pic-slave 7', 'ioapic 15']);
    expect(to(23)).toEqual(['ioapic 23']);
    expect(routes).toHaveLength(16 + 15 + 8);
  });

  it('encodes rows', () => {
    const rows = encodeGsiRoutes([
      { gsi: 5, kind: 'ioapic', pin: 21 },
      { gsi: 24, kind: 'msi', address: 0x1_fee0_1000, data: 0x4041 },
    ]);
    expect([...rows]).toEqual([5, 0, 2, 21, 0, 24, 1, 0xfee0_1000, 1, 0x4041]);
  });

  it('refuses pins that are not there', () => {
    expect(() => encodeGsiRoutes([{ gsi: 1, kind: 'ioapic', pin: 24 }])).toThrow(/no pin 24/);
    expect(() => encodeGsiRoutes([{ gsi: 1, kind: 'pic-slave', pin: 8 }])).toThrow(/no pin 8/);
  });
});
