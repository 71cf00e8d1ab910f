/**
 * The machine's clock: host monotonic time that stands still while the machine is paused and continues from a
 * saved instant after a restore. Timers ride on one host timer, armed for the earliest deadline. The board owns
 * one; devices see it as a {@link Clock}.
 */
import { assert } from '../base/assert.ts';
import type { Clock, Timer } from '../base/clock.ts';
import { messageOf } from '../base/error.ts';
import type { Logger } from '../base/log.ts';

/** One host timer with nanosecond deadlines; precision is the implementation's. */
export interface HostTimer {
  /** Calls `fire` once when the host's monotonic clock reaches `deadlineNs`; replaces an earlier arming. */
  arm(deadlineNs: number): void;
  cancel(): void;
  /** Gives everything back; it never fires again. */
  close(): void;
}

/** The host's sources of time. */
export interface TimeSource {
  /** Monotonic nanoseconds. */
  monotonicNs(): number;
  /** Nanoseconds since 1970 UTC. */
  wallNs(): number;
  timer(fire: () => void): HostTimer;
}

/** Node's own clock and timers: a millisecond of precision. */
export const nodeTime: TimeSource = {
  monotonicNs: () => performance.now() * 1e6,
  wallNs: () => (performance.timeOrigin + performance.now()) * 1e6,
  timer(fire) {
    let handle: NodeJS.Timeout | undefined;
    return {
      arm(deadlineNs) {
        clearTimeout(handle);
        const ms = Math.ceil(deadlineNs / 1e6 - performance.now());
        handle = setTimeout(fire, Math.min(Math.max(ms, 0), 2 ** 31 - 1));
        handle.unref();
      },
      cancel() {
        clearTimeout(handle);
      },
      close() {
        clearTimeout(handle);
      },
    };
  },
};

class MachineTimer implements Timer {
  deadlineNs: number | undefined;
  readonly fire: () => void;
  readonly #clock: HostClock;

  constructor(clock: HostClock, fire: () => void) {
    this.#clock = clock;
    this.fire = fire;
  }

  arm(deadlineNs: number): void {
    this.deadlineNs = deadlineNs;
    this.#clock.armed(this);
  }

  cancel(): void {
    this.deadlineNs = undefined;
    this.#clock.disarmed(this);
  }
}

/** See the module's head. Created paused at instant 0. */
export class HostClock implements Clock {
  readonly #time: TimeSource;
  readonly #log: Logger;
  readonly #host: HostTimer;
  readonly #armed = new Set<MachineTimer>();
  /** Machine time = host time + offset while running. */
  #offset = 0;
  #stoppedAt: number | undefined = 0;
  #hostDeadline = Number.POSITIVE_INFINITY;

  constructor(time: TimeSource, log: Logger) {
    this.#time = time;
    this.#log = log;
    this.#host = time.timer(() => this.#expire());
  }

  nowNs(): number {
    return this.#stoppedAt ?? this.#time.monotonicNs() + this.#offset;
  }

  wallNs(): number {
    return this.#time.wallNs();
  }

  timer(fire: () => void): Timer {
    return new MachineTimer(this, fire);
  }

  get running(): boolean {
    return this.#stoppedAt === undefined;
  }

  /** Stops time; timers keep their deadlines and do not fire. */
  pause(): void {
    if (this.#stoppedAt !== undefined) return;
    this.#stoppedAt = this.nowNs();
    this.#host.cancel();
    this.#hostDeadline = Number.POSITIVE_INFINITY;
  }

  /** Lets time go on from where it stopped. */
  resume(): void {
    if (this.#stoppedAt === undefined) return;
    this.#offset = this.#stoppedAt - this.#time.monotonicNs();
    this.#stoppedAt = undefined;
    this.#rearm();
  }

  /** Stops time for good and gives the host timer back. */
  dispose(): void {
    this.pause();
    this.#host.close();
  }

  /** Sets the instant at which a paused clock stands (restore). */
  setNow(ns: number): void {
    assert(this.#stoppedAt !== undefined, 'only a paused clock can be set');
    this.#stoppedAt = ns;
  }

  /** For {@link MachineTimer} only. */
  armed(timer: MachineTimer): void {
    this.#armed.add(timer);
    if (this.running && timer.deadlineNs! < this.#hostDeadline) this.#rearm();
  }

  /** For {@link MachineTimer} only. */
  disarmed(timer: MachineTimer): void {
    this.#armed.delete(timer);
    if (this.#armed.size === 0 && this.#hostDeadline !== Number.POSITIVE_INFINITY) this.#rearm();
  }

  #rearm(): void {
    let earliest = Number.POSITIVE_INFINITY;
    for (const timer of this.#armed) earliest = Math.min(earliest, timer.deadlineNs!);
    this.#hostDeadline = earliest;
    if (earliest === Number.POSITIVE_INFINITY) this.#host.cancel();
    else this.#host.arm(earliest - this.#offset);
  }

  #expire(): void {
    this.#hostDeadline = Number.POSITIVE_INFINITY;
    if (!this.running) return;
    const now = this.nowNs();
    for (const timer of [...this.#armed]) {
      if (timer.deadlineNs === undefined || timer.deadlineNs > now) continue;
      timer.cancel();
      try {
        timer.fire();
      } catch (error) {
        this.#log.error(`a device timer failed: ${messageOf(error)}`);
        throw error;
      }
    }
    this.#rearm();
  }
}
