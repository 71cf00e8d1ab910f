/**
 * Interrupt causes, mask and moderation of the 82540EM (8254x SDM, 3.2.7, 3.4.3, 13.4.17-13.4.21): causes collect in
 * ICR; the line is high while an enabled one stands, but rises at most once per ITR interval; receive and transmit
 * causes may be held back by RDTR/RADV and TIDV/TADV. One clock timer serves all delays.
 */
import type { Clock, Timer } from '../../src/base/clock.ts';
import type { IrqLine } from '../../src/bus/interrupts.ts';
import { DELAY_UNIT_NS, ICR, ITR_UNIT_NS, REG } from './spec.ts';

/** Indexes of the deadlines. */
const RDTR = 0;
const RADV = 1;
const TIDV = 2;
const TADV = 3;
const THROTTLE = 4;
/** How many deadlines there are. */
export const DEADLINES = 5;

const NEVER = Number.POSITIVE_INFINITY;

export class InterruptUnit {
  readonly #words: Uint32Array;
  readonly #clock: Clock;
  readonly #line: IrqLine;
  readonly #timer: Timer;
  readonly #deadlines = new Float64Array(DEADLINES).fill(NEVER);
  #asserted = false;
  #running = false;

  /** @param words the register file's; ICR, IMS, ITR and the delay registers are used */
  constructor(words: Uint32Array, clock: Clock, line: IrqLine) {
    this.#words = words;
    this.#clock = clock;
    this.#line = line;
    this.#timer = clock.timer(() => this.#fire());
  }

  /** Whether the line is high. */
  get asserted(): boolean {
    return this.#asserted;
  }

  /** Forgets delays and drops the line; the registers are reset by their owner. */
  reset(): void {
    this.#deadlines.fill(NEVER);
    this.#timer.cancel();
    this.#asserted = false;
    this.#line.set(false);
  }

  /** Adds causes and drives the line. */
  raise(causes: number): void {
    this.#words[REG.icr >>> 2]! |= causes & ICR.all;
    this.update();
  }

  /** A read of ICR: acknowledges everything (13.4.17). */
  readCause(): number {
    const value = this.#words[REG.icr >>> 2]!;
    if (value !== 0) {
      this.#words[REG.icr >>> 2] = 0;
      this.update();
    }
    return value;
  }

  /** A write of ICR: ones acknowledge. */
  clearCause(bits: number): void {
    this.#words[REG.icr >>> 2]! &= ~bits;
    this.update();
  }

  /** A write of IMS. */
  enable(bits: number): void {
    this.#words[REG.ims >>> 2]! |= bits & ICR.all;
    this.update();
  }

  /** A write of IMC. */
  disable(bits: number): void {
    this.#words[REG.ims >>> 2]! &= ~bits;
    this.update();
  }

  /** After a write of ITR: no throttling ends a wait at once. */
  throttleChanged(): void {
    if (this.#words[REG.itr >>> 2] === 0) {
      this.#deadlines[THROTTLE] = NEVER;
      this.update();
    }
  }

