/**
 * The replicated disks of a simulated process that runs the guest: the real decorators, log and first copy (src/ft/disk), on the
 * storage of its host. Does what ft/shell does with them, in small.
 */
import { crc32c } from '../../src/base/crc32c.ts';
import { BLOCK_OP, type BlockOp, ERRNO } from '../../src/block/backend.ts';
import { ActivityFile } from '../../src/ft/disk/activity-file.ts';
import type { CopyPool, DiskCopyOwner, DiskCopyParts } from '../../src/ft/disk/disk-copy.ts';
import type { Crc } from '../../src/ft/disk/disk-log.ts';
import { ReplicatedDisks } from '../../src/ft/disk/replicated-disks.ts';
import { type HeldCopy, type ReturnedCopy, STORAGE } from '../../src/ft/disk/storage.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import {
  BLOCK_BYTES,
  BLOCKS,
  blockSignature,
  DISK_BLOCKS,
  DISKS,
  FAILED,
  type SimGuest,
  SLOT_OP,
  SLOTS,
} from './guest.ts';
import { plantInActivity, plantInMarks } from './planted-disks.ts';
import type { SimProcess } from './process.ts';

export const crc: Crc = (bytes, offset, length, previous) =>
  crc32c(bytes, offset, offset + length, previous);

/** Which guest. */
export const VM = '0123456789abcdef0123456789abcdef';
/** Largest request of the guest, in blocks. */
const REQUEST_BLOCKS = 4;
const SLOT_BYTES = REQUEST_BLOCKS * BLOCK_BYTES;
const LOG_BOUNDS = { bytes: 8 * 4096, entries: 8 };
/** Room for a chunk of the first copy: a whole disk of the simulation, or all the operations on it. */
const CHUNK_BYTES = DISK_BLOCKS * BLOCK_BYTES + 512;
/** In units as small as these disks are, so that each has several. */
const GRANULE_BYTES = BLOCK_BYTES;
const EXTENT_BYTES = 2 * BLOCK_BYTES;
/** How much faster the activity log's clock runs: extents leave it several times within a run. */
const ACTIVITY_HASTE = 40;
/** Room for disk writes in one part of a transaction. */
const PART_BYTES = 2048;

const OPS: Readonly<Record<number, BlockOp>> = {
  [SLOT_OP.write]: BLOCK_OP.write,
  [SLOT_OP.flush]: BLOCK_OP.flush,
  [SLOT_OP.discard]: BLOCK_OP.discard,
  [SLOT_OP.zeroes]: BLOCK_OP.writeZeroes,
};

/** What the images hold, as far as the guest counts on it (see `Ghost.blocks`). */
export function blocksOf(process: SimProcess, guest: SimGuest): number[] {
  const storage = process.world.storage[process.host]!;
  const out: number[] = [];
  for (let block = 0; block < BLOCKS; block++) {
    out.push(guest.known(block) === FAILED ? FAILED : storage.words(block, 3));
  }
  for (const slot of guest.inFlight) {
    const { first, end } = guest.rangeOf(slot);
    out.fill(FAILED, first, end);
  }
  return out;
}

/** Who owns the disks. */
export interface DiskOwner {
  done(slot: number, ok: boolean): void;
  /** A write waits for room: a checkpoint would make some. */
  waits(): void;
  /** Whether the first copy begun as number `sync` is still wanted. */
  wanted(sync: number): boolean;
  /** A frame of the first copy. */
  copied(sync: number, payload: Uint8Array): void;
  /** A disk of this host cannot be read. */
  unreadable(sync: number): void;
}

/** See the module's head. */
export class PrimaryDisks {
  readonly disks: ReplicatedDisks;
  readonly #process: SimProcess;
  readonly #guest: SimGuest;
  readonly #owner: DiskOwner;
  readonly #memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(SLOTS * SLOT_BYTES) }]);
  readonly #addresses = new Float64Array(1);
  readonly #lengths = new Uint32Array(1);
  readonly #data = new Uint32Array(SLOT_BYTES / 4);
  readonly #part = new Uint8Array(PART_BYTES);

  constructor(process: SimProcess, guest: SimGuest, owner: DiskOwner) {
    this.#process = process;
    this.#guest = guest;
    this.#owner = owner;
    const storage = process.world.storage[process.host]!;
    const each = Array.from({ length: DISKS }, (_, disk) => disk);
    this.disks = new ReplicatedDisks(
      each.map((disk) => ({
        id: `disk${disk}`,
        backend: storage.backendOf(process, disk, this.#memory),
        open: async () => storage.accessOf(process, disk),
        activity: plantInActivity(process.world.bug, {
          image: 1,
          extentBytes: EXTENT_BYTES,
          open: () => ActivityFile.open(storage.activityOf(process, disk), crc),
          flush: () => storage.flushOf(process, disk),
          sleep: (ms: number) => this.#sleep(ms / ACTIVITY_HASTE),
          warn: () => {},
          close: () => {},
        }),
      })),
      this.#memory,
      crc,
      LOG_BOUNDS,
      GRANULE_BYTES,
    );
    plantInMarks(process.world.bug, this.disks.blocks);
    this.disks.onWait = () => owner.waits();
    for (const block of this.disks.blocks) {
      block.setHandler({
        complete: (tag, result) => owner.done(tag, result === ERRNO.OK),
        batchEnd: () => {},
      });
    }
  }

  #sleep(ms: number): Promise<void> {
    const { schedule } = this.#process.world;
    return new Promise((resolve) => {
      schedule.after(10 * ms, () => {
        schedule.unsettled = true;
        resolve();
      });
    });
  }

