/**
 * A decorator in front of a disk of which the standby has a copy of its own. Writes go to this host's disk at once; what they
 * write is noted for the standby: as data in the log (`record`), or as granules that differ (`track`). The guest waits for the
 * standby only when the log is full. Reads and flushes pass.
 *
 * The data is copied when the guest hands the write over, and the write counts as done when the disk says so: what a
 * checkpoint has as outstanding is popped again at a takeover, what it has as completed is in its epoch or an earlier one.
 * Writes that overlap one in flight wait for it, so that both copies see them in one order.
 *
 * With an activity log a write waits until that covers it, whatever becomes of it otherwise. A survivor also marks everything that
 * it writes since its takeover.
 */
import { assert } from '../../base/assert.ts';
import {
  BLOCK_OP,
  type BlockBackend,
  type BlockHandler,
  type BlockInfo,
  type BlockOp,
  ERRNO,
} from '../../block/backend.ts';
import { KeptRequests } from '../../block/kept-requests.ts';
import type { GuestMemory } from '../../memory/guest-memory.ts';
import type { ActivityLog } from './activity-log.ts';
import { DISK_WRITE_BYTES_MAX, type DiskLog } from './disk-log.ts';
import { Granules } from './granules.ts';

/** What becomes of a write besides going to the disk. */
export type Recording = 'off' | 'track' | 'record';

const NO_SLOT = -1;
/** What a tag is here. */
const PASSED = 0;
const WRITING = 1;
const WAITING = 2;

/** See the module's head. */
export class RecordingBlock implements BlockBackend {
  readonly info: BlockInfo;
  /** What the standby's copy lacks, in `track`; in `record` only what the disk refused half-way. */
  readonly granules: Granules;
  /** What was written since this host took the guest over with a copy of its own; undefined where it did not. */
  since: Granules | undefined;
  #activity: ActivityLog | undefined;
  readonly #inner: BlockBackend;
  readonly #memory: GuestMemory;
  readonly #log: DiskLog;
  readonly #disk: number;
  readonly #onWait: () => void;
  #mode: Recording = 'off';
  readonly #state: Uint8Array;
  readonly #slot: Int32Array;
  /** What each changing request does; with its segments, if it waits. */
  readonly #kept: KeptRequests;
  /** Tags of changing requests at the disk, unordered; and of those that wait, in order. */
  readonly #writing: Uint32Array;
  #writingCount = 0;
  readonly #waiting: Uint32Array;
  #waitingCount = 0;
  #unrecorded = 0;
  #drained: (() => void) | undefined;

  /**
   * @param disk its number among the guest's disks
   * @param onWait a write waits for room in the log: a checkpoint would make some
   * @param granuleBytes of {@link granules}
   */
  constructor(
    inner: BlockBackend,
    memory: GuestMemory,
    log: DiskLog,
    disk: number,
    onWait: () => void,
    granuleBytes?: number,
  ) {
    this.#inner = inner;
    this.#memory = memory;
    this.#log = log;
    this.#disk = disk;
    this.#onWait = onWait;
    const { maxTransferBytes, maxRequests, sizeBytes } = inner.info;
    this.info = {
      ...inner.info,
      maxTransferBytes: Math.min(maxTransferBytes, DISK_WRITE_BYTES_MAX),
    };
    this.granules = new Granules(sizeBytes, granuleBytes);
    this.#state = new Uint8Array(maxRequests);
    this.#slot = new Int32Array(maxRequests).fill(NO_SLOT);
    this.#kept = new KeptRequests(maxRequests);
    this.#writing = new Uint32Array(maxRequests);
    this.#waiting = new Uint32Array(maxRequests);
  }

  get mode(): Recording {
    return this.#mode;
  }

  /** Where this host's image may differ from the standby's, if it has such a log. */
  get activity(): ActivityLog | undefined {
    return this.#activity;
  }

  /** Sets it, once. Duty: no write has been recorded before. */
  setActivity(activity: ActivityLog): void {
    this.#activity = activity;
    activity.onRoom = () => this.#retry();
    activity.onWait = () => this.#onWait();
  }

  /** A write that was recorded is acknowledged, or nobody waits for that any more. */
  released(offset: number, length: number): void {
    this.#activity?.end(offset, length);
  }

  /** Changes what becomes of writes from now on. Those in flight are marked in {@link granules} when they are done. */
  setMode(mode: Recording): void {
    this.#mode = mode;
    if (mode !== 'record') this.#retry();
  }

  /** Writes in flight whose data is not in the log: they will be marked when they are done. */
  get unrecorded(): number {
    return this.#unrecorded;
  }

  /** Writes that wait for room in the log. */
  get waiting(): number {
    return this.#waitingCount;
  }

  get inFlight(): number {
    return this.#inner.inFlight + this.#waitingCount;
  }

