/**
 * Time as something passed in. Devices and state machines see only these interfaces; the board supplies
 * the host's monotonic clock, tests and the simulator a hand-driven one ({@link ManualClock}).
 */
import { assert } from './assert.ts';

/** A one-shot timer of a {@link Clock}. */
export interface Timer {
  /** Arms (or moves) the timer to fire once at `deadlineNs` of its clock; a past deadline fires soon. */
  arm(deadlineNs: number): void;
  /** Disarms the timer; a no-op when it is not armed. */
  cancel(): void;
  /** The deadline when armed, undefined otherwise. */
  readonly deadlineNs: number | undefined;
}

/** Monotonic machine time and timers on it. It stands still while the machine is paused. */
export interface Clock {
  /** Nanoseconds since the machine was created (a Number: exact for 104 days, then rounded). */
  nowNs(): number;
  /** Wall-clock time, nanoseconds since 1970-01-01 UTC rounded to microseconds. For RTC only. */
  wallNs(): number;
  /** Makes a disarmed timer which calls `fire` on the thread that owns the devices. */
  timer(fire: () => void): Timer;
}

interface ManualTimer extends Timer {
  fire(): void;
}

/** A clock that moves only when told to; timers fire in order of their deadlines. */
export class ManualClock implements Clock {
  #now = 0;
  #wallOffset: number;
  readonly #timers = new Set<ManualTimer>();

  /** @param wallStartNs wall time at instant 0 */
  constructor(wallStartNs = 0) {
    this.#wallOffset = wallStartNs;
  }

  nowNs(): number {
    return this.#now;
  }

  wallNs(): number {
    return this.#wallOffset + this.#now;
  }

  timer(fire: () => void): Timer {
    const timers = this.#timers;
    let deadline: number | undefined;
    const timer: ManualTimer = {
      arm(deadlineNs) {
        deadline = deadlineNs;
        timers.add(timer);
      },
      cancel() {
        deadline = undefined;
        timers.delete(timer);
      },
      get deadlineNs() {
        return deadline;
      },
      fire,
    };
    return timer;
  }

  /** Moves time forward by `ns`, firing every timer on the way at its own instant. */
  advance(ns: number): void {
    assert(ns >= 0, 'time moves forward');
    const end = this.#now + ns;
    for (;;) {
      let next: ManualTimer | undefined;
      for (const timer of this.#timers) {
        if (
          timer.deadlineNs! <= end &&
          (next === undefined || timer.deadlineNs! < next.deadlineNs!)
        ) {
          next = timer;
        }
      }
      if (next === undefined) break;
      this.#now = Math.max(this.#now, next.deadlineNs!);
      next.cancel();
      next.fire();
    }
    this.#now = end;
  }

  /** Moves time forward by `ns` at once and fires what is due only then: what a host does that is busy. */
  jump(ns: number): void {
    assert(ns >= 0, 'time moves forward');
    this.#now += ns;
    this.advance(0);
  }
}
