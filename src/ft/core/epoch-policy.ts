/**
 * When a checkpoint is taken. Three policies over one mechanism:
 *  - `kemari`: as soon as the first output is held, never sooner than a minimum gap after the last one, and
 *    after an idle limit even without output, so that the set of dirty pages stays bounded;
 *  - `periodic`: every interval;
 *  - `adaptive`: on output, but spaced so that the guest stands still for no more than a share of the time, and
 *    no later than the interval; halfway to the next checkpoint it asks for a light copy of the dirty pages, as long as enough
 *    of what is copied ahead is still right when the guest is stopped.
 * A full tap commits at once under any of them, and so does an operator. Configuration changes take effect at
 * the next question. Pure; asked by the primary machine on every tick and after every held output.
 */
import { assert } from '../../base/assert.ts';

/** The policies. */
export type PolicyName = 'kemari' | 'periodic' | 'adaptive';

/** What can be set, also while protected. Durations in nanoseconds. */
export interface PolicyConfig {
  readonly policy: PolicyName;
  /** periodic, adaptive: from one capture to the next. */
  readonly intervalNs: number;
  /** kemari, adaptive: least time between two captures. */
  readonly gapMinNs: number;
  /** kemari: most time without a capture although nothing is held. */
  readonly idleMaxNs: number;
  /** adaptive: largest share of time that the guest stands still for checkpoints, 0..1. */
  readonly pauseShareMax: number;
  /** adaptive: expected dirty pages of a transaction from which a light copy ahead is worth its cost. */
  readonly preCopyPagesMin: number;
}

/** What the command line starts from. */
export const POLICY_DEFAULTS: PolicyConfig = {
  policy: 'adaptive',
  intervalNs: 20_000_000,
  gapMinNs: 1_000_000,
  idleMaxNs: 1_000_000_000,
  pauseShareMax: 0.1,
  preCopyPagesMin: 1024,
};

/** Why a checkpoint is taken. */
export type CommitReason = 'output' | 'interval' | 'tap-full' | 'forced';

/** What became of the pages that were sent ahead of a capture. */
export interface SentAhead {
  readonly pages: number;
  /** Those among them that had to be sent again because they were written once more. */
  readonly again: number;
}

/** Nothing was sent ahead. */
export const NOTHING_AHEAD: SentAhead = { pages: 0, again: 0 };

/** Share of the pages sent ahead that must still be right at the capture; else the copies cost more than they spare. */
const AHEAD_USEFUL_MIN = 0.5;
/** After copies that were not worth it, at most so many captures go without one before it is tried again. */
const AHEAD_REST_MAX = 64;

/** Weight of the newest pause in the running mean. */
const EWMA = 0.25;

/** Decides about checkpoints. */
export class EpochPolicy {
  #config: PolicyConfig;
  #lastCaptureNs = Number.NEGATIVE_INFINITY;
  #firstHeldNs = -1;
  #full = false;
  #forced = false;
  #pauseMeanNs = 0;
  #pagesMean = 0;
  #preCopied = false;
  /** Captures that still go without a light copy, and how many the last useless one cost. */
  #aheadRest = 0;
  #aheadPenalty = 0;

  constructor(config: PolicyConfig = POLICY_DEFAULTS) {
    this.#config = config;
    this.configure(config);
  }

  /** Replaces the configuration; what was measured stays. */
  configure(config: PolicyConfig): void {
    assert(config.intervalNs > 0 && config.gapMinNs >= 0, 'intervals are positive');
    assert(config.pauseShareMax > 0 && config.pauseShareMax <= 1, 'a share is in (0, 1]');
    this.#config = config;
  }

  get config(): PolicyConfig {
    return this.#config;
  }

  /** Running mean of the pauses, for status lines. */
  get pauseMeanNs(): number {
    return this.#pauseMeanNs;
  }

