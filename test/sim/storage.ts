/**
 * The storage of one simulated host: the images of the guest's replicated disks and the record beside each, with a volatile cache.
 * What is written stays when a process dies; when the host dies, each sector written since the last flush is kept or lost on its
 * own. Requests take a while, may fail (EIO), find no room (ENOSPC), and end in any order. Every request is a step at which
 * its process may die; one in flight then has reached the cache, or half of it has, or nothing.
 */
import type { Prng } from '../../src/base/prng.ts';
import {
  BLOCK_OP,
  type BlockBackend,
  type BlockHandler,
  type BlockInfo,
  type BlockOp,
  ERRNO,
} from '../../src/block/backend.ts';
import { DiskAccess, type HoleMap, SCRATCH_BYTES } from '../../src/ft/disk/disk-access.ts';
import type { LogFile } from '../../src/ft/disk/log-file.ts';
import type { Room } from '../../src/ft/disk/replica-disks.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import { BLOCK_BYTES, BLOCKS, DISK_BLOCKS, DISKS } from './guest.ts';
import type { SimProcess } from './process.ts';
import type { World } from './world.ts';

/** What one write changed, until it is durable. */
interface Unsynced {
  readonly number: number;
  readonly at: number;
  readonly old: Uint8Array;
}

/** Bytes behind a volatile cache. */
class Medium {
  bytes: Uint8Array;
  /** Of the last write. */
  number = 0;
  #unsynced: Unsynced[] = [];

  constructor(bytes: number) {
    this.bytes = new Uint8Array(bytes);
  }

  write(at: number, data: Uint8Array): void {
    const end = at + data.length;
    if (end > this.bytes.length) {
      const grown = new Uint8Array(end);
      grown.set(this.bytes);
      this.bytes = grown;
    }
    this.#unsynced.push({ number: ++this.number, at, old: this.bytes.slice(at, end) });
    this.bytes.set(data, at);
  }

  /** A flush that began behind write `number` is done. */
  sync(number: number): void {
    this.#unsynced = this.#unsynced.filter((write) => write.number > number);
  }

  /** The power goes: of each sector that is not durable, the newest writes are lost, any number of them. */
  powerLoss(prng: Prng): void {
    const lost = prng.pick([0, 0.5, 1]);
    const kept = new Set<number>();
    for (const { at, old } of this.#unsynced.reverse()) {
      for (let i = 0; i < old.length; i += BLOCK_BYTES) {
        if (kept.has(at + i)) continue;
        if (prng.chance(lost)) this.bytes.set(old.subarray(i, i + BLOCK_BYTES), at + i);
        else kept.add(at + i);
      }
    }
    this.#unsynced = [];
  }

  /** Nothing was ever written. */
  clear(): void {
    this.bytes.fill(0);
    this.#unsynced = [];
  }
}

interface Pending {
  readonly process: SimProcess;
  readonly land: (part: number) => void;
  over: boolean;
}

/** Scratch memories of all accesses of a world; they are large, and nothing in them outlives an access. */
const scratches: GuestMemory[] = [];

/** See the module's head. */
export class HostStorage {
  readonly #world: World;
  readonly #images: readonly Medium[];
  readonly #records: readonly Medium[];
  readonly #activities: readonly Medium[];
  /** Blocks of the images that have room of their own, and those that are no holes, by number of the guest's block. */
  readonly #room = new Uint8Array(BLOCKS);
  readonly #data = new Uint8Array(BLOCKS);
  #pending: Pending[] = [];
  /** Chance that a request fails. */
  failing = 0;
  /** Whether there is no room left for blocks that have none. */
  full = false;
  latency = 30;

  constructor(world: World) {
    this.#world = world;
    const disks = Array.from({ length: DISKS });
    this.#images = disks.map(() => new Medium(DISK_BLOCKS * BLOCK_BYTES));
    this.#records = disks.map(() => new Medium(0));
    this.#activities = disks.map(() => new Medium(0));
  }

