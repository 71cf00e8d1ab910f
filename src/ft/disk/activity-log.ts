/**
 * Where a primary's image may differ from what its standby holds, so that a lost host need not be copied whole when it comes back:
 * extents of 1 MiB, durable in the file beside the image (activity-file.ts) *before* the first write to them goes to the disk.
 *
 * An extent is active from before a write to it until the standby has acknowledged that write *and* it is durable on this
 * host: what was acknowledged and lay in a cache when the power went is on the survivor's disk and not on this one. So the disk is
 * flushed now and then, and what is acknowledged and was not written since is retired.
 *
 *   void      the file claims nothing, writes go
 *   arming    the standby has everything: the disk is flushed, writes go and are noted
 *   starting  the first set is being written, writes wait
 *   sound     writes go where the durable set covers them; elsewhere they wait until it does
 *   voiding   the guest goes on without the standby: writes go where they are covered until the file claims nothing
 *
 * Nothing is allocated for a write that is covered. One for each disk; used by its RecordingBlock and by ReplicatedDisks.
 */
import { messageOf } from '../../base/error.ts';
import {
  type ActivityFile,
  type ActivityOwner,
  EXTENT_BYTES,
  EXTENTS_MAX,
} from './activity-file.ts';

/** From one flush of the primary's own disk to the next, while the guest writes. */
const FLUSH_MS = 2000;
/** From a try that failed to the next. */
const RETRY_MS = 1000;
/** The same while a write waits for room. */
const STARVED_MS = 20;
/** Extents in the log at most, so that a flush that retires some is begun before it is full. */
const EXTENTS_HIGH = Math.floor((3 * EXTENTS_MAX) / 4);
/** Tries to begin with a set that fits. */
const ARM_TRIES = 5;

/** What a disk's log is made with. */
export interface ActivityParts {
  /** Opens the file, making it if it is missing; when the log is first needed. */
  open(): Promise<ActivityFile>;
  /** Which image this is ({@link ActivityOwner}). */
  readonly image: number;
  /** Of an extent, other than {@link EXTENT_BYTES} only where small disks are simulated. */
  readonly extentBytes?: number;
  /** What was done on the image before is durable when this resolves. */
  flush(): Promise<void>;
  /** Waits; does not keep a process alive. */
  sleep(ms: number): Promise<void>;
  /** Something is wrong with the log: one sentence for a person. */
  warn(sentence: string): void;
  /** Nothing is flushed any more. */
  close(): void;
}

type State = 'void' | 'arming' | 'starting' | 'sound' | 'voiding';

/** What an extent is between flushes. */
const CLEAN = 0;
const WRITTEN = 1;
/** Acknowledged when the flush began that is under way, and not written since. */
const LEAVING = 2;
/** A write waits for it: not retired by the flush that comes next, or the write would wait again. */
const WANTED = 3;

/** See the module's head. */
export class ActivityLog {
  readonly #parts: ActivityParts;
  /** Of an extent. */
  readonly extentBytes: number;
  #file: ActivityFile | undefined;
  #state: State = 'void';
  #owner: ActivityOwner | undefined;
  /** By extent: writes that are not acknowledged, and {@link CLEAN} ... {@link WANTED}. */
  readonly #open: Uint16Array;
  readonly #written: Uint8Array;
  /** Where the disk has refused a write half-way: never the same again. */
  readonly #failed = new Set<number>();
  /** What the next change of the file names; and of that what is durable. */
  readonly #active = new Set<number>();
  readonly #durable = new Set<number>();
  /** Counts runs of the log: what was begun for an earlier one is dropped. */
  #run = 0;
  #changed = false;
  #pumping: Promise<void> | undefined;
  #flushing = false;
  #resting = false;
  /** A write waits for an extent for which there is no room. */
  #starved = false;
  #broken = false;
  #closed = false;
  /** Writes that waited may be tried again. */
  onRoom: () => void = () => {};
  /** A write waits until the standby has acknowledged others. */
  onWait: () => void = () => {};

