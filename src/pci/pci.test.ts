import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PciTestBoard } from '../../test/support/pci-board.ts';
import { VmmError } from '../base/error.ts';
import type { AccessSize, IoRegion } from '../bus/io-bus.ts';
import { assignBars } from './assign-bars.ts';
import { intxLineOf } from './bus.ts';
import { PciFunction, type PciFunctionOptions } from './function.ts';
import { MSIX_PBA_OFFSET } from './msix.ts';

class Ram implements IoRegion {
  readonly name = 'ram';
  readonly words = new Map<number, number>();
  read(offset: number): number {
    return this.words.get(offset) ?? 0;
  }
  write(offset: number, _size: AccessSize, value: number): void {
    this.words.set(offset, value);
  }
}

function sample(extra: Partial<PciFunctionOptions> = {}): PciFunction {
  return new PciFunction({
    name: 'sample',
    vendorId: 0x8086,
    deviceId: 0x100e,
    revision: 3,
    classCode: 0x020000,
    subsystemVendorId: 0x1af4,
    subsystemId: 0x1100,
    interruptPin: 1,
    bars: [
      { index: 0, kind: 'mem32', sizeBytes: 0x2_0000, region: new Ram() },
      { index: 1, kind: 'io', sizeBytes: 64, region: new Ram() },
      { index: 2, kind: 'mem64', sizeBytes: 0x4000, prefetchable: true, region: new Ram() },
    ],
    msix: { vectors: 3, bar: 4 },
    ...extra,
  });
}

function boardWith(fn: PciFunction): PciTestBoard {
  const board = new PciTestBoard();
  board.bus.add(fn, { slot: 3 });
  return board;
}

describe('configuration space', () => {
  it('shows the header through mechanism #1 on every byte lane', () => {
    const board = boardWith(sample());
    expect(board.read(3, 0x00)).toBe(0x100e8086);
    expect(board.read(3, 0x02, 2)).toBe(0x100e);
    expect(board.read(3, 0x08)).toBe(0x02000003);
    expect(board.read(3, 0x0b, 1)).toBe(0x02);
    expect(board.read(3, 0x2c)).toBe(0x11001af4);
    expect(board.read(3, 0x3d, 1)).toBe(1);
    board.write(3, 0x3c, 0x0b, 1);
    expect(board.read(3, 0x3c)).toBe(0x0000010b);
  });

  it('reads all ones where nothing is, and when mechanism #1 is off', () => {
    const board = boardWith(sample());
    expect(board.read(4, 0)).toBe(0xffffffff);
    expect(board.read(3, 0, 2, 1)).toBe(0xffff);
    board.ports.write(0xcf8, 4, 0x1800);
    expect(board.ports.read(0xcfc, 4)).toBe(0xffffffff);
    board.ports.write(0xcf8, 4, 0x8001_1800);
    expect(board.ports.read(0xcfc, 4)).toBe(0xffffffff);
  });

  it('keeps read-only bits whatever a guest writes', () => {
    const board = boardWith(sample());
    for (const offset of [0x00, 0x08, 0x2c, 0x34]) {
      const before = board.read(3, offset);
      board.write(3, offset, 0xffffffff);
      board.write(3, offset, 0);
      expect(board.read(3, offset)).toBe(before);
    }
    board.write(3, 0x04, 0xffffffff);
    expect(board.read(3, 0x04)).toBe(0x0010_0547);
  });

  it('answers accesses that cross the dword like single bytes', () => {
    const board = boardWith(sample());
    board.read(3, 0);
    expect(board.ports.read(0xcfd, 4)).toBe(0xff100e80);
    expect(board.ports.read(0xcf8, 4)).toBe(0x80001800);
    expect(board.ports.read(0xcf8, 2)).toBe(0xffff);
  });

  it('is reachable through ECAM too', () => {
    const board = boardWith(sample());
    board.bus.mapEcam(0xb000_0000);
    const at = 0xb000_0000 + (3 << 15);
    expect(board.mmio.read(at, 4)).toBe(0x100e8086);
    expect(board.mmio.read(at + 0x100, 4)).toBe(0xffffffff);
    board.mmio.write(at + 0x3c, 1, 9);
    expect(board.read(3, 0x3c, 1)).toBe(9);
  });

  it('links capabilities, at free or fixed offsets', () => {
    const board = boardWith(
      sample({
        capabilities: [
          { id: 1, body: new Uint8Array(6), at: 0xdc },
          { id: 9, body: Uint8Array.of(4, 7) },
        ],
      }),
    );
    const seen: number[] = [];
    for (let at = board.read(3, 0x34, 1); at !== 0; at = board.read(3, at + 1, 1)) {
      seen.push(at, board.read(3, at, 1));
    }
    expect(seen).toEqual([0xdc, 1, 0x40, 9, 0x44, 0x11]);
  });
});

