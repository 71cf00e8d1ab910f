/**
 * The checkpoints of a primary that are under way: takes them from the standing guest, keeps them until the standby has acknowledged
 * them, and gives back to the guest what comes back. When they are taken, and what the guest does meanwhile, is the
 * shell's business (primary-shell.ts).
 */
import { messageOf } from '../../base/error.ts';
import type { Logger } from '../../base/log.ts';
import { PAGE_SIZE } from '../../memory/dirty-set.ts';
import type { ReplicatedDisks } from '../disk/replicated-disks.ts';
import { Ahead, harvestAhead, markDirty, NO_AHEAD, Repeats } from './ahead.ts';
import { Epoch } from './epoch.ts';
import type { ReplicatedGuest } from './guest.ts';
import type { Outputs } from './outputs.ts';
import type { PageSender } from './page-sender.ts';
import type { Staging } from './staging.ts';

/** What checkpoints are taken of, and put into. */
export interface CheckpointParts {
  readonly guest: ReplicatedGuest;
  readonly outputs: Outputs;
  readonly disks?: ReplicatedDisks | undefined;
  readonly sender: PageSender;
  readonly staging: Staging;
  readonly log: Logger;
}

/** A checkpoint that was just taken; the guest stands still. */
export interface Taken {
  readonly epoch: Epoch;
  /** Pages that it carries. */
  readonly count: number;
  /** Whether all of them are in staging, so that the guest may run. */
  readonly fits: boolean;
}

/** See the module's head. */
export class Checkpoints {
  readonly #parts: CheckpointParts;
  readonly #epochs = new Map<number, Epoch>();
  readonly #harvest: Uint32Array;
  readonly #repeats: Repeats;
  /** What is sent ahead of the next capture. */
  #ahead: Ahead | undefined;
  readonly #begunNs = new Map<number, number>();

  // Figures.
  taken = 0;
  acknowledged = 0;
  lastPauseNs = 0;
  lastPages = 0;
  lastAhead = 0;
  lastAgain = 0;
  outputDelayNs = 0;

  constructor(parts: CheckpointParts) {
    this.#parts = parts;
    const { memory } = parts.guest;
    this.#harvest = new Uint32Array(memory.totalBytes / PAGE_SIZE);
    this.#repeats = new Repeats((memory.ranges.at(-1)?.end ?? 0) / PAGE_SIZE);
  }

  /** A checkpoint that is not acknowledged yet. */
  get(number: number): Epoch | undefined {
    return this.#epochs.get(number);
  }

  /** Empties the dirty log: all memory is going to be copied. */
  forgetDirty(): void {
    const { guest } = this.#parts;
    while (guest.harvest(this.#harvest) === this.#harvest.length);
  }

  /** Sends what is dirty now ahead of checkpoint `number`. @param chunk as {@link Ahead} takes it */
  sendAhead(number: number, chunk: (chunk: number) => boolean): void {
    const { guest, staging, sender } = this.#parts;
    const pages = harvestAhead(guest, this.#harvest);
    const ahead = new Ahead(number, pages, guest, staging, sender, chunk);
    this.#ahead = ahead;
    ahead.run();
  }

  /** Takes a checkpoint of the guest, which stands still; undefined when that failed and everything is dirty again. */
  take(number: number): Taken | undefined {
    const { guest, outputs, disks, sender, staging, log } = this.#parts;
    disks?.log.seal(number);
    const ahead = this.#ahead?.stop() ?? NO_AHEAD;
    this.#ahead = undefined;
    const count = guest.harvest(this.#harvest);
    const pages = this.#harvest.slice(0, count);
    let epoch: Epoch | undefined;
    try {
      epoch = new Epoch(number, pages, staging, guest, ahead);
      let fits = false;
      try {
        fits = epoch.beginCopy();
        const { tap } = outputs;
        epoch.log = new Uint8Array(tap.logBytes);
        tap.writeLog(epoch.log, 0);
        epoch.container = guest.saveContainer();
      } finally {
        epoch.endCopy();
      }
      this.#epochs.set(number, epoch);
      return { epoch, count, fits };
    } catch (error) {
      log.error(`a checkpoint failed: ${messageOf(error)}`);
      epoch?.dispose();
      markDirty(guest, pages);
      markDirty(guest, ahead.pages);
      sender.forget(ahead.pages, ahead.pages.length);
      disks?.log.returnFrom(number);
      return undefined;
    }
  }

  /**
   * What has time until the guest runs again.
   * @returns pages that went ahead of the checkpoint, and how many of them go again
   */
  settle(
    { epoch, count }: Taken,
    beganNs: number,
    nowNs: number,
  ): { pages: number; again: number } {
    const { ahead, pages } = epoch;
    // What was sent ahead and has changed since goes again, and not as a difference to what has not committed.
    const again = this.#repeats.of(ahead.pages, pages);
    this.#parts.sender.forget(again, again.length);
    this.taken++;
    this.lastPauseNs = nowNs - beganNs;
    this.lastPages = count;
    this.lastAhead = ahead.pages.length;
    this.lastAgain = again.length;
    this.#begunNs.set(epoch.number, beganNs);
    return { pages: ahead.pages.length, again: again.length };
  }

  /** The standby has checkpoint `number`, as its transaction `id`. */
  acked(number: number, id: number, nowNs: number): void {
    this.acknowledged++;
    this.#parts.disks?.acked(number, id);
    this.#epochs.get(number)?.dispose();
    this.#epochs.delete(number);
    const began = this.#begunNs.get(number);
    if (began !== undefined) this.outputDelayNs = nowNs - began;
    this.#begunNs.delete(number);
  }

  /** Checkpoints from this one on reach nobody: what they carry is dirty again. */
  returned(fromEpoch: number): void {
    const { guest, disks, sender } = this.#parts;
    disks?.log.returnFrom(fromEpoch);
    if (this.#ahead !== undefined && this.#ahead.epoch >= fromEpoch) {
      const { pages } = this.#ahead.stop();
      this.#ahead = undefined;
      markDirty(guest, pages);
      sender.forget(pages, pages.length);
    }
    for (const [number, epoch] of this.#epochs) {
      if (number < fromEpoch) continue;
      const { pages, ahead } = epoch;
      markDirty(guest, pages);
      markDirty(guest, ahead.pages);
      sender.forget(pages, epoch.done);
      sender.forget(ahead.pages, ahead.pages.length);
      epoch.dispose();
      this.#epochs.delete(number);
      this.#begunNs.delete(number);
    }
  }

  /** Ends what is under way. */
  close(): void {
    this.#ahead?.stop();
    for (const epoch of this.#epochs.values()) epoch.dispose();
  }
}
