/**
 * From a guest's writes to the standby's image: first copy, dirty rounds, recorded epochs in flight, refused epochs, a full log. After
 * every epoch the standby's image must be what the primary's was at that capture, but for writes that were in flight then:
 * a takeover does those again.
 */
import { describe, expect, it } from 'vitest';
import { CrashDisk, CrashFile, Power } from '../../../test/support/crash-media.ts';
import { crc32c } from '../../base/crc32c.ts';
import { Prng } from '../../base/prng.ts';
import { BLOCK_OP, type BlockOp, ERRNO } from '../../block/backend.ts';
import { MemoryDisk } from '../../block/memory.ts';
import { GuestMemory } from '../../memory/guest-memory.ts';
import { SectionReader } from '../wire/sections.ts';
import { SECTION } from '../wire/spec.ts';
import { DiskAccess, SCRATCH_BYTES } from './disk-access.ts';
import { COPY_CHUNK_BYTES, type DiskCopyParts } from './disk-copy.ts';
import type { Crc, DiskLog } from './disk-log.ts';
import { Granules } from './granules.ts';
import type { RecordingBlock } from './recording-block.ts';
import { type DiskOps, ReplicaDisks } from './replica-disks.ts';
import { ReplicaRecord } from './replica-record.ts';
import { ReplicatedDisks } from './replicated-disks.ts';
import { STORAGE } from './storage.ts';

const crc: Crc = (bytes, offset, length, previous) =>
  crc32c(bytes, offset, offset + length, previous);
const DISK_BYTES = 40 * 64 * 1024 + 1536;
const SECTORS = DISK_BYTES / 512;
const MEMORY_BYTES = 2 ** 20;
const RUN = { vm: '00'.repeat(16), generation: 1 };

interface Flight {
  offset: number;
  length: number;
  busy: boolean;
}