describe('BARs', () => {
  it('tell their size and type', () => {
    const board = boardWith(sample());
    for (let bar = 0; bar < 6; bar++) board.write(3, 0x10 + 4 * bar, 0xffffffff);
    expect([0, 1, 2, 3, 4, 5].map((bar) => board.read(3, 0x10 + 4 * bar))).toEqual([
      0xfffe0000, 0xffffffc1, 0xffffc00c, 0xffffffff, 0xfffff000, 0,
    ]);
  });

  it('decode only when enabled, and follow the guest', () => {
    const fn = sample();
    const board = boardWith(fn);
    board.write(3, 0x10, 0xe000_0000);
    expect(board.mmio.mappings).toEqual([]);
    board.write(3, 4, 2, 2);
    board.mmio.write(0xe000_0010, 4, 77);
    expect(board.mmio.read(0xe000_0010, 4)).toBe(77);
    board.write(3, 0x10, 0xe100_0000);
    expect(board.mmio.read(0xe000_0010, 4)).toBe(0xffffffff);
    expect(board.mmio.read(0xe100_0010, 4)).toBe(77);
    board.write(3, 0x10, 0xffffffff);
    expect(fn.bars[0]!.base).toBeUndefined();
    board.write(3, 0x10, 0xe100_0000);
    board.write(3, 4, 0, 2);
    expect(board.mmio.read(0xe100_0010, 4)).toBe(0xffffffff);
  });

  it('reach above 4 GiB, and ports', () => {
    const fn = sample();
    const board = boardWith(fn);
    board.write(3, 4, 3, 2);
    board.write(3, 0x18, 0x8000_0000);
    board.write(3, 0x1c, 0x7);
    expect(fn.bars[2]!.base).toBe(0x7_8000_0000);
    board.write(3, 0x1c, 0xffffffff);
    expect(fn.bars[2]!.base).toBeUndefined();
    board.write(3, 0x14, 0xc001);
    board.ports.write(0xc004, 1, 5);
    expect(board.ports.read(0xc004, 1)).toBe(5);
  });

  it('serve an expansion ROM only with both enables', () => {
    const rom = Uint8Array.of(0x55, 0xaa, 1);
    const board = boardWith(sample({ rom }));
    board.write(3, 0x30, 0xffff_ffff);
    expect(board.read(3, 0x30)).toBe(0xffff_f801);
    board.write(3, 0x30, 0xfeb0_0000);
    board.write(3, 4, 2, 2);
    expect(board.mmio.read(0xfeb0_0000, 2)).toBe(0xffff);
    board.write(3, 0x30, 0xfeb0_0001);
    expect(board.mmio.read(0xfeb0_0000, 4)).toBe(0xff01_aa55);
    board.mmio.write(0xfeb0_0000, 4, 0);
    expect(board.mmio.read(0xfeb0_0000, 2)).toBe(0xaa55);
  });

  it('can be assigned without firmware, or the lack of room is told', () => {
    const first = sample();
    const second = sample();
    const board = boardWith(first);
    board.bus.add(second);
    const windows = {
      mmio32: { base: 0xe000_1000, sizeBytes: 0x100_0000 },
      mmio64: { base: 0x10_0000_0000, sizeBytes: 0x6000 },
      ports: { base: 0xc000, sizeBytes: 0x1000 },
    };
    assignBars(board.bus, windows);
    const all = [first, second].flatMap((fn) => fn.bars.map((bar) => bar.base!));
    expect(new Set(all).size).toBe(8);
    for (const fn of [first, second]) {
      for (const bar of fn.bars) expect(bar.base! % bar.sizeBytes).toBe(0);
      expect(fn.busMaster).toBe(false);
    }
    expect(all.filter((base) => base >= 2 ** 32)).toHaveLength(1);
    const tight = { ...windows, ports: { base: 0xc000, sizeBytes: 64 } };
    expect(() => assignBars(board.bus, tight)).toThrow(/BAR 1/);
  });
});

