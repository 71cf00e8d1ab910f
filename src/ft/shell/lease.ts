/**
 * Until when this process may let outputs out, where authority is a lease. Set by the arbiter; asked in front of every output with
 * a fresh look at the clock (CLOCK_BOOTTIME: it goes on while the process or the host is suspended).
 */

/** Who wants to know. */
export interface LeaseEvents {
  /** The lease was extended, or is over: instant of CLOCK_BOOTTIME. */
  changed(untilNs: number): void;
  /** A later generation of the guest runs elsewhere. */
  superseded(generation: number): void;
}

/** See the module's head. */
export class Lease {
  readonly #nowNs: () => number;
  #untilNs = Number.NEGATIVE_INFINITY;
  #events: LeaseEvents | undefined;
  #supersededBy = 0;

  /** @param nowNs CLOCK_BOOTTIME */
  constructor(nowNs: () => number) {
    this.#nowNs = nowNs;
  }

  get untilNs(): number {
    return this.#untilNs;
  }

  /** Whether an output may leave now. */
  get valid(): boolean {
    return this.#nowNs() < this.#untilNs;
  }

  /** Sets who hears of changes; told at once what holds now. */
  setEvents(events: LeaseEvents): void {
    this.#events = events;
    events.changed(this.#untilNs);
    if (this.#supersededBy !== 0) events.superseded(this.#supersededBy);
  }

  set(untilNs: number): void {
    this.#untilNs = untilNs;
    this.#events?.changed(untilNs);
  }

  superseded(generation: number): void {
    this.#supersededBy = generation;
    this.#events?.superseded(generation);
  }
}
