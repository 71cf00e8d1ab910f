/**
 * Heartbeats and what their absence hints at. A hint is never authority (R3): a silent peer may live behind a
 * cut cable. Asked on every tick; one per connection and direction.
 */

/** Durations in nanoseconds. */
export interface LivenessConfig {
  /** From one heartbeat sent to the next. */
  readonly intervalNs: number;
  /** Nothing heard for this long: the peer is called silent. Several intervals. */
  readonly deadlineNs: number;
}

/** What the command line starts from. */
export const LIVENESS_DEFAULTS: LivenessConfig = {
  intervalNs: 100_000_000,
  deadlineNs: 1_000_000_000,
};

/** Tracks one peer. */
export class Liveness {
  readonly #config: LivenessConfig;
  #heardNs = 0;
  #sentNs = 0;
  #asked = 0;

  constructor(config: LivenessConfig) {
    this.#config = config;
  }

  /** A connection begins: the peer counts as just heard. */
  start(nowNs: number): void {
    this.#heardNs = nowNs;
    this.#asked = nowNs;
    this.#sentNs = Number.NEGATIVE_INFINITY;
  }

  /** Anything was received. */
  heard(nowNs: number): void {
    this.#heardNs = nowNs;
  }

  /** Whether to send a heartbeat now; true at most once per interval. */
  sendDue(nowNs: number): boolean {
    if (nowNs - this.#sentNs < this.#config.intervalNs) return false;
    this.#sentNs = nowNs;
    return true;
  }

  /**
   * Whether the peer has been silent for the whole deadline *while this end was awake*: time in which nobody asked
   * (this process was stopped) does not count against the peer.
   */
  silent(nowNs: number): boolean {
    const asleep = nowNs - this.#asked - this.#config.deadlineNs / 2;
    if (asleep > 0) this.#heardNs = Math.min(nowNs, this.#heardNs + asleep);
    this.#asked = nowNs;
    return nowNs - this.#heardNs >= this.#config.deadlineNs;
  }
}
