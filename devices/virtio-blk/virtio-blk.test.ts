import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { crc32c } from '../../src/base/crc32c.ts';
import { MemoryLog } from '../../src/base/log.ts';
import { BLOCK_OP, ERRNO } from '../../src/block/backend.ts';
import { MemoryDisk, type MemoryDiskOptions } from '../../src/block/memory.ts';
import { PauseWhenFull } from '../../src/block/pause-when-full.ts';
import { VirtioPciFunction } from '../../src/virtio/pci-function.ts';
import type { VirtioPciState } from '../../src/virtio/pci-state.ts';
import { FEATURE, featureSet, STATUS } from '../../src/virtio/spec.ts';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { PciTestBoard, type RecordingMsi } from '../../test/support/pci-board.ts';
import {
  type DriverQueue,
  type Segment,
  testMemory,
  VirtioDriver,
} from '../../test/support/virtio-driver.ts';
import { BLK_CONFIG, BLK_FEATURE, BLK_REQUEST, BLK_STATUS } from './spec.ts';
import { VirtioBlk, type VirtioBlkState } from './virtio-blk.ts';

const SLOT = 5;
const DISK_BYTES = 64 * 1024;

interface RigOptions extends Partial<MemoryDiskOptions> {
  readonly queueSize?: number;
  /** A write that finds no room is kept. */
  readonly whenFull?: 'keep';
}

function build(options: RigOptions = {}) {
  const memory = testMemory();
  const board = new PciTestBoard();
  const clock = new ManualClock();
  const log = new MemoryLog();
  const disk = new MemoryDisk(memory, { sizeBytes: DISK_BYTES, delivery: 'poll', ...options });
  const blk = new VirtioBlk({
    id: 'disk0',
    memory,
    backend: options.whenFull === 'keep' ? new PauseWhenFull(disk, () => {}) : disk,
    clock,
    serial: 'SERIAL-1',
    ...(options.queueSize === undefined ? {} : { queueSize: options.queueSize }),
  });
  const fn = new VirtioPciFunction({ device: blk, memory, clock, log, doorbells: board.doorbells });
  board.bus.add(fn.pci, { slot: SLOT });
  fn.resume();
  const driver = new VirtioDriver(board, memory, SLOT);
  driver.probe();
  return { memory, board, clock, log, disk, fn, driver };
}

function started(
  options: Parameters<typeof build>[0] = {},
  features?: ReturnType<typeof featureSet>,
) {
  const rig = build(options);
  rig.driver.enableMsix(2);
  expect(rig.driver.negotiate(features ?? rig.driver.offered())).toBe(true);
  const queue = rig.driver.setupQueue(0);
  rig.driver.start();
  return { ...rig, queue };
}

/** A request in memory: header, data buffers, status. */
function request(
  driver: VirtioDriver,
  type: number,
  sector: number,
  data: readonly Segment[] = [],
) {
  const header = driver.allocate(16);
  const status = driver.allocate(1);
  driver.memory.writeU32(header, type);
  driver.memory.writeU32(header + 4, 0);
  driver.memory.writeU64(header + 8, sector);
  driver.memory.writeU8(status, 0xee);
  const segments = [
    { address: header, length: 16 },
    ...data,
    { address: status, length: 1, write: true },
  ];
  return { segments, status: () => driver.memory.readU8(status) };
}

function buffer(driver: VirtioDriver, bytes: number, write: boolean, fill = 0): Segment {
  const address = driver.allocate(bytes);
  driver.memory.fill(address, bytes, fill);
  return { address, length: bytes, write };
}

/** Submits one request and waits for its completion. */
function execute(
  rig: ReturnType<typeof started>,
  type: number,
  sector: number,
  data: readonly Segment[] = [],
): number {
  const { segments, status } = request(rig.driver, type, sector, data);
  const head = rig.queue.add(segments);
  rig.queue.notify();
  while (rig.disk.poll() > 0);
  expect(rig.queue.take()?.head).toBe(head);
  return status();
}