describe('INTx', () => {
  it('drives the line of slot and pin, unless disabled', () => {
    const fn = sample();
    const board = boardWith(fn);
    const irq = board.irqs[intxLineOf(3, 1)]!;
    fn.setIntx(true);
    expect(irq.level).toBe(true);
    expect(board.read(3, 6, 2) & 8).toBe(8);
    board.write(3, 4, 0x400, 2);
    expect(irq.level).toBe(false);
    expect(board.read(3, 6, 2) & 8).toBe(8);
    board.write(3, 4, 0, 2);
    expect(irq.level).toBe(true);
    fn.setIntx(false);
    expect(irq.level).toBe(false);
    expect(intxLineOf(1, 1)).toBe(0);
  });
});

describe('MSI-X', () => {
  function enabled() {
    const fn = sample();
    const board = boardWith(fn);
    board.write(3, 0x20, 0xf000_0000);
    board.write(3, 4, 6, 2);
    const control = fn.bars.length > 0 ? board.read(3, 0x34, 1) + 2 : 0;
    const entry = (i: number, mask: number) => {
      const at = 0xf000_0000 + 16 * i;
      board.mmio.write(at, 4, 0xfee0_0000);
      board.mmio.write(at + 4, 4, 0);
      board.mmio.write(at + 8, 4, 0x40 + i);
      board.mmio.write(at + 12, 4, mask);
    };
    return { fn, board, control, entry, msix: fn.msix! };
  }

  it('sends the message of an unmasked vector', () => {
    const { board, control, entry, msix, fn } = enabled();
    expect(board.read(3, control, 2)).toBe(2);
    entry(1, 0);
    msix.trigger(1);
    expect(board.msi.take()).toEqual([]);
    fn.setIntx(true);
    board.write(3, control, 0x8000, 2);
    expect(board.irqs[intxLineOf(3, 1)]!.level).toBe(false);
    msix.trigger(1);
    msix.trigger(1);
    expect(board.msi.take()).toEqual(['fee00000:41', 'fee00000:41']);
    expect(board.msi.configured).toBe(1);
  });

  it('keeps a masked vector pending and sends it once on unmask', () => {
    const { board, control, entry, msix } = enabled();
    board.write(3, control, 0x8000, 2);
    entry(0, 1);
    msix.trigger(0);
    msix.trigger(0);
    expect(board.mmio.read(0xf000_0000 + MSIX_PBA_OFFSET, 4)).toBe(1);
    board.mmio.write(0xf000_000c, 4, 0);
    expect(board.msi.take()).toEqual(['fee00000:40']);
    expect(board.mmio.read(0xf000_0000 + MSIX_PBA_OFFSET, 4)).toBe(0);
    board.write(3, control, 0xc000, 2);
    msix.trigger(0);
    expect(board.msi.take()).toEqual([]);
    board.write(3, control, 0x8000, 2);
    expect(board.msi.take()).toEqual(['fee00000:40']);
  });

  it('follows a message that changes while unmasked', () => {
    const { board, control, entry, msix } = enabled();
    board.write(3, control, 0x8000, 2);
    entry(2, 0);
    board.mmio.write(0xf000_0028, 4, 0x99);
    msix.trigger(2);
    expect(board.msi.take()).toEqual(['fee00000:99']);
  });

  it('gives vectors back on reset', () => {
    const { fn, board, control, entry } = enabled();
    board.write(3, control, 0x8000, 2);
    entry(0, 0);
    entry(1, 0);
    expect(board.msi.live).toBe(2);
    fn.reset();
    expect(board.msi.live).toBe(0);
    expect(board.mmio.mappings).toEqual([]);
  });

  it('survives save and load, pending vectors included', () => {
    const { fn, board, control, entry, msix } = enabled();
    board.write(3, control, 0x8000, 2);
    entry(0, 1);
    entry(1, 0);
    msix.trigger(0);
    const state = fn.save();
    const fresh = sample();
    const other = boardWith(fresh);
    fresh.load(state);
    expect(fresh.save()).toEqual(state);
    fresh.msix!.trigger(1);
    expect(other.msi.take()).toEqual(['fee00000:41']);
    other.mmio.write(0xf000_000c, 4, 0);
    expect(other.msi.take()).toEqual(['fee00000:40']);
  });

  it('refuses the state of another function', () => {
    const { fn } = enabled();
    const stranger = sample({ deviceId: 0x100f });
    boardWith(stranger);
    expect(() => stranger.load(fn.save())).toThrow(VmmError);
    const short = { ...fn.save(), msixTable: new Uint8Array(16) };
    expect(() => fn.load(short)).toThrow(/MSI-X table/);
  });
});

