/**
 * The standby's side of replicated disks: takes the pieces of the first copy as they come, checks what an epoch does to the disks
 * before it is acknowledged, and does it afterwards: first durably in the journals, then to the images. Everything that
 * touches a disk happens one behind the other; a failure stops what follows and is reported once.
 */
import { messageOf } from '../../base/error.ts';
import { type BlockOp, ERRNO } from '../../block/backend.ts';
import { DISK_OP, DiskOpsReader } from '../wire/disk-ops.ts';
import { FAULT, type Fault, fault } from '../wire/fault.ts';
import { layBase } from './base-image.ts';
import { type DiskAccess, diskError, PIECE_BYTES } from './disk-access.ts';
import type { Crc } from './disk-log.ts';
import { IMAGE, type ImageState, type ReplicaRecord } from './replica-record.ts';
import type { HeldCopy, ReturnedCopy } from './storage.ts';

/** Copy pieces that wait for the disk; beyond, nothing more is read from the connection. */
const QUEUED_BYTES_MAX = 16 * 2 ** 20;
/** Bytes of a first copy from one flush to the next, so that the last one, for which outputs wait, is short. */
const FLUSH_BYTES = 256 * 2 ** 20;

/** Takes room for data before it is promised. */
export interface Room {
  /** @throws VmmError `DISK_FULL` */
  ensure(offset: number, length: number): void;
  /** Room that was given back. */
  forget(offset: number, length: number): void;
  close(): void;
}

/** One disk of which the standby holds a copy. */
export interface ReplicaDisk {
  /** Its number among the guest's disks. */
  readonly disk: number;
  readonly id: string;
  readonly access: DiskAccess;
  readonly record: ReplicaRecord;
  readonly room: Room | undefined;
  readonly blockSizeBytes: number;
  /** What a first copy begins with, where both hosts have the same; undefined: with nothing. */
  readonly base?: DiskAccess | undefined;
  /** Does away with the activity log beside the image, durably: it says nothing of the image any more. @throws VmmError `DISK_LOG` */
  voidActivity?(): void;
}

/** What one section of an epoch does to one disk; `bytes[start, end)` stays as it is. */
export interface DiskOps {
  readonly disk: number;
  readonly bytes: Uint8Array;
  readonly start: number;
  readonly end: number;
}

/** An epoch that was acknowledged and has not been done as a whole. */
interface Unapplied {
  readonly id: number;
  readonly all: readonly DiskOps[];
  /** Whether it is in all journals. */
  journalled: boolean;
}

/** Who is told. */
export interface ReplicaEvents {
  /** Stop or go on reading from the connection. */
  flow(pause: boolean): void;
  /** A disk refuses: the copy is of no use as it is, or falls behind. One sentence for a person. */
  failed(sentence: string): void;
}

/** See the module's head. */
export class ReplicaDisks {
  readonly #disks: ReadonlyMap<number, ReplicaDisk>;
  readonly #vm: string;
  readonly #crc: Crc;
  readonly #reader = new DiskOpsReader();
  #events: ReplicaEvents = { flow: () => {}, failed: () => {} };
  /** What has been begun, one job behind the other. */
  #chain: Promise<void> = Promise.resolve();
  #queuedBytes = 0;
  #paused = false;
  /** First copies whose base is to be laid, or is being laid. */
  #laying = 0;
  #unflushedBytes = 0;
  #failure = '';
  /** Counts first copies: what was queued for an earlier one is dropped. */
  #run = 0;
  #generation = 0;
  /** The last epoch that did something to the images. */
  #lastId = 0;
  #copying = false;
  #held: boolean;
  /** The images are those of a primary that was lost; until a copy is complete, or one begins that does not build on that. */
  #returned: ReturnedCopy | undefined;
  /** Epochs that an image, or a journal, did not take, in order. */
  #unapplied: Unapplied[] = [];
  /** An epoch is not in all journals, so that none may come behind it: a recovery would do that one alone. */
  #gap = false;
  #closed = false;