function contentOf(rig: ReturnType<typeof started>, { address, length }: Segment): Uint8Array {
  const out = new Uint8Array(length);
  rig.memory.read(address, out);
  return out;
}

function range(driver: VirtioDriver, sector: number, count: number, flags = 0): Segment {
  const at = driver.allocate(16);
  driver.memory.writeU64(at, sector);
  driver.memory.writeU32(at + 8, count);
  driver.memory.writeU32(at + 12, flags);
  return { address: at, length: 16 };
}

describe('VirtioBlk configuration', () => {
  it('shows capacity, block size, topology and limits', () => {
    const { driver } = build({ blockSizeBytes: 4096 });
    expect(driver.board.read(SLOT, 0)).toBe(0x10421af4);
    expect(driver.config(BLK_CONFIG.capacity, 4)).toBe(DISK_BYTES / 512);
    expect(driver.config(BLK_CONFIG.blockSize, 4)).toBe(4096);
    expect(driver.config(BLK_CONFIG.segMax, 4)).toBe(254);
    expect(driver.config(BLK_CONFIG.writeback, 1)).toBe(1);
    expect(driver.config(BLK_CONFIG.discardAlignment, 4)).toBe(8);
  });

  it('offers read-only instead of changes on a read-only disk', () => {
    const { driver } = build({ readonly: true });
    const { low } = driver.offered();
    expect((low >>> BLK_FEATURE.readonly) & 1).toBe(1);
    expect((low >>> BLK_FEATURE.discard) & 1).toBe(0);
  });
});