  /** Drives the line by the registers; a rise within the throttle interval waits for its end. */
  update(): void {
    const pending = (this.#words[REG.icr >>> 2]! & this.#words[REG.ims >>> 2]!) !== 0;
    if (pending === this.#asserted) return;
    if (!pending) {
      this.#asserted = false;
      this.#line.set(false);
      return;
    }
    const interval = this.#words[REG.itr >>> 2]! * ITR_UNIT_NS;
    const until = this.#deadlines[THROTTLE]!;
    if (interval !== 0 || until !== NEVER) {
      const now = this.#clock.nowNs();
      if (until !== NEVER && now < until) {
        this.#arm();
        return;
      }
      this.#deadlines[THROTTLE] = interval === 0 ? NEVER : now + interval;
    }
    this.#asserted = true;
    this.#line.set(true);
  }

  /**
   * After frames went to the guest (3.2.7.1): raises RXT0 now or after the delays, with `causes` in one go.
   * @param small whether one of them was small enough for RSRPD (3.2.7.2)
   */
  received(causes: number, small: boolean): void {
    const delay = this.#words[REG.rdtr >>> 2]!;
    if (delay === 0 || small) {
      this.#deadlines[RDTR] = NEVER;
      this.#deadlines[RADV] = NEVER;
      this.raise(causes | (delay === 0 ? ICR.rxt0 : 0) | (small ? ICR.srpd : 0));
      return;
    }
    const now = this.#clock.nowNs();
    const absolute = this.#words[REG.radv >>> 2]!;
    this.#deadlines[RDTR] = now + delay * DELAY_UNIT_NS;
    if (absolute !== 0 && this.#deadlines[RADV] === NEVER) {
      this.#deadlines[RADV] = now + absolute * DELAY_UNIT_NS;
    }
    this.#arm();
    if (causes !== 0) this.raise(causes);
  }

  /** RDTR.FPD: the packet timer expires now (13.4.30). */
  flushReceive(): void {
    this.#deadlines[RDTR] = NEVER;
    this.#deadlines[RADV] = NEVER;
    this.raise(ICR.rxt0);
  }

  /**
   * After transmit descriptors were written back (3.4.3).
   * @param causes others to raise in the same go
   * @param immediate a descriptor with RS and without IDE was among them
   * @param delayed one with both was
   */
  transmitted(causes: number, immediate: boolean, delayed: boolean): void {
    const delay = this.#words[REG.tidv >>> 2]!;
    if (immediate || (delayed && delay === 0)) {
      this.#deadlines[TIDV] = NEVER;
      this.#deadlines[TADV] = NEVER;
      this.raise(causes | ICR.txdw);
      return;
    }
    if (delayed) {
      const now = this.#clock.nowNs();
      const absolute = this.#words[REG.tadv >>> 2]!;
      this.#deadlines[TIDV] = now + delay * DELAY_UNIT_NS;
      if (absolute !== 0 && this.#deadlines[TADV] === NEVER) {
        this.#deadlines[TADV] = now + absolute * DELAY_UNIT_NS;
      }
      this.#arm();
    }
    if (causes !== 0) this.raise(causes);
  }

  #arm(): void {
    if (!this.#running) return;
    const deadlines = this.#deadlines;
    let next = NEVER;
    for (let i = 0; i < DEADLINES; i++) if (deadlines[i]! < next) next = deadlines[i]!;
    if (next === NEVER) this.#timer.cancel();
    else this.#timer.arm(next);
  }

  #fire(): void {
    const deadlines = this.#deadlines;
    const now = this.#clock.nowNs();
    let causes = 0;
    if (deadlines[RDTR]! <= now || deadlines[RADV]! <= now) {
      deadlines[RDTR] = NEVER;
      deadlines[RADV] = NEVER;
      causes |= ICR.rxt0;
    }
    if (deadlines[TIDV]! <= now || deadlines[TADV]! <= now) {
      deadlines[TIDV] = NEVER;
      deadlines[TADV] = NEVER;
      causes |= ICR.txdw;
    }
    if (deadlines[THROTTLE]! <= now) deadlines[THROTTLE] = NEVER;
    this.raise(causes);
    this.#arm();
  }

  pause(): void {
    this.#running = false;
    this.#timer.cancel();
  }

  /** Drives the line again and re-arms the delays. */
  resume(): void {
    this.#running = true;
    this.#line.set(this.#asserted);
    this.update();
    this.#arm();
  }

  /** Nanoseconds left of every delay, -1 where none runs. For saved state. */
  saveDelays(): number[] {
    const now = this.#clock.nowNs();
    return Array.from(this.#deadlines, (at) => (at === NEVER ? -1 : Math.max(0, at - now)));
  }

  /** Takes over a saved state, without driving the line. */
  load(delays: readonly number[], asserted: boolean): void {
    const now = this.#clock.nowNs();
    for (let i = 0; i < DEADLINES; i++) {
      const left = delays[i] ?? -1;
      this.#deadlines[i] = left < 0 ? NEVER : now + left;
    }
    this.#asserted = asserted;
  }
}