  /** New, empty images, and no records. */
  clear(): void {
    for (const medium of this.#all) medium.clear();
    this.#room.fill(0);
    this.#data.fill(0);
  }

  /** A process has died; `host`: with the whole host. */
  died(process: SimProcess, host: boolean): void {
    const { prng } = this.#world;
    for (const pending of this.#pending) {
      if (pending.process !== process) continue;
      pending.over = true;
      pending.land(prng.pick([0, 0.5, 1]));
    }
    this.#pending = this.#pending.filter(({ over }) => !over);
    if (!host) return;
    for (const medium of this.#all) medium.powerLoss(prng);
    // A hole that was made and lost again is none.
    for (let block = 0; block < BLOCKS; block++) {
      if (this.words(block, 0) === 0) continue;
      this.#room[block] = 1;
      this.#data[block] = 1;
    }
  }

  get #all(): Medium[] {
    return [...this.#images, ...this.#records, ...this.#activities];
  }

  /** What the images hold, by block. */
  words(block: number, word: number): number {
    const { bytes } = this.#images[Math.floor(block / DISK_BLOCKS)]!;
    const at = (block % DISK_BLOCKS) * BLOCK_BYTES + word * 4;
    return (
      (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0
    );
  }

  /**
   * A request of `process`.
   * @param land does a part of it, from 0 to 1
   * @param ended hears how it ended
   * @param writes whether it needs room of its own, which there may not be
   */
  begin(
    process: SimProcess,
    land: (part: number) => void,
    ended: (result: number) => void,
    hasRoom: () => boolean = () => true,
  ): void {
    const world = this.#world;
    const { schedule, prng } = world;
    const pending: Pending = { process, land, over: false };
    this.#pending.push(pending);
    schedule.after(2 + prng.below(this.latency), () => {
      if (pending.over || world.mayDieHere(process)) return;
      pending.over = true;
      this.#pending.splice(this.#pending.indexOf(pending), 1);
      let result: number = ERRNO.OK;
      if (!hasRoom()) result = ERRNO.ENOSPC;
      else if (this.failing > 0 && prng.chance(this.failing)) result = ERRNO.EIO;
      if (result === ERRNO.OK) land(1);
      else if (result === ERRNO.EIO) land(prng.pick([0, 0.5]));
      process.handle(() => {
        schedule.unsettled = true;
        ended(result);
      });
    });
  }

  /** The record beside the image of `disk`. */
  recordOf(process: SimProcess, disk: number): LogFile {
    return this.#fileOf(process, `record ${disk}`, this.#records[disk]!);
  }

  /** The activity log beside the image of `disk`. */
  activityOf(process: SimProcess, disk: number): LogFile {
    return this.#fileOf(process, `activity log ${disk}`, this.#activities[disk]!);
  }

  /** There is no activity log any more. */
  voidActivity(disk: number): void {
    this.#activities[disk]!.clear();
  }

  /** Makes the image of `disk` durable. */
  flushOf(process: SimProcess, disk: number): Promise<void> {
    return this.#fileOf(process, `image ${disk}`, this.#images[disk]!).sync();
  }

  #fileOf(process: SimProcess, name: string, medium: Medium): LogFile {
    const request = <T>(land: (part: number) => void, result: () => T): Promise<T> =>
      new Promise((resolve, reject) => {
        this.begin(process, land, (code) => {
          if (code === ERRNO.OK) resolve(result());
          else reject(new Error(`${name}: error ${code}`));
        });
      });
    return {
      name,
      get sizeBytes() {
        return medium.bytes.length;
      },
      read: (at, length) =>
        request(
          () => {},
          () => medium.bytes.slice(at, at + length),
        ),
      write: (at, bytes) =>
        request(
          (part) => medium.write(at, bytes.subarray(0, Math.floor(bytes.length * part))),
          () => undefined,
        ),
      sync: () => {
        const { number } = medium;
        return request(
          (part) => {
            if (part === 1) medium.sync(number);
          },
          () => undefined,
        );
      },
      close: async () => {},
    };
  }

  /** Takes room for data of `disk` before it is promised. */
  roomOf(disk: number): Room {
    const each = (offset: number, length: number, run: (block: number) => void): void => {
      const first = disk * DISK_BLOCKS + offset / BLOCK_BYTES;
      for (let block = first; block < first + length / BLOCK_BYTES; block++) run(block);
    };
    return {
      ensure: (offset, length) =>
        each(offset, length, (block) => {
          if (this.full && this.#room[block] === 0) throw new Error('no room is left');
          this.#room[block] = 1;
        }),
      // What is given back is free as soon as the disk does it; nothing is remembered here.
      forget: () => {},
      close: () => {},
    };
  }

  /** A second way to `disk`. */
  accessOf(process: SimProcess, disk: number): DiskAccess {
    const memory = this.#world.scratch++;
    scratches[memory] ??= new GuestMemory([{ base: 0, buffer: new ArrayBuffer(SCRATCH_BYTES) }]);
    const scratch = scratches[memory];
    return new DiskAccess(this.backendOf(process, disk, scratch), scratch, this.#holesOf(disk));
  }

  #holesOf(disk: number): HoleMap {
    const next = (offset: number, data: boolean): number => {
      let block = Math.floor(offset / BLOCK_BYTES);
      const is = (): boolean => this.#data[disk * DISK_BLOCKS + block] === (data ? 1 : 0);
      while (block < DISK_BLOCKS && !is()) block++;
      return Math.max(offset, block * BLOCK_BYTES);
    };
    return { nextData: (at) => next(at, true), nextHole: (at) => next(at, false) };
  }

  backendOf(process: SimProcess, disk: number, memory: GuestMemory): SimBlock {
    return new SimBlock(this, process, disk, memory, this.#images[disk]!, this.#room, this.#data);
  }
}

const REQUESTS = 16;

/** An image as its process has it open. */
class SimBlock implements BlockBackend {
  readonly info: BlockInfo = {
    name: 'image',
    sizeBytes: DISK_BLOCKS * BLOCK_BYTES,
    blockSizeBytes: BLOCK_BYTES,
    physicalBlockSizeBytes: BLOCK_BYTES,
    readonly: false,
    volatileCache: true,
    discard: true,
    writeZeroes: true,
    maxRequests: REQUESTS,
    maxSegments: 4,
    maxTransferBytes: 2 ** 20,
  };
  inFlight = 0;
  readonly #storage: HostStorage;
  readonly #process: SimProcess;
  readonly #disk: number;
  readonly #memory: GuestMemory;
  readonly #medium: Medium;
  readonly #room: Uint8Array;
  readonly #data: Uint8Array;
  #handler: BlockHandler | undefined;
  #drained: (() => void) | undefined;

  constructor(
    storage: HostStorage,
    process: SimProcess,
    disk: number,
    memory: GuestMemory,
    medium: Medium,
    room: Uint8Array,
    data: Uint8Array,
  ) {
    this.#storage = storage;
    this.#process = process;
    this.#disk = disk;
    this.#memory = memory;
    this.#medium = medium;
    this.#room = room;
    this.#data = data;
  }

  setHandler(handler: BlockHandler): void {
    this.#handler = handler;
  }

  queue(
    tag: number,
    op: BlockOp,
    offset: number,
    length: number,
    addresses: Float64Array,
    _lengths: Uint32Array,
    first: number,
  ): void {
    this.inFlight++;
    const address = addresses[first] ?? 0;
    const block = this.#disk * DISK_BLOCKS + offset / BLOCK_BYTES;
    const blocks = length / BLOCK_BYTES;
    const hasRoom = (): boolean =>
      op !== BLOCK_OP.write ||
      !this.#storage.full ||
      !this.#room.subarray(block, block + blocks).includes(0);
    const ended = (result: number): void => {
      this.inFlight--;
      this.#handler!.complete(tag, result);
      this.#handler!.batchEnd();
      if (this.inFlight > 0) return;
      const done = this.#drained;
      this.#drained = undefined;
      done?.();
    };
    const { number } = this.#medium;
    const land = (part: number): void => {
      if (op !== BLOCK_OP.flush) this.#land(op, offset, length, address, block, part);
      else if (part === 1) this.#medium.sync(number);
    };
    this.#storage.begin(this.#process, land, ended, hasRoom);
  }

  #land(
    op: BlockOp,
    offset: number,
    length: number,
    address: number,
    block: number,
    part: number,
  ): void {
    const done = Math.floor((length / BLOCK_BYTES) * part);
    if (done === 0) return;
    const bytes = done * BLOCK_BYTES;
    if (op === BLOCK_OP.read) {
      this.#memory.write(address, this.#medium.bytes, offset, bytes);
    } else if (op === BLOCK_OP.write) {
      const data = new Uint8Array(bytes);
      this.#memory.read(address, data, 0, bytes);
      this.#medium.write(offset, data);
      this.#room.fill(1, block, block + done);
      this.#data.fill(1, block, block + done);
    } else if (op !== BLOCK_OP.discard) {
      // A discard is a hint, and this disk does not take it.
      this.#medium.write(offset, new Uint8Array(bytes));
      if (op !== BLOCK_OP.writeZeroesUnmap) return;
      this.#room.fill(0, block, block + done);
      this.#data.fill(0, block, block + done);
    }
  }

  submit(): void {}

  poll(): number {
    return 0;
  }

  drain(done: () => void): void {
    if (this.inFlight === 0) done();
    else this.#drained = done;
  }

  async close(): Promise<void> {}
}