describe('PciBus', () => {
  it('fills slots, marks multi-function slots, and says when it is full', () => {
    const board = new PciTestBoard();
    expect(board.bus.add(sample())).toBe(1);
    expect(board.bus.add(sample(), { slot: 1, function: 1 })).toBe(1);
    expect(board.read(1, 0x0e, 1)).toBe(0x80);
    expect(board.read(1, 0x00, 4, 1)).toBe(0x100e8086);
    expect(() => board.bus.add(sample(), { slot: 1 })).toThrow(/1\.0/);
    for (let i = 2; i < 32; i++) expect(board.bus.add(sample())).toBe(i);
    expect(() => board.bus.add(sample())).toThrow(/no PCI slot/);
  });

  it('passes port 0xCF9 to the board and keeps its address register', () => {
    const board = new PciTestBoard();
    board.ports.write(0xcf8, 4, 0xffff_ffff);
    board.ports.write(0xcf9, 1, 6);
    expect(board.ports.read(0xcf8, 4)).toBe(0x80ff_fffc);
    const state = board.bus.save();
    board.bus.reset();
    expect(board.ports.read(0xcf8, 4)).toBe(0);
    board.bus.load(state);
    expect(board.ports.read(0xcf8, 4)).toBe(0x80ff_fffc);
  });

  it('survives any accesses, and state taken anywhere is equal after a restore', () => {
    const anyWrite = fc.record({
      port: fc.constantFrom(0xcf8, 0xcf8, 0xcf8, 0xcf9, 0xcfc, 0xcfd, 0xcfe, 0xcff),
      size: fc.constantFrom<AccessSize>(1, 2, 4, 4),
      value: fc.oneof(
        fc.nat(0xffffffff),
        fc.nat(0xff).map((register) => (0x80001800 | register) >>> 0),
      ),
    });
    fc.assert(
      fc.property(fc.array(anyWrite, { maxLength: 60 }), (writes) => {
        const fn = sample({ rom: new Uint8Array(3000) });
        const board = boardWith(fn);
        for (const { port, size, value } of writes) {
          board.ports.write(port, size, value);
          board.ports.read(port, size);
        }
        const fresh = sample({ rom: new Uint8Array(3000) });
        const other = boardWith(fresh);
        fresh.load(fn.save());
        expect(fresh.save()).toEqual(fn.save());
        const places = (b: PciTestBoard) =>
          b.mmio.mappings.map((m) => `${m.base}+${m.length}`).sort();
        expect(places(other)).toEqual(places(board));
      }),
    );
  });
});
