/**
 * The logger that rooms below `machine` see. The command line supplies one backed by a real logging
 * package; tests use {@link silentLog} or {@link MemoryLog}.
 */
import type { Clock } from './clock.ts';

/** Values a log line may carry beside its text. */
export type LogFields = Readonly<Record<string, string | number | boolean | undefined>>;

/** Structured, levelled logging. */
export interface Logger {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
}

/** A logger that drops everything. */
export const silentLog: Logger = { debug() {}, info() {}, warn() {}, error() {} };

/** A logger that keeps lines (`level message`) for tests. */
export class MemoryLog implements Logger {
  readonly lines: string[] = [];

  debug(message: string): void {
    this.lines.push(`debug ${message}`);
  }
  info(message: string): void {
    this.lines.push(`info ${message}`);
  }
  warn(message: string): void {
    this.lines.push(`warn ${message}`);
  }
  error(message: string): void {
    this.lines.push(`error ${message}`);
  }
}

/**
 * Complaints about a guest, at most `burst` in any window of `windowNs`: a guest must not be able to fill
 * the host's disk with log lines. The first line after a silence says how many were swallowed.
 */
export class GuestComplaints {
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #source: string;
  readonly #burst: number;
  readonly #windowNs: number;
  #windowStart = 0;
  #inWindow = 0;
  #swallowed = 0;

  constructor(log: Logger, clock: Clock, source: string, burst = 5, windowNs = 10e9) {
    this.#log = log;
    this.#clock = clock;
    this.#source = source;
    this.#burst = burst;
    this.#windowNs = windowNs;
  }

  /** Logs `message` as a warning, or counts it as swallowed. */
  warn(message: string, fields?: LogFields): void {
    const now = this.#clock.nowNs();
    if (now - this.#windowStart >= this.#windowNs) {
      this.#windowStart = now;
      this.#inWindow = 0;
    }
    if (this.#inWindow >= this.#burst) {
      this.#swallowed++;
      return;
    }
    this.#inWindow++;
    const note = this.#swallowed === 0 ? '' : ` (${this.#swallowed} similar lines suppressed)`;
    this.#swallowed = 0;
    this.#log.warn(`${this.#source}: guest: ${message}${note}`, fields);
  }
}