  constructor(sizeBytes: number, parts: ActivityParts) {
    this.#parts = parts;
    this.extentBytes = parts.extentBytes ?? EXTENT_BYTES;
    const extents = Math.ceil(sizeBytes / this.extentBytes);
    this.#open = new Uint16Array(extents);
    this.#written = new Uint8Array(extents);
  }

  get state(): State {
    return this.#state;
  }

  /** Extents that the next change of the file names. */
  get active(): readonly number[] {
    return [...this.#active].sort((a, b) => a - b);
  }

  // --- writes

  /** Whether a write there may go to the disk now. If not, {@link onRoom} is called when it is worth another try. */
  admits(offset: number, length: number): boolean {
    if (this.#state === 'void' || this.#state === 'arming') return true;
    const first = this.#extent(offset);
    const last = this.#extent(offset + length - 1);
    let covered = true;
    for (let e = first; covered && e <= last; e++) covered = this.#durable.has(e);
    if (!covered) this.#want(first, last);
    return covered;
  }

  /** A write that the standby will hear of goes to the disk. */
  begin(offset: number, length: number): void {
    const last = this.#extent(offset + length - 1);
    for (let e = this.#extent(offset); e <= last; e++) {
      this.#open[e]!++;
      this.#written[e] = WRITTEN;
    }
    if (this.#state === 'sound' && !this.#resting) this.#rest();
  }

  /** It is acknowledged, or nobody waits for that any more. Once for each {@link begin}. */
  end(offset: number, length: number): void {
    const last = this.#extent(offset + length - 1);
    for (let e = this.#extent(offset); e <= last; e++) this.#open[e]!--;
    if (this.#starved) this.#flush();
  }

  /** The disk has refused a write there, maybe half-way. */
  failed(offset: number, length: number): void {
    const last = this.#extent(offset + length - 1);
    for (let e = this.#extent(offset); e <= last; e++) this.#failed.add(e);
  }

  #extent(offset: number): number {
    return Math.floor(offset / this.extentBytes);
  }

  #want(first: number, last: number): void {
    if (this.#state === 'voiding') return;
    let more = 0;
    for (let e = first; e <= last; e++) if (!this.#active.has(e)) more++;
    if (last - first >= EXTENTS_MAX / 2) {
      // A write so wide (a discard of the whole disk) ends the log of this run.
      this.void();
      return;
    }
    if (this.#active.size + more > EXTENTS_MAX) {
      this.#starved = true;
      this.onWait();
      this.#flush();
      return;
    }
    for (let e = first; e <= last; e++) {
      this.#active.add(e);
      this.#written[e] = WANTED;
    }
    this.#change();
    if (this.#active.size > EXTENTS_HIGH) this.#flush();
  }

  // --- the run

  /** The standby has acknowledged everything up to a whole first copy: from now on the log may hold. */
  arm(owner: Omit<ActivityOwner, 'image'>): void {
    if (this.#state !== 'void' || this.#broken || this.#closed) return;
    this.#state = 'arming';
    this.#owner = { ...owner, image: this.#parts.image };
    void this.#arm(++this.#run);
  }

  async #arm(run: number): Promise<void> {
    const { sleep, flush, warn, open } = this.#parts;
    try {
      this.#file ??= await open();
      for (let tries = 0; run === this.#run && tries < ARM_TRIES; tries++) {
        if (tries > 0) await sleep(FLUSH_MS);
        // What is not acknowledged, or not yet done, is not made durable for sure by this flush.
        for (let e = 0; e < this.#open.length; e++) {
          this.#written[e] = this.#open[e] === 0 ? CLEAN : WRITTEN;
        }
        await flush();
        if (run !== this.#run) return;
        this.#active.clear();
        for (const extent of this.#failed) this.#active.add(extent);
        for (let e = 0; e < this.#open.length; e++) {
          if (this.#open[e]! > 0 || this.#written[e] !== CLEAN) this.#active.add(e);
        }
        if (this.#active.size > EXTENTS_HIGH) continue;
        this.#state = 'starting';
        this.#change();
        return;
      }
    } catch (error) {
      warn(`a return of this host will need whole copies of its disks: ${messageOf(error)}`);
    }
    if (run === this.#run) this.#state = 'void';
  }

  /** What is written from now on is not in the log: the file must claim nothing before any of it goes to the disk. */
  void(): void {
    this.#run++;
    this.#starved = false;
    if (this.#state === 'arming') this.#state = 'void';
    if (this.#state === 'void' || this.#state === 'voiding') return;
    this.#state = 'voiding';
    this.#change();
  }

  /** Ends the log: where everything is acknowledged the file says so. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#run++;
    await this.#pumping;
    if (this.#state === 'sound' && this.#open.every((n) => n === 0) && this.#failed.size === 0) {
      try {
        await this.#parts.flush();
        await this.#file!.write({ ...this.#owner!, extents: [] });
      } catch {
        // What stands there names too many extents, not too few.
      }
    }
    this.#parts.close();
    await this.#file?.close();
  }

  // --- inside

  #change(): void {
    this.#changed = true;
    this.#pumping ??= this.#pump().finally(() => {
      this.#pumping = undefined;
    });
  }

  /** Writes the set as it is when a write begins; changes during one share the next. */
  async #pump(): Promise<void> {
    for (let complained = false; this.#changed && !this.#closed; ) {
      this.#changed = false;
      const voiding = this.#is('voiding');
      const extents = this.active;
      try {
        await this.#file!.write(voiding ? undefined : { ...this.#owner!, extents });
      } catch (error) {
        // Writes wait: what is on the disk and not in the log would be lost when this host comes back.
        if (!complained) this.#parts.warn(`writes wait: ${messageOf(error)}`);
        complained = true;
        this.#changed = true;
        await this.#parts.sleep(RETRY_MS);
        continue;
      }
      if (voiding) {
        this.#active.clear();
        this.#durable.clear();
        this.#state = 'void';
      } else {
        for (const extent of extents) if (this.#active.has(extent)) this.#durable.add(extent);
        if (this.#is('starting')) this.#state = 'sound';
      }
      this.onRoom();
    }
  }

  #is(state: State): boolean {
    return this.#state === state;
  }

  #rest(): void {
    this.#resting = true;
    void this.#parts.sleep(FLUSH_MS).then(() => {
      this.#resting = false;
      this.#flush();
    });
  }

  /** Makes the disk durable, and retires what is acknowledged and was not written since. */
  #flush(): void {
    if (this.#flushing || this.#state !== 'sound' || this.#closed) return;
    this.#flushing = true;
    void this.#retire(this.#run).finally(() => {
      this.#flushing = false;
    });
  }

  async #retire(run: number): Promise<void> {
    for (const e of this.#active) {
      const stays = this.#open[e]! > 0 || this.#written[e] === WANTED;
      this.#written[e] = stays ? WRITTEN : LEAVING;
    }
    try {
      await this.#parts.flush();
    } catch (error) {
      // The host has lost data that it took: nothing can be said of this disk any more.
      this.#parts.warn(
        `a return of this host will need a whole copy of its disk: ${messageOf(error)}`,
      );
      this.#broken = true;
      if (run === this.#run) this.void();
      return;
    }
    if (run !== this.#run) return;
    for (const e of this.#active) {
      if (this.#written[e] !== LEAVING || this.#open[e] !== 0 || this.#failed.has(e)) continue;
      this.#written[e] = CLEAN;
      this.#active.delete(e);
      this.#durable.delete(e);
      this.#starved = false;
    }
    // Also when nothing changed: the file's age tells until when its owner lived.
    this.#change();
    if (this.#active.size > this.#failed.size && !this.#resting) this.#rest();
    if (this.#starved) void this.#parts.sleep(STARVED_MS).then(() => this.#flush());
  }
}
