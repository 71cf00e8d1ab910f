import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { crc32c } from '../../src/base/crc32c.ts';
import { VmmError } from '../../src/base/error.ts';
import { MemoryLog } from '../../src/base/log.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { access, alone, anyAccess, type RegionAccess } from '../../test/support/region-access.ts';
import { FwCfgContent } from './content.ts';
import { FwCfg } from './fw-cfg.ts';
import { DMA, FW_CFG_PORTS, KEY, OFFSET } from './spec.ts';

const DESCRIPTOR = 0x1000;
const BUFFER = 0x2000;
const RAM = 0x4000;

function content(): FwCfgContent {
  return new FwCfgContent()
    .machine({
      cpus: 3,
      memoryBytes: 5 * 2 ** 30,
      memoryMap: [
        { base: 0, size: 0xa0000, type: 1 },
        { base: 2 ** 32, size: 2 ** 31, type: 1 },
      ],
      bootOrder: ['/pci@i0cf8/scsi@4/disk@0,0', '/pci@i0cf8/ethernet@3'],
    })
    .file(
      'opt/test/blob',
      Uint8Array.from({ length: 300 }, (_, i) => i),
    );
}

function rig() {
  const memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(RAM) }]);
  const log = new MemoryLog();
  const fw = new FwCfg({ id: 'fw-cfg', content: content(), memory, clock: new ManualClock(), log });
  const bus = alone(fw, FW_CFG_PORTS);
  const select = (key: number): void => bus.write(OFFSET.selector, 2, key);
  const read = (count: number): number[] =>
    Array.from({ length: count }, () => bus.read(OFFSET.data, 1));
  const swapped = (value: number): number =>
    Buffer.from([value >>> 24, value >>> 16, value >>> 8, value]).readUInt32LE();
  /** Starts DMA as a firmware does and returns the control word it finds afterwards. */
  const dma = (control: number, length: number, target: number, at = DESCRIPTOR): number => {
    const view = new DataView(new ArrayBuffer(16));
    view.setUint32(0, control);
    view.setUint32(4, length);
    view.setBigUint64(8, BigInt(target));
    memory.write(at, new Uint8Array(view.buffer));
    bus.write(OFFSET.dmaHigh, 4, swapped(Math.floor(at / 2 ** 32)));
    bus.write(OFFSET.dmaLow, 4, swapped(at % 2 ** 32));
    const back = new Uint8Array(4);
    memory.read(at, back);
    return new DataView(back.buffer).getUint32(0);
  };
  const file = (name: string): { key: number; size: number } => {
    select(KEY.directory);
    const directory = Buffer.from(read(4 + 64 * 20));
    for (let at = 4; at < 4 + 64 * directory.readUInt32BE(0); at += 64) {
      if (directory.toString('latin1', at + 8, at + 64).replace(/\0.*$/s, '') === name) {
        return { key: directory.readUInt16BE(at + 4), size: directory.readUInt32BE(at) };
      }
    }
    return expect.fail(`no file ${name}`);
  };
  return { memory, log, fw, bus, select, read, dma, file };
}

const text = (bytes: readonly number[]): string => String.fromCharCode(...bytes);

describe('ports', () => {
  it('shows signature and features', () => {
    const { select, read } = rig();
    select(KEY.signature);
    expect(text(read(4))).toBe('QEMU');
    select(KEY.id);
    expect(read(4)).toEqual([3, 0, 0, 0]);
  });

  it('reads zeros behind an item and of an unknown one, and starts anew when selected', () => {
    const { select, read } = rig();
    select(KEY.cpus);
    expect(read(5)).toEqual([3, 0, 0, 0, 0]);
    select(0x7777);
    expect(read(2)).toEqual([0, 0]);
    select(KEY.cpus);
    expect(read(1)).toEqual([3]);
  });

  it('lists files in order of their names', () => {
    const { select, read } = rig();
    select(KEY.directory);
    const [count] = read(4).slice(3);
    const entries = Array.from({ length: count! }, () => read(64));
    expect(entries.map((entry) => text(entry.slice(8)).replace(/\0.*$/s, ''))).toEqual([
      'bootorder',
      'etc/e820',
      'opt/test/blob',
    ]);
    expect(entries.map((entry) => entry[5])).toEqual([0x20, 0x21, 0x22]);
  });

  it('describes the machine', () => {
    const { select, read, file } = rig();
    select(KEY.ramSize);
    expect(read(8)).toEqual([0, 0, 0, 0x40, 1, 0, 0, 0]);
    const e820 = file('etc/e820');
    select(e820.key);
    const map = Buffer.from(read(e820.size));
    expect(map.length).toBe(40);
    expect([map.readBigUInt64LE(20), map.readBigUInt64LE(28), map.readUInt32LE(36)]).toEqual([
      2n ** 32n,
      2n ** 31n,
      1,
    ]);
    const order = file('bootorder');
    select(order.key);
    expect(text(read(order.size))).toBe('/pci@i0cf8/scsi@4/disk@0,0\n/pci@i0cf8/ethernet@3\0');
  });

  it('has no data port but the byte at 1', () => {
    const { bus, select, read } = rig();
    select(KEY.signature);
    expect(bus.read(OFFSET.selector, 1)).toBe(0);
    expect(bus.read(OFFSET.selector, 2)).toBe(0);
    bus.write(OFFSET.data, 1, 0x55);
    expect(text(read(4))).toBe('QEMU');
  });
});