describe('VirtioBlk requests', () => {
  it('writes and reads back, over scattered buffers, and interrupts', () => {
    const rig = started();
    const source = [buffer(rig.driver, 512, false, 0xaa), buffer(rig.driver, 1024, false, 0xbb)];
    expect(execute(rig, BLK_REQUEST.out, 2, source)).toBe(BLK_STATUS.ok);
    expect(rig.disk.content[1024]).toBe(0xaa);
    expect(rig.disk.content[1536]).toBe(0xbb);
    expect(rig.board.msi.take()).toEqual(['fee00000:41']);
    const target = [buffer(rig.driver, 1000, true), buffer(rig.driver, 536, true)];
    rig.memory.dirty.clear();
    expect(execute(rig, BLK_REQUEST.in, 2, target)).toBe(BLK_STATUS.ok);
    expect(contentOf(rig, target[0]!)[511]).toBe(0xaa);
    expect(contentOf(rig, target[0]!)[512]).toBe(0xbb);
    expect(contentOf(rig, target[1]!)[535]).toBe(0xbb);
    expect(rig.memory.dirty.has(Math.floor(target[1]!.address / 4096))).toBe(true);
  });

  it('does not care how a request is cut into descriptors (2.7.4)', () => {
    const rig = started();
    const at = rig.driver.allocate(16 + 512);
    rig.memory.fill(at, 528, 0x5c);
    rig.memory.writeU32(at, BLK_REQUEST.out);
    rig.memory.writeU32(at + 4, 0);
    rig.memory.writeU64(at + 8, 7);
    const status = rig.driver.allocate(1);
    rig.queue.add([
      { address: at, length: 5 },
      { address: at + 5, length: 40 },
      { address: at + 45, length: 483 },
      { address: status, length: 1, write: true },
    ]);
    rig.queue.notify();
    rig.disk.poll();
    expect(rig.memory.readU8(status)).toBe(0);
    expect([...new Set(rig.disk.content.subarray(7 * 512, 8 * 512))]).toEqual([0x5c]);
    // Data and status in one buffer.
    const header = rig.driver.allocate(16);
    rig.memory.writeU32(header, BLK_REQUEST.in);
    rig.memory.writeU64(header + 8, 7);
    const target = rig.driver.allocate(513);
    rig.queue.takeAll();
    rig.queue.add([
      { address: header, length: 16 },
      { address: target, length: 513, write: true },
    ]);
    rig.queue.notify();
    rig.disk.poll();
    expect(rig.memory.readU8(target + 511)).toBe(0x5c);
    expect(rig.memory.readU8(target + 512)).toBe(0);
    expect(rig.queue.take()?.written).toBe(513);
  });

  it('takes indirect chains', () => {
    const rig = started();
    const { segments, status } = request(rig.driver, BLK_REQUEST.out, 1, [
      buffer(rig.driver, 512, false, 1),
      buffer(rig.driver, 512, false, 2),
    ]);
    rig.queue.offer(rig.queue.indirect(segments));
    rig.queue.notify();
    rig.disk.poll();
    expect(status()).toBe(0);
    expect(rig.disk.content[1024]).toBe(2);
  });

  it('flushes, discards, zeroes and identifies', () => {
    const rig = started();
    execute(rig, BLK_REQUEST.out, 0, [buffer(rig.driver, 4096, false, 9)]);
    expect(rig.disk.durable[0]).toBe(0);
    expect(execute(rig, BLK_REQUEST.flush, 0)).toBe(BLK_STATUS.ok);
    expect(rig.disk.durable[0]).toBe(9);
    expect(execute(rig, BLK_REQUEST.discard, 0, [range(rig.driver, 0, 2)])).toBe(BLK_STATUS.ok);
    expect(execute(rig, BLK_REQUEST.writeZeroes, 0, [range(rig.driver, 2, 2, 1)])).toBe(0);
    expect(execute(rig, BLK_REQUEST.writeZeroes, 0, [range(rig.driver, 4, 2)])).toBe(0);
    expect(rig.disk.journal.slice(-3).map(({ op }) => op)).toEqual([
      BLOCK_OP.discard,
      BLOCK_OP.writeZeroesUnmap,
      BLOCK_OP.writeZeroes,
    ]);
    expect(rig.disk.content.findIndex((byte) => byte !== 0)).toBe(6 * 512);
    const id = buffer(rig.driver, 20, true, 0xff);
    expect(execute(rig, BLK_REQUEST.getId, 0, [id])).toBe(BLK_STATUS.ok);
    expect(new TextDecoder().decode(contentOf(rig, id)).replaceAll('\0', '')).toBe('SERIAL-1');
  });

  it('answers what it cannot do with the right status', () => {
    const rig = started();
    const one = () => buffer(rig.driver, 512, true);
    expect(execute(rig, 99, 0)).toBe(BLK_STATUS.unsupported);
    expect(execute(rig, BLK_REQUEST.in, DISK_BYTES / 512, [one()])).toBe(BLK_STATUS.ioError);
    expect(execute(rig, BLK_REQUEST.in, 2 ** 52, [one()])).toBe(BLK_STATUS.ioError);
    expect(execute(rig, BLK_REQUEST.in, 0, [buffer(rig.driver, 100, true)])).toBe(
      BLK_STATUS.ioError,
    );
    expect(execute(rig, BLK_REQUEST.in, 0)).toBe(BLK_STATUS.ok);
    expect(execute(rig, BLK_REQUEST.discard, 0, [range(rig.driver, 0, 1, 1)])).toBe(
      BLK_STATUS.unsupported,
    );
    expect(execute(rig, BLK_REQUEST.writeZeroes, 0, [range(rig.driver, 127, 2)])).toBe(
      BLK_STATUS.ioError,
    );
    expect(execute(rig, BLK_REQUEST.writeZeroes, 0, [])).toBe(BLK_STATUS.ioError);
    rig.disk.fault = (op) => (op === BLOCK_OP.write ? ERRNO.ENOSPC : undefined);
    expect(execute(rig, BLK_REQUEST.out, 0, [buffer(rig.driver, 512, false)])).toBe(
      BLK_STATUS.ioError,
    );
    rig.disk.fault = undefined;
    expect(execute(rig, BLK_REQUEST.in, 0, [one()])).toBe(BLK_STATUS.ok);
  });

  it('refuses writes to a read-only disk', () => {
    const rig = started({ readonly: true });
    expect(execute(rig, BLK_REQUEST.out, 0, [buffer(rig.driver, 512, false)])).toBe(
      BLK_STATUS.ioError,
    );
    expect(execute(rig, BLK_REQUEST.writeZeroes, 0, [range(rig.driver, 0, 1)])).toBe(
      BLK_STATUS.unsupported,
    );
  });

  it('makes every write durable when the driver has no flush or turned the cache off', () => {
    const plain = started({}, featureSet(FEATURE.version1));
    execute(plain, BLK_REQUEST.out, 0, [buffer(plain.driver, 512, false, 3)]);
    expect(plain.disk.durable[0]).toBe(3);
    const wce = started();
    wce.driver.setConfig(BLK_CONFIG.writeback, 1, 0);
    expect(wce.driver.config(BLK_CONFIG.writeback, 1)).toBe(0);
    execute(wce, BLK_REQUEST.out, 0, [buffer(wce.driver, 512, false, 4)]);
    expect(wce.disk.durable[0]).toBe(4);
    wce.driver.setConfig(BLK_CONFIG.writeback, 1, 1);
    execute(wce, BLK_REQUEST.out, 0, [buffer(wce.driver, 512, false, 5)]);
    expect(wce.disk.durable[0]).toBe(4);
  });

  it('submits a batch once, and waits for tags when the backend is full', () => {
    const rig = started({ maxRequests: 4 });
    let submits = 0;
    const submit = rig.disk.submit.bind(rig.disk);
    rig.disk.submit = () => {
      submits++;
      submit();
    };
    for (let i = 0; i < 10; i++) {
      const { segments } = request(rig.driver, BLK_REQUEST.out, i, [
        buffer(rig.driver, 512, false, i),
      ]);
      rig.queue.add(segments);
    }
    rig.queue.notify();
    expect(rig.disk.inFlight).toBe(4);
    expect(submits).toBe(1);
    rig.disk.poll();
    expect(rig.disk.inFlight).toBe(4);
    rig.disk.poll();
    rig.disk.poll();
    expect(submits).toBe(3);
    expect(rig.queue.takeAll()).toHaveLength(10);
    expect(rig.disk.content[9 * 512]).toBe(9);
  });
});

