/**
 * The `receivable` half of a backend that has its own buffer: calls the handler once a turn of the event loop while
 * receiving is enabled and the buffer holds frames.
 */
import type { NetHandler } from './backend.ts';

export class Readiness {
  handler: NetHandler | undefined;
  enabled = false;
  readonly #hasFrames: () => boolean;
  #scheduled = false;
  #closed = false;

  constructor(hasFrames: () => boolean) {
    this.#hasFrames = hasFrames;
  }

  /** Frames may have come, or receiving was enabled. */
  check(): void {
    if (this.#scheduled || this.#closed || !this.enabled || this.handler === undefined) return;
    if (!this.#hasFrames()) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      if (this.#closed || !this.enabled || !this.#hasFrames()) return;
      this.handler!.receivable();
      this.check();
    });
  }

  close(): void {
    this.#closed = true;
  }
}