  /** An output was held that no epoch covers. */
  held(nowNs: number): void {
    if (this.#firstHeldNs < 0) this.#firstHeldNs = nowNs;
  }

  /** An output found no room in the tap. */
  tapFull(): void {
    this.#full = true;
  }

  /** An operator, or a state change, wants a checkpoint now. */
  force(): void {
    this.#forced = true;
  }

  /** A capture has begun: the outputs held so far are covered. */
  captured(nowNs: number): void {
    this.#lastCaptureNs = nowNs;
    this.#firstHeldNs = -1;
    this.#full = false;
    this.#forced = false;
    this.#preCopied = false;
    if (this.#aheadRest > 0) this.#aheadRest--;
  }

  /**
   * What the last capture cost.
   * @param pages different pages of its transaction, those sent ahead included
   */
  measured(pauseNs: number, pages: number, ahead: SentAhead = NOTHING_AHEAD): void {
    if (ahead.pages > 0) {
      const useful = ahead.pages - ahead.again >= ahead.pages * AHEAD_USEFUL_MIN;
      this.#aheadPenalty = useful
        ? 0
        : Math.min(AHEAD_REST_MAX, Math.max(2, 2 * this.#aheadPenalty));
      this.#aheadRest = this.#aheadPenalty;
    }
    const first = this.#pauseMeanNs === 0;
    this.#pauseMeanNs = first ? pauseNs : this.#pauseMeanNs + EWMA * (pauseNs - this.#pauseMeanNs);
    this.#pagesMean = first ? pages : this.#pagesMean + EWMA * (pages - this.#pagesMean);
  }

  /** Outputs wait again although a capture had covered them: the epochs did not commit. */
  returned(nowNs: number): void {
    this.held(nowNs);
  }

  /** Whether to take a checkpoint at `nowNs`, and why. */
  due(nowNs: number): CommitReason | undefined {
    if (this.#forced) return 'forced';
    if (this.#full) return 'tap-full';
    const since = nowNs - this.#lastCaptureNs;
    if (this.#config.policy !== 'periodic' && this.#firstHeldNs >= 0 && since >= this.gapNs) {
      return 'output';
    }
    return since >= this.#longestNs ? 'interval' : undefined;
  }

  /** The guest runs for at least as long as it stands still, however slow captures are: from one to the next. */
  get #leastNs(): number {
    return 2 * this.#pauseMeanNs;
  }

  /** Most time from one capture to the next. */
  get #longestNs(): number {
    const { policy, intervalNs, idleMaxNs } = this.#config;
    return Math.max(policy === 'kemari' ? idleMaxNs : intervalNs, this.#leastNs);
  }

  /** Least time between two captures under the present policy and measurements. */
  get gapNs(): number {
    const { policy, gapMinNs, intervalNs, pauseShareMax } = this.#config;
    if (policy !== 'adaptive') return Math.max(gapMinNs, this.#leastNs);
    const spaced = this.#pauseMeanNs / pauseShareMax - this.#pauseMeanNs;
    return Math.max(Math.min(Math.max(gapMinNs, spaced), intervalNs), this.#leastNs);
  }

  /** The instant at which {@link due} can change its answer without another event. */
  nextNs(nowNs: number): number {
    if (this.due(nowNs) !== undefined) return nowNs;
    const next = this.#nextCaptureNs;
    return this.#wantsPreCopy ? Math.min(next, Math.max(nowNs, this.#preCopyNs)) : next;
  }

  /** When the next capture comes if nothing else happens. */
  get #nextCaptureNs(): number {
    const idle = this.#lastCaptureNs + this.#longestNs;
    if (this.#config.policy === 'periodic') return idle;
    return this.#firstHeldNs >= 0 ? Math.min(idle, this.#lastCaptureNs + this.gapNs) : idle;
  }

  get #preCopyNs(): number {
    return (this.#lastCaptureNs + this.#nextCaptureNs) / 2;
  }

  get #wantsPreCopy(): boolean {
    const { policy, preCopyPagesMin } = this.#config;
    if (policy !== 'adaptive' || this.#preCopied || this.#aheadRest > 0) return false;
    return this.#pagesMean >= preCopyPagesMin;
  }

  /**
   * Whether to copy the dirty pages now, while the guest runs, so that the next pause is shorter. At most once
   * between two captures, halfway, and seldom where the guest writes the same pages again and again.
   */
  preCopyDue(nowNs: number): boolean {
    if (!this.#wantsPreCopy || nowNs < this.#preCopyNs) return false;
    this.#preCopied = true;
    return true;
  }
}

/** Bounds of {@link SyncRounds}. */
export interface SyncConfig {
  /** The guest may stand still this long for the last round. */
  readonly downtimeMaxNs: number;
  /** Rounds after which the guest is stopped for the rest whatever it takes. */
  readonly roundsMax: number;
}

/**
 * The first copy in rounds, while the guest runs: another round as long as what is left would take longer than
 * the allowed downtime, then the stop and the commit. A guest that dirties memory faster than the link takes
 * it does not converge: after `roundsMax` rounds the rest is sent with the guest stopped, and that is reported.
 */
export class SyncRounds {
  readonly #config: SyncConfig;
  #rounds = 0;
  #bytesPerNs = 0;

  constructor(config: SyncConfig) {
    this.#config = config;
  }

  get rounds(): number {
    return this.#rounds;
  }

  /** Measured rate of the link, bytes per nanosecond. */
  get bytesPerNs(): number {
    return this.#bytesPerNs;
  }

  /** A round of `bytes` took `durationNs`. */
  roundDone(bytes: number, durationNs: number): void {
    this.#rounds++;
    if (durationNs <= 0) return;
    const rate = bytes / durationNs;
    this.#bytesPerNs = this.#bytesPerNs === 0 ? rate : (this.#bytesPerNs + rate) / 2;
  }

  /** Expected time for `bytes`. Unknown before the first round. */
  expectedNs(bytes: number): number {
    return this.#bytesPerNs === 0 ? Number.POSITIVE_INFINITY : bytes / this.#bytesPerNs;
  }

  /** What to do with `remainingBytes` left: another live round, or stop the guest and commit. */
  next(remainingBytes: number): 'round' | 'commit' | 'commit-late' {
    if (remainingBytes === 0 && this.#rounds > 0) return 'commit';
    if (this.expectedNs(remainingBytes) <= this.#config.downtimeMaxNs) return 'commit';
    return this.#rounds >= this.#config.roundsMax ? 'commit-late' : 'round';
  }
}
