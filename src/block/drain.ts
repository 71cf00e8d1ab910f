/**
 * Who waits until a disk has nothing in flight ({@link BlockBackend.drain}). Shared by backends, by way of `Completions`,
 * and by decorators that keep requests of their own.
 */
export class Drain {
  readonly #inFlight: () => number;
  #waiting: (() => void)[] = [];

  /** @param inFlight how many requests are under way */
  constructor(inFlight: () => number) {
    this.#inFlight = inFlight;
  }

  /** Calls `done` once: now, or in a {@link settle} to come. */
  wait(done: () => void): void {
    if (this.#inFlight() === 0) done();
    else this.#waiting.push(done);
  }

  /** Requests have ended: calls who waits, if those were the last. */
  settle(): void {
    if (this.#waiting.length === 0 || this.#inFlight() > 0) return;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const done of waiting) done();
  }
}
