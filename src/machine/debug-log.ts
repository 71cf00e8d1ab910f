/**
 * What firmware writes to the debug console port, as lines of the log at level debug. The guest decides how much that
 * is, so lines are cut and only so many are logged in a window of time; what is left out is counted.
 */
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';

const LINE_MAX_BYTES = 200;
const LINES_PER_WINDOW = 400;
const WINDOW_NS = 10e9;

/** See the module's head. */
export class DebugLog {
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #line = new Uint8Array(LINE_MAX_BYTES);
  #length = 0;
  #cut = false;
  #windowStartNs = 0;
  #lines = 0;
  #left = 0;

  constructor(clock: Clock, log: Logger) {
    this.#clock = clock;
    this.#log = log;
  }

  /** Takes one byte. */
  byte(value: number): void {
    if (value === 0x0a) this.#end();
    else if (value === 0x0d) return;
    else if (this.#length < LINE_MAX_BYTES) this.#line[this.#length++] = value;
    else this.#cut = true;
  }

  #end(): void {
    const bytes = this.#line.subarray(0, this.#length);
    const cut = this.#cut;
    this.#length = 0;
    this.#cut = false;
    if (bytes.length === 0) return;
    const now = this.#clock.nowNs();
    if (now - this.#windowStartNs >= WINDOW_NS || now < this.#windowStartNs) {
      this.#windowStartNs = now;
      this.#lines = 0;
    }
    if (this.#lines >= LINES_PER_WINDOW) {
      this.#left++;
      return;
    }
    this.#lines++;
    // Escape sequences of a guest must not reach the terminal of the person who reads the log.
    const text = Array.from(bytes, (byte) =>
      byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '?',
    ).join('');
    const left = this.#left === 0 ? '' : ` (${this.#left} lines before it were left out)`;
    this.#left = 0;
    this.#log.debug(`firmware: ${text}${cut ? '...' : ''}${left}`);
  }
}