  /**
   * @param vm which guest; 16 bytes in hexadecimal
   * @param held what the images hold already, if anything
   * @param returned what they are where this host was the primary that was lost
   */
  constructor(
    disks: readonly ReplicaDisk[],
    vm: string,
    crc: Crc,
    held?: HeldCopy,
    returned?: ReturnedCopy,
  ) {
    this.#returned = returned;
    this.#held = held !== undefined;
    this.#generation = held?.generation ?? 0;
    this.#lastId = held?.id ?? 0;
    this.#disks = new Map(disks.map((disk) => [disk.disk, disk]));
    this.#vm = vm;
    this.#crc = crc;
  }

  setEvents(events: ReplicaEvents): void {
    this.#events = events;
  }

  /** What the images hold, at least; undefined while that is nothing whole. */
  get held(): HeldCopy | undefined {
    if (!this.#held || this.#copying || this.#failure !== '') return undefined;
    return { generation: this.#generation, id: this.#lastId };
  }

  /** What the images are, where this host was the primary that was lost and is not yet a standby again. */
  get returned(): ReturnedCopy | undefined {
    return this.#returned;
  }

  /** Whether there are any. */
  get any(): boolean {
    return this.#disks.size > 0;
  }

  /** What is wrong with a disk, or ''. */
  get failure(): string {
    return this.#failure;
  }

  /** Bytes of the first copy that wait for the disk. */
  get queuedBytes(): number {
    return this.#queuedBytes;
  }

  // --- the first copy

  /**
   * A first copy begins: the images are of no use until it is complete.
   * @param told whether the primary was told that the copies here are whole: it then sends what they lack, and else, where both
   * hosts have the base image, what differs from that
   * @param toldReturned whether it was told what {@link returned} says, and may build on that
   */
  reset(generation: number, told: boolean, toldReturned = false): void {
    const lost = toldReturned ? this.#returned === undefined : told && this.held === undefined;
    if (!toldReturned) this.#returned = undefined;
    this.#run++;
    this.#failure = '';
    this.#unapplied = [];
    this.#generation = generation;
    this.#copying = this.any;
    this.#held = false;
    if (!this.any) return;
    if (lost) this.#fail('the copies of the disks are not any more what the primary was told');
    const run = this.#run;
    // While a base is laid the primary had better not believe that its copy is here: it would wait for the first ACK.
    const builds = told || toldReturned;
    const lays =
      !builds && [...this.#disks.values()].some(({ base }) => base !== undefined) ? 1 : 0;
    this.#laying += lays;
    this.#flow();
    const job = async (): Promise<void> => {
      if (run !== this.#run) return;
      // What a copy puts over an image that it does not build on is in no log. One that it builds on stays what it is: the copy
      // writes only where the survivor, too, knows that they may differ.
      if (!toldReturned) this.#voidActivity();
      await this.#markAll(IMAGE.copying, 0);
      // What was queued before is through, and the journals are void.
      this.#gap = false;
      for (const { access, base } of this.#disks.values()) {
        // A copy that the primary knows of is brought up to date, or written over as a whole.
        if (base !== undefined && !builds) await layBase(access, base, () => run === this.#run);
      }
    };
    this.#queue(job, false, () => {
      this.#laying -= lays;
      this.#flow();
    });
  }

  /** The connection is gone: a first copy that is not complete begins anew, and nothing more is done for this one. */
  cutOff(): void {
    if (this.#copying) this.#run++;
  }

  /** A piece of the first copy. @returns what is wrong with it */
  copy(ops: DiskOps): Fault | undefined {
    const wrong = this.check(ops, false);
    if (wrong !== undefined) return wrong;
    const { disk, start, end } = ops;
    const bytes = ops.bytes.slice(start, end);
    const run = this.#run;
    this.#queuedBytes += bytes.length;
    this.#flow();
    const job = async (): Promise<void> => {
      if (run !== this.#run) return;
      await this.#perform({ disk, bytes, start: 0, end: bytes.length });
      this.#unflushedBytes += bytes.length;
      if (this.#unflushedBytes < FLUSH_BYTES) return;
      this.#unflushedBytes = 0;
      for (const { access } of this.#disks.values()) {
        await access.idle();
        await access.flush();
      }
    };
    this.#queue(job, false, () => {
      this.#queuedBytes -= bytes.length;
      this.#flow();
    });
    return undefined;
  }

  /**
   * Whether the images are complete: at once after the first time, else when everything that came is durable.
   * @param id the transaction under which the first copy came
   * @returns undefined when they are; else a promise of what is wrong
   */
  complete(id: number): Promise<Fault | undefined> | undefined {
    if (!this.#copying) return undefined;
    const run = this.#run;
    return this.#queue(async () => {
      for (const { access } of this.#disks.values()) {
        await access.idle();
        await access.flush();
      }
      if (run !== this.#run || this.#failure !== '') return;
      // What transaction `id` itself does comes behind the copy.
      await this.#markAll(IMAGE.replica, id - 1);
      // Another copy may have begun meanwhile; its job, behind this one, marks the images again.
      if (run !== this.#run) return;
      this.#voidActivity();
      this.#lastId = id - 1;
      this.#held = true;
      this.#copying = false;
    }).then(() =>
      this.#failure === '' ? undefined : fault(FAULT.RESOURCE_MISSING, this.#failure),
    );
  }

  // --- epochs

  /**
   * Checks operations and takes the room that they need, before they are acknowledged.
   * @returns what is wrong with them
   */
  check(ops: DiskOps, takeRoom: boolean): Fault | undefined {
    const target = this.#disks.get(ops.disk);
    if (target === undefined) return fault(FAULT.SECTION_MALFORMED, `no copy of disk ${ops.disk}`);
    const { sizeBytes } = target.access;
    const r = this.#reader.reset(ops.bytes, ops.start, ops.end);
    while (r.next()) {
      const { op, offset, length } = r;
      const block = target.blockSizeBytes;
      if (offset + length > sizeBytes || offset % block !== 0 || length % block !== 0) {
        return fault(FAULT.SECTION_MALFORMED, `disk ${target.id}: ${length} bytes at ${offset}`);
      }
      if (op !== DISK_OP.write) continue;
      if (length > PIECE_BYTES) return fault(FAULT.SECTION_MALFORMED, `${length} bytes at once`);
      if (this.#crc(ops.bytes, r.dataStart, length, 0) !== r.crc) {
        return fault(FAULT.PAYLOAD_CHECKSUM, `disk ${target.id}, ${length} bytes at ${offset}`);
      }
      if (!takeRoom) continue;
      try {
        target.room?.ensure(offset, length);
      } catch (error) {
        return fault(FAULT.RESOURCE_MISSING, messageOf(error));
      }
    }
    return r.malformed ? fault(FAULT.SECTION_MALFORMED, 'disk operations') : undefined;
  }

  /** Does what a checked and acknowledged epoch does; resolves when it is durable and in the images, or has failed. */
  apply(id: number, all: readonly DiskOps[]): Promise<void> {
    if (all.length === 0) return this.#chain;
    const epoch: Unapplied = { id, all, journalled: false };
    return this.#queue(async () => {
      try {
        if (this.#gap) throw new Error(this.#failure || 'an epoch before is not in the journal');
        this.#gap = true;
        await this.#journal(epoch);
        this.#gap = false;
        await this.#intoImages(epoch);
      } catch (error) {
        this.#unapplied.push(epoch);
        this.#fail(messageOf(error));
      }
    }, true);
  }

  /** Puts an epoch into all journals; those before it are there. */
  async #journal(epoch: Unapplied): Promise<void> {
    const parts = (disk: number): Uint8Array[] =>
      epoch.all.filter((o) => o.disk === disk).map((o) => o.bytes.subarray(o.start, o.end));
    const full = [...this.#disks.values()].some(
      ({ disk, record }) => !record.fits(parts(disk).reduce((sum, part) => sum + part.length, 0)),
    );
    if (full) {
      // What an image has not taken must stay in its journal.
      if (this.#failure !== '') throw new Error(this.#failure);
      for (const { access } of this.#disks.values()) await access.flush();
      await this.#markAll(IMAGE.replica, this.#lastId);
    }
    // Every disk's record, also an empty one, before any image is touched: one epoch for all of them.
    // All of them are over before anything else is done to a journal, also where one fails.
    const appended = await Promise.allSettled(
      [...this.#disks.values()].map(({ disk, record }) =>
        record.append(this.#generation, epoch.id, parts(disk)),
      ),
    );
    for (const one of appended) if (one.status === 'rejected') throw one.reason;
    epoch.journalled = true;
  }

  /** Does an epoch that all journals have. */
  async #intoImages({ id, all }: Unapplied): Promise<void> {
    for (const ops of all) await this.#perform(ops);
    for (const { access } of this.#disks.values()) await access.idle();
    if (this.#failure !== '') throw new Error(this.#failure);
    this.#lastId = id;
  }

  /**
   * Before a guest runs from the images: what could not be applied is tried once more, everything is made durable, and the
   * journals become void.
   * @throws VmmError `DISK_*` when an image still refuses
   */
  async goLive(generation: number): Promise<void> {
    await this.#chain;
    if (!this.any) return;
    this.#failure = '';
    for (const epoch of this.#unapplied) {
      // Also now: whoever dies half-way leaves images that the next start brings to a whole epoch.
      if (!epoch.journalled) await this.#journal(epoch);
      await this.#intoImages(epoch);
    }
    for (const { access } of this.#disks.values()) await access.flush();
    this.#unapplied = [];
    this.#generation = generation;
    this.#held = false;
    this.#voidActivity();
    await this.#markAll(IMAGE.live, 0);
    this.#gap = false;
  }

  /** Waits for what was begun, makes it durable, and gives everything back. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#run++;
    await this.#chain;
    for (const { access, record, room, base } of this.#disks.values()) {
      try {
        await access.idle();
        if (this.#failure === '') await access.flush();
      } finally {
        await access.close();
        await record.close();
        await base?.close();
        room?.close();
      }
    }
  }

  // --- inside

  /** Adds a job. After a failure only jobs that must run (`always`) are done. `after` follows in any case. */
  #queue(job: () => Promise<void>, always = false, after: () => void = () => {}): Promise<void> {
    const run = this.#run;
    this.#chain = this.#chain.then(async () => {
      try {
        if (always || this.#failure === '' || run !== this.#run) await job();
      } catch (error) {
        this.#fail(messageOf(error));
      } finally {
        after();
      }
    });
    return this.#chain;
  }

  #voidActivity(): void {
    this.#returned = undefined;
    for (const disk of this.#disks.values()) disk.voidActivity?.();
  }

  #fail(sentence: string): void {
    if (this.#failure !== '') return;
    this.#failure = sentence;
    this.#events.failed(sentence);
  }

  #flow(): void {
    const pause = this.#laying > 0 || this.#queuedBytes > QUEUED_BYTES_MAX;
    if (pause === this.#paused) return;
    this.#paused = pause;
    this.#events.flow(pause);
  }

  async #markAll(state: ImageState, id: number): Promise<void> {
    for (const { access, record } of this.#disks.values()) {
      await record.setMark({
        state,
        vm: this.#vm,
        generation: this.#generation,
        id,
        imageBytes: access.sizeBytes,
      });
    }
  }

  /** Begins all operations of one section, in order. Failures end in {@link failure}. */
  async #perform(ops: DiskOps): Promise<void> {
    const { access, room } = this.#disks.get(ops.disk)!;
    await performOps(access, ops, (what, result) => {
      if (result !== ERRNO.OK) this.#fail(diskError(what, access.name, result).message);
    });
    if (room === undefined) return;
    const r = new DiskOpsReader().reset(ops.bytes, ops.start, ops.end);
    while (r.next()) if (r.op !== DISK_OP.write) room.forget(r.offset, r.length);
  }
}

/** Begins operations on a disk, in order; `done` hears how each one ended. They are done when the disk is idle. */
export async function performOps(
  access: DiskAccess,
  ops: Omit<DiskOps, 'disk'>,
  done: (what: string, result: number) => void,
): Promise<void> {
  const r = new DiskOpsReader().reset(ops.bytes, ops.start, ops.end);
  while (r.next()) {
    const { op, offset, length, dataStart, dataEnd } = r;
    if (op === DISK_OP.write) {
      await access.write(offset, ops.bytes, dataStart, dataEnd, (result) =>
        done('writing to', result),
      );
    } else {
      // What the guest gave up reads as zeroes on both hosts, whatever a file system makes of a mere hint.
      const as = (op === DISK_OP.discard ? DISK_OP.writeZeroesUnmap : op) as BlockOp;
      await access.zero(as, offset, length, (result) => done('clearing a part of', result));
    }
  }
}
