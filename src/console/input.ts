/**
 * The reading half that consoles share: a bounded buffer between a source and a device. When it is nearly full the
 * source is told to pause, and to go on when the device has read.
 */
import { ByteRing } from '../base/ring.ts';
import type { ConsoleHandler } from './backend.ts';

/** Room that is kept for what a source delivers after it was told to pause. */
const CAPACITY_BYTES = 128 * 1024;
const PAUSE_BYTES = 4 * 1024;

export class ConsoleInput {
  #handler: ConsoleHandler | undefined;
  readonly #ring = new ByteRing(CAPACITY_BYTES);
  readonly #flow: (on: boolean) => void;
  #paused = false;

  /** @param flow pauses (false) and resumes (true) the source */
  constructor(flow: (on: boolean) => void) {
    this.#flow = flow;
  }

  setHandler(handler: ConsoleHandler): void {
    this.#handler = handler;
    if (this.#ring.length > 0) {
      setImmediate(() => {
        if (this.#ring.length > 0) handler.readable();
      });
    }
  }

  /** Input has come. From the event loop. */
  push(bytes: Uint8Array): void {
    const wasEmpty = this.#ring.length === 0;
    for (const byte of bytes) this.#ring.push(byte);
    if (this.#ring.length >= PAUSE_BYTES && !this.#paused) {
      this.#paused = true;
      this.#flow(false);
    }
    if (wasEmpty && this.#ring.length > 0) this.#handler?.readable();
  }

  read(): number {
    const byte = this.#ring.shift();
    if (this.#paused && this.#ring.length < PAUSE_BYTES / 2) {
      this.#paused = false;
      this.#flow(true);
    }
    return byte;
  }
}
