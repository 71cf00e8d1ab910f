import { describe, expect, it } from 'vitest';
import { type IrqLine, SharedIrqLine } from './interrupts.ts';
import { type AccessSize, IoBus, type IoRegion } from './io-bus.ts';

class Recorder implements IoRegion {
  readonly name: string;
  readonly maxAccess: AccessSize;
  readonly log: string[] = [];

  constructor(name: string, maxAccess: AccessSize = 4) {
    this.name = name;
    this.maxAccess = maxAccess;
  }
  read(offset: number, size: AccessSize): number {
    this.log.push(`r${size}@${offset}`);
    return 0x44332211 >>> (8 * (offset % 4));
  }
  write(offset: number, size: AccessSize, value: number): void {
    this.log.push(`w${size}@${offset}=${value.toString(16)}`);
  }
}

describe('IoBus', () => {
  it('hands an access to the region with its offset and masks the value', () => {
    const bus = new IoBus('pio');
    const region = new Recorder('r');
    bus.map(0x100, 8, region);
    expect(bus.read(0x100, 4)).toBe(0x44332211);
    expect(bus.read(0x101, 1)).toBe(0x22);
    bus.write(0x104, 2, 0x12345678);
    expect(region.log).toEqual(['r4@0', 'r1@1', 'w2@4=5678']);
  });

  it('reads all ones where nobody answers', () => {
    const bus = new IoBus('pio');
    expect(bus.read(0x80, 4)).toBe(0xffffffff);
    expect(bus.read(0x80, 1)).toBe(0xff);
    bus.write(0x80, 4, 1);
  });

  it('splits what is wider than the region understands, and what straddles its edges', () => {
    const bus = new IoBus('pio');
    const narrow = new Recorder('narrow', 1);
    bus.map(0x10, 4, narrow);
    expect(bus.read(0x10, 4)).toBe(0x44332211);
    expect(bus.read(0x12, 4)).toBe(0xffff4433);
    expect(bus.read(0x0e, 4)).toBe(0x2211ffff);
    bus.write(0x0f, 2, 0xaabb);
    expect(narrow.log.at(-1)).toBe('w1@0=aa');
    const word = new Recorder('word', 2);
    bus.map(0x20, 4, word);
    bus.write(0x20, 4, 0xaabbccdd);
    expect(word.log).toEqual(['w2@0=ccdd', 'w2@2=aabb']);
  });

  it('lets the first mapping win where two overlap, and shows the second when it goes', () => {
    const bus = new IoBus('mmio');
    const first = new Recorder('first');
    const second = new Recorder('second');
    const mapping = bus.map(0x1000, 0x100, first);
    bus.map(0x0f80, 0x200, second);
    bus.write(0x1000, 4, 1);
    bus.write(0x1100, 4, 2);
    bus.write(0x0f80, 4, 3);
    expect(first.log).toEqual(['w4@0=1']);
    expect(second.log).toEqual(['w4@384=2', 'w4@0=3']);
    mapping.unmap();
    mapping.unmap();
    bus.write(0x1000, 4, 4);
    expect(second.log.at(-1)).toBe('w4@128=4');
  });

  it('lets the lower rank win where two overlap, in whichever order they were mapped', () => {
    for (const order of [
      [0, 9, 12],
      [12, 9, 0],
      [9, 0, 12],
    ]) {
      const bus = new IoBus('mmio');
      const mapped = order.map((rank) => bus.map(0x1000, 16, new Recorder(`${rank}`), rank));
      expect(bus.mappings.map(({ rank }) => rank)).toEqual([0, 9, 12]);
      bus.write(0x1000, 1, 7);
      const logs = mapped.map(({ region }) => (region as Recorder).log.length);
      expect(logs).toEqual(order.map((rank) => (rank === 0 ? 1 : 0)));
    }
  });
});

describe('SharedIrqLine', () => {
  it('is high while any source is', () => {
    const levels: boolean[] = [];
    const target: IrqLine = { set: (level) => levels.push(level) };
    const shared = new SharedIrqLine(target);
    const a = shared.source();
    const b = shared.source();
    a.set(true);
    b.set(true);
    b.set(true);
    a.set(false);
    b.set(false);
    expect(levels).toEqual([true, true, true, false]);
  });
});