  setHandler(handler: BlockHandler): void {
    this.#inner.setHandler({
      complete: (tag, result) => {
        if (this.#state[tag] === WRITING) this.#written(tag, result);
        handler.complete(tag, result);
      },
      batchEnd: () => {
        handler.batchEnd();
        this.#retry();
        this.#checkDrained();
      },
    });
  }

  queue(
    tag: number,
    op: BlockOp,
    offsetBytes: number,
    lengthBytes: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void {
    if (op === BLOCK_OP.read || op === BLOCK_OP.flush) {
      this.#inner.queue(tag, op, offsetBytes, lengthBytes, addresses, lengths, first, count);
      return;
    }
    assert(
      this.#mode === 'off' || this.#state[tag] === PASSED,
      'a tag in flight is not queued again',
    );
    // A discard may do nothing at one disk and clear at the other: clearing is the same on both.
    const clears = op === BLOCK_OP.discard && this.#mode !== 'off';
    const same = clears ? BLOCK_OP.writeZeroesUnmap : op;
    this.#kept.note(tag, same, offsetBytes, lengthBytes);
    let slot = NO_SLOT;
    let goes = this.#waitingCount === 0 && this.#admits(tag);
    if (goes && this.#mode === 'record') {
      slot = this.#overlaps(tag) ? NO_SLOT : this.#take(tag);
      goes = slot !== NO_SLOT;
    }
    if (!goes) {
      this.#keep(tag, addresses, lengths, first, count);
      return;
    }
    if (slot !== NO_SLOT) this.#copy(tag, slot, addresses, lengths, first, count);
    // Even with nothing to note now, a write must be known when the mode changes while it is in flight.
    this.#begin(tag, slot);
    this.#inner.queue(tag, same, offsetBytes, lengthBytes, addresses, lengths, first, count);
  }

  submit(): void {
    this.#inner.submit();
  }

  poll(): number {
    return this.#inner.poll();
  }

  drain(done: () => void): void {
    this.#drained = done;
    this.#checkDrained();
  }

  abandon(): void {
    this.#inner.abandon?.();
  }

  setLeaseDeadlineNs(deadlineNs: number): void {
    this.#inner.setLeaseDeadlineNs?.(deadlineNs);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  /** Room has come back in the log. */
  roomCame(): void {
    this.#retry();
  }

  /** Whether the write of `tag` overlaps one at the disk. */
  #overlaps(tag: number): boolean {
    const from = this.#kept.offset[tag]!;
    const to = from + this.#kept.length[tag]!;
    for (let i = 0; i < this.#writingCount; i++) {
      const other = this.#writing[i]!;
      const start = this.#kept.offset[other]!;
      if (from < start + this.#kept.length[other]! && start < to) return true;
    }
    return false;
  }

  #admits(tag: number): boolean {
    const activity = this.#activity;
    return (
      activity === undefined || activity.admits(this.#kept.offset[tag]!, this.#kept.length[tag]!)
    );
  }

  #take(tag: number): number {
    const slot = this.#log.take(
      this.#disk,
      this.#kept.op[tag]!,
      this.#kept.offset[tag]!,
      this.#kept.length[tag]!,
    );
    if (slot === NO_SLOT) this.#onWait();
    return slot;
  }

  #begin(tag: number, slot: number): void {
    this.#state[tag] = WRITING;
    this.#slot[tag] = slot;
    this.#writing[this.#writingCount++] = tag;
    if (slot === NO_SLOT) this.#unrecorded++;
    else this.#activity?.begin(this.#kept.offset[tag]!, this.#kept.length[tag]!);
  }

  #copy(
    tag: number,
    slot: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void {
    if (this.#kept.op[tag] !== BLOCK_OP.write) return;
    let at = 0;
    for (let i = first; i < first + count; i++) {
      const address = addresses[i]!;
      const length = lengths[i]!;
      // What is not memory fails at the disk too, and nothing of it is kept then.
      if (this.#memory.contains(address, length)) {
        this.#log.fill(slot, at, length, (from, into, offset, n) =>
          this.#memory.read(address + from, into, offset, n),
        );
      }
      at += length;
    }
  }

  #keep(
    tag: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void {
    this.#kept.keepSegments(tag, addresses, lengths, first, count);
    this.#state[tag] = WAITING;
    this.#waiting[this.#waitingCount++] = tag;
  }

  #written(tag: number, result: number): void {
    this.#state[tag] = PASSED;
    for (let i = 0; i < this.#writingCount; i++) {
      if (this.#writing[i] !== tag) continue;
      this.#writing[i] = this.#writing[--this.#writingCount]!;
      break;
    }
    const slot = this.#slot[tag]!;
    const offset = this.#kept.offset[tag]!;
    const length = this.#kept.length[tag]!;
    const failed = result !== ERRNO.OK;
    if (failed) this.#activity?.failed(offset, length);
    if (slot === NO_SLOT) this.#unrecorded--;
    else if (failed || this.#mode !== 'record') {
      this.#log.drop(slot);
      this.#activity?.end(offset, length);
    } else this.#log.done(slot);
    // A write that failed half-way, or that the log does not carry.
    if (this.#mode !== 'off' && (slot === NO_SLOT || failed || this.#mode !== 'record')) {
      this.granules.mark(offset, length);
    }
    this.since?.mark(offset, length);
  }

  /** Lets waiting writes go, in order, as far as there is room. */
  #retry(): void {
    let gone = 0;
    while (gone < this.#waitingCount) {
      const tag = this.#waiting[gone]!;
      let slot = NO_SLOT;
      if (!this.#admits(tag)) break;
      if (this.#mode === 'record') {
        slot = this.#overlaps(tag) ? NO_SLOT : this.#take(tag);
        if (slot === NO_SLOT) break;
        const kept = this.#kept;
        this.#copy(tag, slot, kept.addresses(tag), kept.lengths(tag), 0, kept.count[tag]!);
      }
      gone++;
      this.#begin(tag, slot);
      this.#kept.queueAt(this.#inner, tag);
    }
    if (gone === 0) return;
    this.#waiting.copyWithin(0, gone, this.#waitingCount);
    this.#waitingCount -= gone;
    this.#inner.submit();
  }

  #checkDrained(): void {
    if (this.#drained === undefined || this.inFlight > 0) return;
    const done = this.#drained;
    this.#drained = undefined;
    done();
  }
}