  /** A standby's answer to the introduction. */
  introduced(held: HeldCopy | undefined, returned: ReturnedCopy | undefined): void {
    const all = this.disks.blocks.map(() => STORAGE.replicated);
    this.disks.setStorage(all, held, returned);
    if (this.#process.world.bug !== 'disk-old-copy-believed') return;
    for (const { granules } of this.disks.blocks) {
      const fill = Object.getPrototypeOf(granules).fill as () => void;
      granules.fill = held === undefined ? fill : () => {};
    }
  }

  /** The guest's request in `slot` is given to its disk. */
  submit(slot: number, op: number, serial: number): void {
    const { first, end } = this.#guest.rangeOf(slot);
    const disk = Math.floor(first / DISK_BLOCKS);
    const data = this.#data;
    if (op === SLOT_OP.write) {
      const { incarnation, counter } = this.#guest;
      for (let block = first; block < end; block++) {
        const at = ((block - first) * BLOCK_BYTES) / 4;
        data[at] = incarnation;
        data[at + 1] = counter;
        data[at + 2] = serial;
        data[at + 3] = blockSignature(incarnation, block, serial);
      }
      const bytes = new Uint8Array(data.buffer);
      this.#memory.write(slot * SLOT_BYTES, bytes, 0, (end - first) * BLOCK_BYTES);
    }
    this.#addresses[0] = slot * SLOT_BYTES;
    const length = (end - first) * BLOCK_BYTES;
    this.#lengths[0] = length;
    const block = this.disks.blocks[disk]!;
    const segments = op === SLOT_OP.write ? 1 : 0;
    const offset = op === SLOT_OP.flush ? 0 : (first % DISK_BLOCKS) * BLOCK_BYTES;
    block.queue(slot, OPS[op]!, offset, length, this.#addresses, this.#lengths, 0, segments);
    block.submit();
    this.#process.world.schedule.unsettled = true;
  }

  /** Sections with what `epoch` carries. */
  sections(epoch: number): Uint8Array[] {
    const parts: Uint8Array[] = [];
    const { log } = this.disks;
    log.beginEncoding(epoch);
    for (let end = log.encode(this.#part); end > 0; end = log.encode(this.#part)) {
      parts.push(this.#part.slice(0, end));
    }
    return parts;
  }

  // --- the first copy

  /**
   * Copies the disks; `memory` copies memory in between.
   * @param memory is called once; resolves to false when the copy is not wanted any more
   * @param done everything is copied
   */
  async copy(
    sync: number,
    generation: number,
    memory: () => Promise<void>,
    done: () => void,
  ): Promise<void> {
    const { schedule } = this.#process.world;
    const owner = this.#owner;
    const bytes = new Uint8Array(CHUNK_BYTES);
    let used = 0;
    const pool: CopyPool = {
      take: () => 0,
      bytes: () => bytes,
      fill: (_, end) => {
        used = end;
      },
      release: () => {},
      onFree: (callback) => callback(),
    };
    const parts: DiskCopyParts = {
      pool,
      crc,
      isZero: (b, offset, length) => b.subarray(offset, offset + length).every((x) => x === 0),
      nowNs: () => this.#process.now,
      sleep: (ms) => this.#sleep(ms),
      maxDowntimeNs: 1,
      bytesPerSecondMax: Number.POSITIVE_INFINITY,
    };
    const wanted = (): boolean => owner.wanted(sync);
    const copyOwner: DiskCopyOwner = {
      wanted,
      chunk: () => owner.copied(sync, bytes.slice(0, used)),
    };
    schedule.unsettled = true;
    try {
      const copy = await this.disks.beginCopy(parts, copyOwner, { vm: VM, generation });
      if (!wanted() || copy === undefined || !(await copy.converge()) || !wanted()) return;
      await memory();
      if (this.#process.world.bug === 'disk-copy-cut-short') {
        for (const block of this.disks.blocks) block.setMode('record');
        done();
        return;
      }
      if (!wanted() || !(await copy.converge()) || !(await copy.finish()) || !wanted()) return;
      this.disks.endCopy();
      done();
    } catch (error) {
      this.#process.world.failed(this.#process.host, error);
      owner.unreadable(sync);
    }
  }
}