describe('DMA', () => {
  it('shows its signature', () => {
    const { bus } = rig();
    const bytes = [0, 4].flatMap((at) => {
      const value = bus.read(OFFSET.dmaHigh + at, 4);
      return [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
    });
    expect(text(bytes)).toBe('QEMU CFG');
    expect(bus.read(OFFSET.dmaHigh + 1, 1)).toBe('E'.charCodeAt(0));
  });

  it('selects, skips and reads into memory, with zeros behind the end', () => {
    const { memory, dma, file } = rig();
    const { key } = file('opt/test/blob');
    memory.fill(BUFFER, 0x400, 0xee);
    expect(dma((key << 16) | DMA.select | DMA.skip, 290, 0)).toBe(0);
    expect(dma(DMA.read, 20, BUFFER)).toBe(0);
    const out = new Uint8Array(21);
    memory.read(BUFFER, out);
    expect([...out]).toEqual([
      ...Array.from({ length: 10 }, (_, i) => (290 + i) & 0xff),
      ...new Array<number>(10).fill(0),
      0xee,
    ]);
    expect(memory.dirty.has(BUFFER >> 12)).toBe(true);
  });

  it('goes on where the data port was', () => {
    const { memory, select, read, dma } = rig();
    select(KEY.signature);
    read(2);
    dma(DMA.read, 2, BUFFER);
    expect(text([memory.readU8(BUFFER), memory.readU8(BUFFER + 1)])).toBe('MU');
  });

  it.each([
    ['beyond RAM', RAM - 4, 8],
    ['far away', 2 ** 52, 8],
    ['around the end of the address space', 2 ** 53 - 1, 0xffffffff],
    ['of 4 GiB', 0, 0xffffffff],
  ])('refuses a target %s and writes nothing', (_name, target, length) => {
    const { memory, log, select, read, dma } = rig();
    memory.fill(RAM - 16, 16, 0xee);
    expect(dma((KEY.signature << 16) | DMA.select | DMA.read, length, target)).toBe(DMA.error);
    expect(memory.readU8(RAM - 4)).toBe(0xee);
    expect(log.lines).toHaveLength(1);
    expect(text(read(4))).toBe('QEMU');
    select(0);
  });

  it('refuses to be written to', () => {
    const { dma } = rig();
    expect(dma((KEY.cpus << 16) | DMA.select | DMA.write, 2, BUFFER)).toBe(DMA.error);
  });

  it('ignores a descriptor outside RAM', () => {
    const { bus, log } = rig();
    bus.write(OFFSET.dmaHigh, 4, 0xffffffff);
    bus.write(OFFSET.dmaLow, 4, 0xffffffff);
    bus.write(OFFSET.dmaLow, 4, 0xf8ff0300);
    expect(log.lines).toHaveLength(2);
  });

  it('clears the control word of a descriptor that asks for nothing', () => {
    const { dma } = rig();
    expect(dma(0, 100, BUFFER)).toBe(0);
  });
});

describe('content', () => {
  it('refuses names that do not fit', () => {
    for (const name of ['', 'a b', 'x'.repeat(56), 'ä']) {
      expect(() => new FwCfgContent().file(name, new Uint8Array(1))).toThrow(VmmError);
    }
    new FwCfgContent().file('x'.repeat(55), new Uint8Array(1));
  });
});

type Step = RegionAccess | { readonly key: number } | { readonly dma: number };

const steps: fc.Arbitrary<Step> = fc.oneof(
  { weight: 4, arbitrary: anyAccess(FW_CFG_PORTS) },
  {
    weight: 3,
    arbitrary: fc.record({ key: fc.constantFrom(0, 1, 3, 5, 0x19, 0x20, 0x22, 0x8002) }),
  },
  { weight: 2, arbitrary: fc.record({ dma: fc.nat(0xffffffff) }) },
);

deviceConformance('fw-cfg', {
  world: () => ({
    memory: new GuestMemory([{ base: 0, buffer: new ArrayBuffer(RAM) }]),
    log: new MemoryLog(),
  }),
  attach: ({ memory, log }) =>
    new FwCfg({ id: 'fw-cfg', content: content(), memory, clock: new ManualClock(), log }),
  steps,
  perform({ memory }, fw, step) {
    const bus = alone(fw, FW_CFG_PORTS);
    if ('key' in step) bus.write(OFFSET.selector, 2, step.key);
    else if ('dma' in step) {
      // Control word, length and target from the same random bits: some of them possible.
      const view = new DataView(new ArrayBuffer(16));
      view.setUint32(0, step.dma & 0x003f_001e);
      view.setUint32(4, step.dma & 0x3fff);
      view.setUint32(12, step.dma >>> 18);
      memory.write(DESCRIPTOR, new Uint8Array(view.buffer));
      bus.write(OFFSET.dmaLow, 4, 0x0010_0000);
    } else return access(bus, step);
    return undefined;
  },
  observe: ({ memory }) => crc32c(memory.ranges[0]!.bytes),
  impossible: (good) => [
    { ...good, key: KEY.cpus, offset: 3 },
    { ...good, key: 0x7777, offset: 1 },
  ],
});