describe('VirtioBlk life', () => {
  it('lets a reset finish only when the disk is done with the memory', () => {
    const rig = started();
    rig.queue.add(request(rig.driver, BLK_REQUEST.in, 0, [buffer(rig.driver, 512, true)]).segments);
    rig.disk.held = true;
    rig.queue.notify();
    rig.driver.status = 0;
    expect(rig.driver.status).not.toBe(0);
    rig.driver.status = STATUS.acknowledge;
    rig.disk.held = false;
    rig.disk.poll();
    expect(rig.driver.status).toBe(0);
    expect(rig.queue.take()).toBeUndefined();
    expect(rig.driver.negotiate()).toBe(true);
  });

  it('gives up what never ends when the driver waits for its reset', () => {
    const rig = started({ whenFull: 'keep' });
    rig.disk.fault = () => ERRNO.ENOSPC;
    rig.queue.add(
      request(rig.driver, BLK_REQUEST.out, 0, [buffer(rig.driver, 512, false)]).segments,
    );
    rig.queue.notify();
    rig.disk.poll();
    rig.driver.status = 0;
    rig.clock.advance(4.9e9);
    expect(rig.driver.status).not.toBe(0);
    // Machine time stands still while paused, and so does patience.
    rig.fn.pause();
    rig.clock.advance(1e9);
    rig.fn.resume();
    rig.clock.advance(4.9e9);
    expect(rig.driver.status).not.toBe(0);
    rig.clock.advance(0.1e9);
    expect(rig.driver.status).toBe(0);
    rig.disk.fault = undefined;
    expect(rig.driver.negotiate()).toBe(true);
  });

  it('marks what a read wrote whose completion nobody takes any more', () => {
    const rig = started();
    const target = buffer(rig.driver, 512, true);
    rig.queue.add(request(rig.driver, BLK_REQUEST.in, 0, [target]).segments);
    rig.queue.notify();
    rig.fn.pause();
    rig.disk.poll();
    rig.memory.dirty.clear();
    rig.fn.reset();
    expect(rig.memory.dirty.has(Math.floor(target.address / 4096))).toBe(true);
  });

  it('keeps completions while paused and delivers them on resume', () => {
    const rig = started();
    const { segments, status } = request(rig.driver, BLK_REQUEST.in, 0, [
      buffer(rig.driver, 512, true),
    ]);
    rig.queue.add(segments);
    rig.queue.notify();
    rig.fn.pause();
    rig.disk.poll();
    expect(status()).toBe(0xee);
    expect(rig.fn.save().queues[0]!.outstanding).toHaveLength(1);
    rig.fn.resume();
    expect(status()).toBe(0);
    expect(rig.queue.takeAll()).toHaveLength(1);
  });

  it('does again, in order, what was outstanding when the state was taken', () => {
    const rig = started();
    rig.disk.held = true;
    const make = (sector: number, fill: number) =>
      request(rig.driver, BLK_REQUEST.out, sector, [buffer(rig.driver, 512, false, fill)]);
    const all = [make(0, 1), make(1, 2), make(2, 3), make(3, 4)];
    for (const { segments } of all) rig.queue.add(segments);
    rig.queue.notify();
    rig.fn.pause();
    const state = rig.fn.schema.encode(rig.fn.save());
    const { fn, disk, board } = replacement(rig, state);
    expect(disk.inFlight).toBe(0);
    fn.resume();
    expect(disk.inFlight).toBe(4);
    expect(disk.journal.map(({ offset }) => offset)).toEqual([0, 512, 1024, 1536]);
    disk.poll();
    expect(all.map(({ status }) => status())).toEqual([0, 0, 0, 0]);
    expect(rig.queue.takeAll()).toHaveLength(4);
    expect(board.msi.messages).toEqual(['fee00000:41']);
  });

  it('knows which of several requests are outstanding when they completed out of order', () => {
    const rig = started({ maxRequests: 3 });
    const slow = request(rig.driver, BLK_REQUEST.out, 0, [buffer(rig.driver, 512, false, 1)]);
    const fast = request(rig.driver, BLK_REQUEST.getId, 0, [buffer(rig.driver, 20, true)]);
    const last = request(rig.driver, BLK_REQUEST.out, 9, [buffer(rig.driver, 512, false, 3)]);
    const heads = [slow, fast, last].map(({ segments }) => rig.queue.add(segments));
    rig.disk.held = true;
    rig.queue.notify();
    rig.fn.pause();
    const saved = rig.fn.save();
    expect(saved.queues[0]!.outstanding).toEqual([heads[0], heads[2]]);
    const { fn, disk } = replacement(rig, rig.fn.schema.encode(saved));
    fn.resume();
    disk.poll();
    expect(disk.journal.map(({ offset }) => offset)).toEqual([0, 9 * 512]);
    expect(rig.queue.takeAll().map(({ head }) => head)).toEqual([heads[1], heads[0], heads[2]]);
  });

  it('refuses the state of another disk', () => {
    const rig = started();
    rig.fn.pause();
    const state = rig.fn.save();
    const other = build({ sizeBytes: 2 * DISK_BYTES });
    other.fn.pause();
    expect(() => other.fn.load(state)).toThrow(/disk size/);
  });
});

