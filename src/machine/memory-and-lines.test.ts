import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FakeKvmVm } from '../kvm/fake.ts';
import { IrqLines } from './irq-lines.ts';
import { E820, e820Map, HIGH_RAM_BASE, LOW_RAM_MAX, ramPieces } from './layout.ts';
import { type SegmentAccess, SHADOW_SEGMENTS, ShadowMap } from './shadow-map.ts';

const MIB = 2 ** 20;

describe('the memory map', () => {
  it('covers exactly the RAM, in order, apart, whatever the size and the reserved ranges', () => {
    const size = fc.integer({ min: 2, max: 384 * 1024 });
    const holes = fc.array(fc.tuple(fc.integer({ min: 256, max: 511 }), fc.constant(4096)), {
      maxLength: 4,
    });
    fc.assert(
      fc.property(size, holes, (mib, ranges) => {
        const pieces = ramPieces(mib * MIB);
        for (const piece of pieces) {
          expect(piece.size).toBeLessThanOrEqual(2 ** 31);
          const end = piece.base + piece.size;
          expect(end <= LOW_RAM_MAX || piece.base >= HIGH_RAM_BASE).toBe(true);
        }
        const reserved = [...new Map(ranges).keys()]
          .sort((a, b) => a - b)
          .map((page) => ({ base: page * 4096, size: 4096, type: E820.acpi }));
        const map = e820Map(pieces, reserved);
        let at = 0;
        for (const entry of map) {
          expect(entry.size).toBeGreaterThan(0);
          expect(entry.base).toBeGreaterThanOrEqual(at);
          at = entry.base + entry.size;
        }
        const sum = (type: number) =>
          map.filter((e) => e.type === type).reduce((bytes, e) => bytes + e.size, 0);
        expect(sum(E820.acpi)).toBe(reserved.length * 4096);
        expect(sum(E820.ram)).toBe(mib * MIB - 0x6_0000 - reserved.length * 4096);
      }),
    );
  });

  it.each([0, 1, MIB, 3 * MIB + 1, -MIB, Number.NaN, 385 * 2 ** 30])(
    'refuses %d bytes',
    (bytes) => {
      expect(() => ramPieces(bytes)).toThrow(/cannot be laid out/);
    },
  );
});

describe('the shadow area', () => {
  const read = (vm: FakeKvmVm, at: number): number | undefined => {
    const byte = new Uint8Array(1);
    try {
      vm.memory.read(at, byte);
      return byte[0];
    } catch {
      return undefined;
    }
  };
  function area(withRom: boolean) {
    const vm = new FakeKvmVm({ vcpus: 1 });
    const ram = vm.createBuffer(MIB);
    new Uint8Array(ram).fill(1);
    const rom = vm.createBuffer(0x2_0000);
    new Uint8Array(rom).fill(2);
    const map = new ShadowMap({ vm, firstSlot: 1, ram, rom: withRom ? rom : undefined });
    const now = SHADOW_SEGMENTS.map(() => ({ readRam: false, writeRam: false }));
    const set = (index: number, access: SegmentAccess): void => {
      now[index] = access;
      map.steer(now);
    };
    map.steer(now);
    return { vm, map, now, set };
  }

  it('steers each segment to ROM, RAM, both or nothing', () => {
    const { vm, set } = area(true);
    // The last 128 KiB show the end of the ROM; before it there is nothing.
    expect(read(vm, 0xc_0000)).toBeUndefined();
    expect(read(vm, 0xd_ffff)).toBeUndefined();
    expect(read(vm, 0xe_0000)).toBe(2);
    expect(read(vm, 0xf_ffff)).toBe(2);
    set(0, { readRam: true, writeRam: true });
    set(12, { readRam: true, writeRam: false });
    expect(read(vm, 0xc_0000)).toBe(1);
    expect(read(vm, 0xc_4000)).toBeUndefined();
    expect(read(vm, 0xf_0000)).toBe(1);
    set(0, { readRam: false, writeRam: false });
    expect(read(vm, 0xc_0000)).toBeUndefined();
    set(12, { readRam: false, writeRam: false });
    expect(read(vm, 0xf_0000)).toBe(2);
  });

  it('has nothing where there is no firmware', () => {
    const { vm } = area(false);
    expect(read(vm, 0xf_0000)).toBeUndefined();
  });

  it('shows what is steered alike in one slot', () => {
    const { vm, map, now, set } = area(true);
    const slots: number[] = [];
    const mapAlias = vm.mapAlias.bind(vm);
    vm.mapAlias = (alias) => {
      slots.push(alias.slot);
      mapAlias(alias);
    };
    map.steer(now.map(() => ({ readRam: true, writeRam: true })));
    expect(slots).toEqual([1]);
    map.steer(now.map(() => ({ readRam: true, writeRam: true })));
    expect(slots).toEqual([1]);
    now.fill({ readRam: true, writeRam: true });
    set(4, { readRam: true, writeRam: false });
    expect(slots).toEqual([1, 1, 5, 6]);
    for (const { base, size } of SHADOW_SEGMENTS) {
      expect(read(vm, base)).toBe(1);
      expect(read(vm, base + size - 1)).toBe(1);
    }
    set(4, { readRam: true, writeRam: true });
    expect(slots).toEqual([1, 1, 5, 6, 1]);
  });

  it('keeps the dirty log of RAM segments, also of those steered later', () => {
    const { vm, map, set } = area(true);
    const list = new Uint32Array(64);
    set(0, { readRam: true, writeRam: true });
    map.setDirtyLog(true);
    set(1, { readRam: true, writeRam: true });
    vm.guestWrite(0xc_0000, Uint8Array.of(9));
    vm.guestWrite(0xc_5000, Uint8Array.of(9));
    const found = [...list.subarray(0, vm.harvestDirty(list))].sort((a, b) => a - b);
    expect(found).toEqual([0xc0, 0xc5]);
    map.setDirtyLog(false);
    vm.guestWrite(0xc_0000, Uint8Array.of(9));
    expect(vm.harvestDirty(list)).toBe(0);
  });
});

describe('interrupt lines', () => {
  it('reach KVM when they change, and anew after its state was replaced', () => {
    const vm = new FakeKvmVm({ vcpus: 1 });
    const lines = new IrqLines(vm);
    const line = lines.line(9);
    line.set(false);
    line.set(true);
    line.set(true);
    lines.forget();
    line.set(true);
    line.set(false);
    const levels = vm.irqLog.map(({ gsi, level }) => `${gsi} ${Number(level)}`);
    expect(levels).toEqual(['9 0', '9 1', '9 1', '9 0']);
  });

  it('that are shared are high while any source is', () => {
    const vm = new FakeKvmVm({ vcpus: 1 });
    const lines = new IrqLines(vm);
    const [a, b] = [lines.sharedLine(16), lines.sharedLine(16)];
    a.set(true);
    b.set(true);
    a.set(false);
    expect(vm.irqLevels.get(16)).toBe(true);
    b.set(false);
    expect(vm.irqLevels.get(16)).toBe(false);
  });
});
