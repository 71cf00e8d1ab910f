import { describe, expect, it } from 'vitest';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { access, alone, anyAccess } from '../../test/support/region-access.ts';
import { ResetControl } from './reset-control.ts';

function rig() {
  const resets: string[] = [];
  const control = new ResetControl({ id: 'reset', onReset: (kind) => resets.push(kind) });
  return { resets, control };
}

describe('ResetControl', () => {
  it('resets hard on the value that FADT names', () => {
    const { resets, control } = rig();
    control.write(0, 1, 6);
    expect(resets).toEqual(['hard']);
    expect(control.read()).toBe(2);
  });

  it('resets in the two steps that Linux takes with reboot=pci', () => {
    const { resets, control } = rig();
    const rest = control.read() & ~0x0e;
    control.write(0, 1, rest | 2);
    expect(resets).toEqual([]);
    control.write(0, 1, rest | 0x0e);
    expect(resets).toEqual(['hard']);
  });

  it('tells a soft reset', () => {
    const { resets, control } = rig();
    control.write(0, 1, 4);
    expect(resets).toEqual(['soft']);
  });
});

deviceConformance('reset-control', {
  world: () => ({ resets: [] as string[] }),
  attach: ({ resets }) => new ResetControl({ id: 'reset', onReset: (kind) => resets.push(kind) }),
  steps: anyAccess(1),
  perform: (_world, device, step) => access(alone(device, 1), step),
  observe: ({ resets }) => resets,
  impossible: () => [{ value: 4 }, { value: 0x80 }],
});