/** A fresh device, disk and board that take over the state; the guest's memory and driver stay. */
function replacement(rig: ReturnType<typeof started>, state: Uint8Array) {
  const board = new PciTestBoard();
  const disk = new MemoryDisk(rig.memory, { sizeBytes: DISK_BYTES, delivery: 'poll' });
  const blk = new VirtioBlk({ id: 'disk0', memory: rig.memory, backend: disk, clock: rig.clock });
  const fn = new VirtioPciFunction({
    device: blk,
    memory: rig.memory,
    clock: rig.clock,
    log: rig.log,
    doorbells: board.doorbells,
  });
  board.bus.add(fn.pci, { slot: SLOT });
  fn.load(fn.schema.decode(state));
  rig.driver.board = board;
  return { fn, disk, board };
}

describe('VirtioBlk and a guest without manners', () => {
  it('asks for a reset when a request has no header or no status', () => {
    for (const segments of [
      [
        { address: 0x1000, length: 8 },
        { address: 0x2000, length: 1, write: true },
      ],
      [{ address: 0x1000, length: 16 }],
    ]) {
      const rig = started();
      const good = request(rig.driver, BLK_REQUEST.out, 0, [buffer(rig.driver, 512, false)]);
      rig.queue.add(good.segments);
      rig.queue.add(segments);
      rig.queue.add(good.segments);
      rig.queue.notify();
      expect(rig.driver.status & STATUS.needsReset).toBe(STATUS.needsReset);
      // What came before is done, what came behind is not looked at, now or later.
      expect(rig.disk.journal).toHaveLength(1);
      rig.disk.poll();
      rig.clock.advance(1e9);
      expect(rig.disk.journal).toHaveLength(1);
      expect(rig.log.lines.join()).toMatch(/header or status/);
      expect(rig.driver.negotiate()).toBe(true);
    }
  });

  it('stays upright under random requests and ring contents', () => {
    const step = fc.record({
      type: fc.constantFrom(0, 1, 4, 8, 11, 13, 7),
      sector: fc.oneof(fc.nat(130), fc.nat(2 ** 31)),
      data: fc.array(
        fc.record({
          address: fc.oneof(fc.nat(0x3f_0000), fc.constantFrom(0x3f_fff0, 0xffff_ffff, 2 ** 45)),
          length: fc.oneof(fc.constantFrom(0, 1, 15, 16, 512, 1024), fc.nat(0xffff_ffff)),
          write: fc.boolean(),
        }),
        { maxLength: 4 },
      ),
      poke: fc.option(fc.tuple(fc.nat(0xfff), fc.nat(0xff))),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 20 }), (steps) => {
        const rig = started({ queueSize: 16 });
        for (const { type, sector, data, poke } of steps) {
          if ((rig.driver.status & STATUS.needsReset) !== 0) restart(rig);
          if (rig.queue.free < 8) rig.queue.takeAll();
          const { segments } = request(rig.driver, type, sector);
          rig.queue.add([segments[0]!, ...data, segments[1]!]);
          if (poke !== null) rig.memory.writeU8(rig.queue.desc + (poke[0] % 0x180), poke[1]);
          rig.queue.notify();
          rig.disk.poll();
        }
        expect(rig.disk.content.length).toBe(DISK_BYTES);
      }),
    );
  });
});

