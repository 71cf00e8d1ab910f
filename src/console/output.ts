/**
 * The writing half that consoles share: bytes are gathered in a bounded buffer and handed to a sink once a turn of the
 * event loop, or when a part of the buffer is full; what the sink does not take stays, and then `write` refuses.
 */
import type { ConsoleHandler } from './backend.ts';

/** Takes bytes[start, end); how many were taken now (it calls {@link ConsoleOutput.ready} when it can take more). */
export type ConsoleSink = (bytes: Uint8Array, start: number, end: number) => number;

const CAPACITY_BYTES = 16 * 1024;
/** Hand over at once above this fill. */
const EAGER_BYTES = 4 * 1024;

export class ConsoleOutput {
  handler: ConsoleHandler | undefined;
  readonly #sink: ConsoleSink;
  readonly #bytes = Buffer.alloc(CAPACITY_BYTES);
  #start = 0;
  #end = 0;
  #scheduled = false;
  #stalled = false;
  #refused = false;

  constructor(sink: ConsoleSink) {
    this.#sink = sink;
  }

  /** Bytes taken and not handed over. */
  get pending(): number {
    return this.#end - this.#start;
  }

  write(byte: number): boolean {
    if (this.#end === CAPACITY_BYTES) {
      if (!this.#stalled) this.flush();
      if (this.#start > 0) {
        this.#bytes.copyWithin(0, this.#start, this.#end);
        this.#end -= this.#start;
        this.#start = 0;
      }
      if (this.#end === CAPACITY_BYTES) {
        this.#refused = true;
        return false;
      }
    }
    this.#bytes[this.#end++] = byte;
    if (!this.#stalled) {
      if (this.pending >= EAGER_BYTES) this.flush();
      else this.#schedule();
    }
    return true;
  }

  /** Hands over what is there. */
  flush(): void {
    while (this.#start < this.#end) {
      const taken = this.#sink(this.#bytes, this.#start, this.#end);
      this.#start += taken;
      if (taken === 0) {
        this.#stalled = true;
        return;
      }
    }
    this.#start = 0;
    this.#end = 0;
  }

  /** The sink can take more. From the event loop. */
  ready(): void {
    this.#stalled = false;
    this.flush();
    if (!this.#refused || this.pending === CAPACITY_BYTES) return;
    this.#refused = false;
    this.handler?.writable();
  }

  /** Drops what is there (nobody is connected any more). */
  clear(): void {
    this.#start = 0;
    this.#end = 0;
    if (this.#stalled || this.#refused) setImmediate(() => this.ready());
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      if (!this.#stalled) this.flush();
    });
  }
}