/** A guest that writes at random, its disk, and the standby's copy. */
class Rig {
  readonly random: Prng;
  readonly memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(MEMORY_BYTES) }]);
  readonly disk = new MemoryDisk(this.memory, {
    sizeBytes: DISK_BYTES,
    delivery: 'poll',
    maxRequests: 8,
  });
  readonly disks: ReplicatedDisks;
  readonly block: RecordingBlock;
  readonly log: DiskLog;
  readonly flights: Flight[] = Array.from({ length: 8 }, () => ({
    offset: 0,
    length: 0,
    busy: false,
  }));
  waits = 0;
  copiedBytes = 0;
  epoch = 0;
  replica!: ReplicaDisks;
  copy!: CrashDisk;
  readonly #addresses = new Float64Array(2);
  readonly #lengths = new Uint32Array(2);
  readonly #chunk = new Uint8Array(COPY_CHUNK_BYTES);
  #used = 0;
  readonly #reader = new SectionReader();

  constructor(seed: number) {
    this.random = new Prng(seed);
    this.random.fill(this.disk.content.subarray(0, DISK_BYTES / 2));
    this.disk.late = this.random.chance(0.5);
    this.disks = new ReplicatedDisks(
      [{ id: 'disk0', backend: this.disk, open: async () => this.#source() }],
      this.memory,
      crc,
      { bytes: 64 * 4096, entries: 24 },
    );
    this.block = this.disks.blocks[0]!;
    this.log = this.disks.log;
    this.disks.onWait = () => this.waits++;
    this.disks.setStorage([STORAGE.replicated], undefined);
    this.block.setHandler({
      complete: (tag, result) => {
        expect(result).toBe(ERRNO.OK);
        this.flights[tag]!.busy = false;
      },
      batchEnd: () => {},
    });
  }

  /** Reads the same content as the guest's backend. */
  #source(): DiskAccess {
    const scratch = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(SCRATCH_BYTES) }]);
    const disk = new MemoryDisk(scratch, { sizeBytes: DISK_BYTES });
    Object.assign(disk, { content: this.disk.content });
    return new DiskAccess(disk, scratch);
  }

  async standby(): Promise<void> {
    const stale = new Uint8Array(DISK_BYTES);
    this.random.fill(stale);
    this.copy = new CrashDisk(new Power(), stale);
    const record = await ReplicaRecord.open(new CrashFile(new Power()), crc);
    const { access } = this.copy;
    this.replica = new ReplicaDisks(
      [{ disk: 0, id: 'disk0', access, record, room: undefined, blockSizeBytes: 512 }],
      '00'.repeat(16),
      crc,
    );
    this.replica.reset(1, false);
  }

  /** The guest does something. */
  act(): void {
    const { random } = this;
    const tag = this.flights.findIndex(({ busy }) => !busy);
    if (tag < 0 || random.chance(0.4)) {
      this.disk.poll();
      return;
    }
    const flight = this.flights[tag]!;
    if (random.chance(0.1)) {
      Object.assign(flight, { offset: 0, length: 0, busy: true });
      this.block.queue(tag, BLOCK_OP.flush, 0, 0, this.#addresses, this.#lengths, 0, 0);
    } else {
      const sectors = random.between(1, 24);
      // Crowded, so that writes overlap.
      const from = random.chance(0.5) ? random.below(40) : random.below(SECTORS - sectors);
      const length = sectors * 512;
      Object.assign(flight, { offset: from * 512, length, busy: true });
      const op: BlockOp = random.chance(0.8)
        ? BLOCK_OP.write
        : random.pick([BLOCK_OP.discard, BLOCK_OP.writeZeroes, BLOCK_OP.writeZeroesUnmap]);
      const data = new Uint8Array(length);
      random.fill(data);
      // Each tag has memory of its own, in two segments.
      const at = tag * 32 * 1024 + 100;
      this.memory.write(at, data, 0, length);
      const first = op === BLOCK_OP.write ? random.below(length) : 0;
      this.#addresses.set([at, at + first]);
      this.#lengths.set([first, length - first]);
      this.block.queue(
        tag,
        op,
        from * 512,
        length,
        this.#addresses,
        this.#lengths,
        0,
        op === BLOCK_OP.write ? 2 : 0,
      );
    }
    this.block.submit();
  }

  parts(): DiskCopyParts {
    return {
      pool: {
        take: () => 0,
        bytes: () => this.#chunk,
        fill: (_, used) => {
          this.#used = used;
        },
        release: () => {},
        onFree: (callback) => callback(),
      },
      crc,
      isZero: (bytes, offset, length) =>
        bytes.subarray(offset, offset + length).every((byte) => byte === 0),
      nowNs: () => 0,
      sleep: async () => {
        this.disk.poll();
      },
      maxDowntimeNs: 1,
      bytesPerSecondMax: Number.POSITIVE_INFINITY,
    };
  }

  /** The first copy, with the guest at work. */
  async firstCopy(): Promise<void> {
    const copy = await this.disks.beginCopy(
      this.parts(),
      {
        wanted: () => true,
        chunk: () => {
          this.copiedBytes += this.#used;
          const s = this.#reader.reset(this.#chunk, 0, this.#used);
          while (s.next()) {
            expect(s.type).toBe(SECTION.diskCopy);
            const { bodyStart: start, bodyEnd: end } = s;
            expect(
              this.replica.copy({ disk: s.instance, bytes: this.#chunk, start, end }),
            ).toBeUndefined();
          }
          for (let i = 0; i < 3; i++) this.act();
        },
      },
      RUN,
    );
    expect(await copy!.converge()).toBe(true);
    for (let i = 0; i < 10; i++) this.act();
    expect(await copy!.finish()).toBe(true);
    this.disks.endCopy();
  }

  encode(epoch: number): DiskOps[] {
    const all: DiskOps[] = [];
    this.log.beginEncoding(epoch);
    const out = new Uint8Array(40 * 1024);
    for (;;) {
      const end = this.log.encode(out);
      if (end === 0) return all;
      const s = this.#reader.reset(out.slice(0, end));
      while (s.next()) {
        expect(s.type).toBe(SECTION.diskWrites);
        const bytes = out.slice(s.bodyStart, s.bodyEnd);
        all.push({ disk: s.instance, bytes, start: 0, end: bytes.length });
      }
    }
  }
}

interface Captured {
  readonly epoch: number;
  readonly content: Uint8Array;
  readonly flying: { offset: number; length: number }[];
}

async function run(seed: number): Promise<Rig> {
  const rig = new Rig(seed);
  await rig.standby();
  await work(rig, 400);
  return rig;
}

/** A first copy and epochs behind it, one after the other, some refused. The id of an epoch is its number. */
async function work(rig: Rig, steps: number): Promise<void> {
  const { random, log } = rig;
  await rig.firstCopy();
  const flying: Captured[] = [];
  let applied = false;
  for (let step = 0; step < steps; step++) {
    rig.act();
    if (flying.length < 3 && random.chance(0.08)) {
      log.seal(++rig.epoch);
      flying.push({
        epoch: rig.epoch,
        content: rig.disk.content.slice(),
        flying: rig.flights
          .filter(({ busy }) => busy)
          .map(({ offset, length }) => ({ offset, length })),
      });
    }
    if (flying.length > 0 && random.chance(0.05)) {
      // The standby refuses it and what follows.
      const from = random.below(flying.length);
      log.returnFrom(flying[from]!.epoch);
      flying.length = from;
    }
    if (flying.length > 0 && random.chance(0.08)) {
      const first = flying.shift()!;
      const all = rig.encode(first.epoch);
      for (const ops of all) expect(rig.replica.check(ops, true)).toBeUndefined();
      if (!applied) expect(await rig.replica.complete(first.epoch)).toBeUndefined();
      applied = true;
      rig.disks.acked(first.epoch, first.epoch);
      // Acknowledged, and the standby dies before its disk has it.
      if (step > steps - 20) break;
      await rig.replica.apply(first.epoch, all);
      if (random.chance(0.5)) rig.disks.confirmed(first.epoch);
      const { content } = rig.copy.disk;
      const want = first.content;
      for (const { offset, length } of first.flying) {
        want.set(content.subarray(offset, offset + length), offset);
      }
      expect(Buffer.compare(content, want), `epoch ${first.epoch}`).toBe(0);
    }
  }
  for (const { epoch } of flying.slice(0, 1)) log.returnFrom(epoch);
}

describe('replicated disks', () => {
  it('are at the standby what they were at each capture', async () => {
    let waits = 0;
    for (let seed = 1; seed <= 15; seed++) waits += (await run(seed)).waits;
    // The log was full often enough to matter.
    expect(waits).toBeGreaterThan(10);
  }, 60_000);

  it('are brought up to date with what changed when a standby comes back', async () => {
    const full: number[] = [];
    const delta: number[] = [];
    const mean = (all: number[]): number => all.reduce((a, b) => a + b, 0) / all.length;
    for (let seed = 1; seed <= 6; seed++) {
      const rig = await run(seed);
      for (let round = 0; round < 3; round++) {
        rig.disks.forget();
        for (let i = 0; i < 20; i++) rig.act();
        const { held } = rig.replica;
        expect(held).toBeDefined();
        // As the primary must see to: one that is too old, or of another run, gets everything.
        const old = rig.random.chance(0.3);
        const claim = old ? { generation: 1, id: held!.id - 500 } : held;
        if (old) rig.random.fill(rig.copy.disk.content);
        rig.disks.setStorage([STORAGE.replicated], claim);
        rig.replica.reset(1, true);
        rig.copiedBytes = 0;
        await work(rig, 150);
        (old ? full : delta).push(rig.copiedBytes);
      }
    }
    expect(full.length).toBeGreaterThan(2);
    expect(mean(delta)).toBeLessThan(mean(full) * 0.9);
  }, 60_000);

  it('are copied whole when they were shared in between', async () => {
    const rig = await run(3);
    const { held } = rig.replica;
    rig.disks.setStorage([STORAGE.shared], undefined);
    rig.disks.forget();
    for (let i = 0; i < 60; i++) rig.act();
    rig.disks.acked(rig.epoch, rig.epoch);
    // One that refuses answers for no disk, and changes nothing.
    rig.disks.setStorage([], undefined);
    expect(rig.disks.isCopied(0)).toBe(false);
    rig.disks.setStorage([STORAGE.replicated], held);
    rig.replica.reset(1, true);
    await work(rig, 100);
  });

  it('let everything go when the standby is given up, and know what it lacks', async () => {
    const rig = await run(99);
    for (let i = 0; i < 60; i++) rig.act();
    rig.disks.forget();
    for (let i = 0; i < 100 && rig.block.inFlight > 0; i++) rig.disk.poll();
    expect(rig.block.waiting).toBe(0);
    expect(rig.log.count).toBe(0);
    expect(rig.log.heldBytes).toBe(0);
    const { content } = rig.copy.disk;
    for (let g = 0; g < rig.block.granules.total; g++) {
      if (rig.block.granules.has(g)) continue;
      const [from, to] = [g * 65536, (g + 1) * 65536];
      expect(Buffer.compare(content.subarray(from, to), rig.disk.content.subarray(from, to))).toBe(
        0,
      );
    }
  });

  it('are opened once for copies that are begun anew meanwhile, and given back', async () => {
    const memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(MEMORY_BYTES) }]);
    const backend = new MemoryDisk(memory, { sizeBytes: DISK_BYTES });
    let opens = 0;
    let closes = 0;
    const go: ((error?: Error) => void)[] = [];
    const open = (): Promise<DiskAccess> => {
      opens++;
      return new Promise((resolve, reject) => {
        const scratch = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(SCRATCH_BYTES) }]);
        const disk = new MemoryDisk(scratch, { sizeBytes: DISK_BYTES });
        const access = new DiskAccess(disk, scratch);
        access.onClose(() => closes++);
        go.push((error) => (error === undefined ? resolve(access) : reject(error)));
      });
    };
    const disks = new ReplicatedDisks(
      [{ id: 'disk0', backend, open, openBase: open }],
      memory,
      crc,
    );
    disks.setStorage([STORAGE.replicatedOnBase], undefined);
    const begin = () =>
      disks.beginCopy(new Rig(1).parts(), { wanted: () => true, chunk: () => {} }, RUN);
    const settle = async (error?: Error): Promise<void> => {
      for (const one of go.splice(0)) one(error);
      await new Promise((resolve) => setImmediate(resolve));
    };
    const failing = [begin(), begin()].map((copy) => expect(copy).rejects.toThrow('not now'));
    await settle(new Error('not now'));
    await Promise.all(failing);
    expect(opens).toBe(1);
    const both = Promise.all([begin(), begin()]);
    await settle();
    await settle();
    for (const copy of await both) expect(copy).toBeDefined();
    expect(opens).toBe(3);
    await disks.close();
    expect(closes).toBe(2);
    // One that is closed while it opens gives that back too, and opens no more.
    const late = new ReplicatedDisks([{ id: 'disk0', backend, open, openBase: open }], memory, crc);
    late.setStorage([STORAGE.replicatedOnBase], undefined);
    const copy = late.beginCopy(new Rig(1).parts(), { wanted: () => true, chunk: () => {} }, RUN);
    const closed = late.close();
    await settle();
    expect(await copy).toBeUndefined();
    await closed;
    expect([opens, closes]).toEqual([4, 3]);
  });

  it('keep what the disk refused out of the log, and mark it', () => {
    const rig = new Rig(5);
    const results: number[] = [];
    rig.block.setHandler({ complete: (_, result) => results.push(result), batchEnd: () => {} });
    rig.block.setMode('record');
    rig.disk.fault = () => ERRNO.ENOSPC;
    rig.block.queue(0, BLOCK_OP.write, 512, 512, Float64Array.of(0), Uint32Array.of(512), 0, 1);
    rig.block.submit();
    rig.disk.poll();
    expect(results).toEqual([ERRNO.ENOSPC]);
    expect(rig.log.count).toBe(0);
    expect(rig.log.heldBytes).toBe(0);
    expect(rig.block.granules.has(0)).toBe(true);
  });
});

describe('granules', () => {
  it('mark, find and persist', () => {
    const g = new Granules(100 * 65536 + 1);
    expect(g.total).toBe(101);
    g.mark(65535, 2);
    g.mark(70 * 65536, 1);
    expect([g.next(0), g.next(2), g.next(71)]).toEqual([0, 70, -1]);
    expect(g.runEnd(0, 101)).toBe(2);
    const other = new Granules(g.sizeBytes);
    other.fromBytes(g.toBytes());
    expect(other.count).toBe(3);
    other.fill();
    expect(other.count).toBe(101);
    expect(other.bytes).toBe(g.sizeBytes);
    g.merge(other);
    expect(g.count).toBe(101);
  });
});