function restart(rig: { driver: VirtioDriver; queue: DriverQueue }): void {
  rig.driver.negotiate();
  rig.queue = rig.driver.setupQueue(0);
  rig.driver.start();
}

interface World {
  readonly memory: ReturnType<typeof testMemory>;
  readonly clock: ManualClock;
  readonly driver: VirtioDriver;
  readonly msi: RecordingMsi;
  readonly irqs: PciTestBoard['irqs'];
  /** What each device of this world is wired to. */
  readonly wiring: Map<unknown, { board: PciTestBoard; disk: MemoryDisk }>;
  disk: MemoryDisk | undefined;
  /** Status addresses of requests under way, by head. */
  readonly under: Map<number, () => number>;
}

type Step =
  | { readonly do: 'write' | 'read' | 'zeroes'; readonly sector: number; readonly fill: number }
  | { readonly do: 'flush' | 'id' | 'poll' | 'begin' }
  | { readonly do: 'cache'; readonly on: boolean };

/** Reads keep to sectors that nothing writes: repeated after a write that overtook them they would see it. */
const FIRST_READ_SECTOR = 64;

deviceConformance<World, VirtioPciFunction<VirtioBlkState>, Step>('virtio-blk', {
  world() {
    const board = new PciTestBoard();
    const memory = testMemory(0x8_0000);
    return {
      memory,
      clock: new ManualClock(),
      driver: new VirtioDriver(board, memory, SLOT),
      msi: board.msi,
      irqs: board.irqs,
      wiring: new Map(),
      disk: undefined,
      under: new Map(),
    };
  },
  attach(w) {
    const { memory, clock, msi, irqs } = w;
    const board = new PciTestBoard(msi, irqs);
    const disk = new MemoryDisk(memory, {
      sizeBytes: DISK_BYTES,
      delivery: 'poll',
      maxRequests: 3,
    });
    if (w.disk === undefined) disk.content.fill(0x77, FIRST_READ_SECTOR * 512);
    else disk.content.set(w.disk.content);
    w.disk = disk;
    const device = new VirtioBlk({ id: 'disk0', memory, backend: disk, clock });
    const fn = new VirtioPciFunction({ device, memory, clock, log: new MemoryLog() });
    board.bus.add(fn.pci, { slot: SLOT });
    w.wiring.set(fn, { board, disk });
    return fn;
  },
  steps: fc.oneof(
    fc.record({
      do: fc.constantFrom<'write' | 'read' | 'zeroes'>('write', 'read', 'zeroes'),
      sector: fc.nat(FIRST_READ_SECTOR - 2),
      fill: fc.nat(255),
    }),
    fc.record({
      do: fc.constantFrom<'flush' | 'id' | 'poll' | 'begin'>(
        'flush',
        'id',
        'poll',
        'poll',
        'begin',
      ),
    }),
    fc.record({ do: fc.constant<'cache'>('cache'), on: fc.boolean() }),
  ),
  perform(w, device, step) {
    const { board, disk } = w.wiring.get(device)!;
    const { driver } = w;
    driver.board = board;
    w.disk = disk;
    if (step.do === 'begin' || driver.queues[0] === undefined) {
      driver.probe();
      // A driver waits for the end of a reset.
      driver.status = 0;
      while (driver.status !== 0) disk.poll();
      driver.enableMsix(2);
      driver.negotiate();
      driver.setupQueue(0);
      driver.start();
      w.under.clear();
    }
    const queue = driver.queues[0]!;
    const add = (type: number, sector: number, data: readonly Segment[]) => {
      if (queue.free < 3) return;
      const { segments, status } = request(driver, type, sector, data);
      w.under.set(queue.add(segments), status);
      queue.notify();
    };
    switch (step.do) {
      case 'write':
        add(BLK_REQUEST.out, step.sector, [buffer(driver, 512, false, step.fill)]);
        break;
      case 'read':
        add(BLK_REQUEST.in, FIRST_READ_SECTOR + (step.sector & 31), [buffer(driver, 512, true)]);
        break;
      case 'zeroes':
        add(BLK_REQUEST.writeZeroes, 0, [range(driver, step.sector, 2)]);
        break;
      case 'flush':
        add(BLK_REQUEST.flush, 0, []);
        break;
      case 'id':
        add(BLK_REQUEST.getId, 0, [buffer(driver, 20, true)]);
        break;
      case 'cache':
        driver.setConfig(BLK_CONFIG.writeback, 1, step.on ? 1 : 0);
        break;
      case 'poll':
        while (disk.poll() > 0);
        break;
      default:
    }
    const used = queue.takeAll();
    return used.map(({ head, written }) => [head, written, w.under.get(head)?.()]);
  },
  runs: 12,
  maxSteps: 20,
  observe: (w) => [w.msi.messages, crc32c(w.disk!.content)],
  impossible: (good: VirtioPciState<VirtioBlkState>) => [
    { ...good, device: { ...good.device, capacitySectors: 5 } },
    { ...good, device: { ...good.device, blockSizeBytes: 4096 } },
    { ...good, queues: good.queues.map((queue) => ({ ...queue, outstanding: [1] })) },
    { ...good, queues: good.queues.map((queue) => ({ ...queue, size: 100 })) },
  ],
});
