/**
 * The MC146818 real-time clock with 128 bytes of CMOS memory, on the index and data port of a PC. Its time is the
 * host's wall time plus what the guest has set it off by. Flags are brought up to date when somebody looks; timers
 * run only while an interrupt waits for one. Leaves out: daylight saving, square wave output, the NMI mask in the
 * index port, an extended bank.
 */
import { assert } from '../../src/base/assert.ts';
import type { Clock, Timer } from '../../src/base/clock.ts';
import type { Device } from '../../src/bus/device.ts';
import type { IrqLine } from '../../src/bus/interrupts.ts';
import type { AccessSize, IoRegion } from '../../src/bus/io-bus.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import { type Calendar, DAY_SECONDS, fromSeconds, toSeconds } from './calendar.ts';
import {
  A,
  ALARM_ANY,
  B,
  C,
  CMOS_BYTES,
  CRYSTAL_HZ,
  D_VALID,
  DIVIDER_START_US,
  PM,
  REG,
  UPDATE_AHEAD_US,
} from './spec.ts';
import { type RtcState, rtcSchema } from './state.ts';

const SECOND_US = 1_000_000;
/** Wall time may be adjusted while an alarm is awaited: look again at the latest after this. */
const LOOK_AGAIN_SECONDS = 3600;
/** No guest gets further from the host's date than this. */
const OFFSET_SECONDS_MAX = 1e12;

/** What an {@link RtcCmos} is made of. */
export interface RtcCmosOptions {
  readonly id: string;
  /** ISA interrupt 8. */
  readonly irq: IrqLine;
  readonly clock: Clock;
  /** What the memory holds at first (`cmosContent`). */
  readonly cmos: Uint8Array;
}

/** The clock; map it at its index port with length `RTC_PORTS`. */
export class RtcCmos implements Device<RtcState>, IoRegion {
  readonly id: string;
  readonly name: string;
  readonly schema = rtcSchema;
  readonly maxAccess: AccessSize = 1;
  readonly #irq: IrqLine;
  readonly #clock: Clock;
  /** For the next update or alarm interrupt. */
  readonly #secondTimer: Timer;
  readonly #periodicTimer: Timer;

  #index = 0;
  readonly #cmos = new Uint8Array(CMOS_BYTES);
  #offsetSeconds = 0;
  #offsetUs = 0;
  #doneSecond = 0;
  /** Machine time of the last tick of the periodic interrupt. */
  #periodicAtNs = 0;
  #running = false;

  /** Scratch of {@link #readTime} and {@link #writeTime}. */
  readonly #date: Calendar = {
    year: 0,
    month: 1,
    day: 1,
    weekday: 0,
    hours: 0,
    minutes: 0,
    seconds: 0,
  };
  /** Guest time as {@link #look} last found it. */
  #second = 0;
  #us = 0;

  constructor({ id, irq, clock, cmos }: RtcCmosOptions) {
    assert(cmos.length === CMOS_BYTES, 'CMOS has 128 bytes');
    this.id = id;
    this.name = id;
    this.#irq = irq;
    this.#clock = clock;
    this.#cmos.set(cmos);
    this.#cmos[REG.a] = A.dividerRunning | 6;
    this.#cmos[REG.b] = B.hours24;
    this.#cmos[REG.c] = 0;
    this.#cmos[REG.d] = D_VALID;
    this.#secondTimer = clock.timer(() => this.#update());
    this.#periodicTimer = clock.timer(() => this.#update());
    this.#look();
    this.#doneSecond = this.#second;
    this.#periodicAtNs = clock.nowNs();
  }

  read(offset: number): number {
    if (offset === 0) return 0xff;
    this.#update();
    const index = this.#index;
    if (index === REG.c) {
      const flags = this.#cmos[REG.c]!;
      this.#cmos[REG.c] = 0;
      this.#update();
      return flags;
    }
    if (index === REG.a) {
      const ahead = this.#ticking() && this.#us >= SECOND_US - UPDATE_AHEAD_US;
      return this.#cmos[REG.a]! | (ahead ? A.updateInProgress : 0);
    }
    if (isTime(index) && this.#ticking()) this.#writeTime();
    return this.#cmos[index]!;
  }

  write(offset: number, _size: AccessSize, value: number): void {
    if (offset === 0) {
      this.#index = value & (CMOS_BYTES - 1);
      return;
    }
    this.#update();
    const index = this.#index;
    switch (index) {
      case REG.a:
      case REG.b:
        this.#control(index, value);
        break;
      case REG.c:
      case REG.d:
        break;
      default:
        if (isTime(index) && this.#ticking()) {
          this.#writeTime();
          this.#cmos[index] = value;
          this.#readTime(this.#us);
        } else {
          this.#cmos[index] = value;
        }
    }
    this.#update();
  }

  /** The reset pin: interrupts off, flags gone; time and memory stay ("Reset"). */
  reset(): void {
    this.#catchUp();
    this.#index = 0;
    this.#cmos[REG.b]! &= ~(B.periodicEnable | B.alarmEnable | B.updateEnable | B.squareWave);
    this.#cmos[REG.c] = 0;
    this.#update();
  }

  pause(): void {
    this.#running = false;
    this.#secondTimer.cancel();
    this.#periodicTimer.cancel();
  }

  resume(): void {
    if (this.#running) return;
    this.#running = true;
    this.#update();
  }

  save(): RtcState {
    assert(!this.#running, `${this.id}: state is saved only while paused`);
    this.#catchUp();
    return {
      index: this.#index,
      cmos: this.#cmos.slice(),
      offsetSeconds: this.#offsetSeconds,
      offsetUs: this.#offsetUs,
      doneSecond: this.#doneSecond,
      periodicAgeNs: Math.max(0, this.#clock.nowNs() - this.#periodicAtNs),
    };
  }

  load(state: RtcState): void {
    assert(!this.#running, `${this.id}: state is loaded only while paused`);
    const { index, cmos, offsetSeconds, offsetUs, doneSecond, periodicAgeNs } = state;
    requireState(index < CMOS_BYTES && cmos.length === CMOS_BYTES, 'rtc-cmos: index');
    requireState((cmos[REG.a]! & ~A.kept) === 0, 'rtc-cmos: register A');
    requireState((cmos[REG.c]! & ~C.all) === 0, 'rtc-cmos: register C');
    requireState(cmos[REG.d] === D_VALID, 'rtc-cmos: register D');
    for (const seconds of [offsetSeconds, doneSecond]) {
      requireState(
        Number.isInteger(seconds) && Math.abs(seconds) <= OFFSET_SECONDS_MAX,
        'rtc-cmos: time',
      );
    }
    requireState(offsetUs < SECOND_US, 'rtc-cmos: offset');
    requireState(periodicAgeNs >= 0 && periodicAgeNs <= 1e9, 'rtc-cmos: periodic tick');
    this.#index = index;
    this.#cmos.set(cmos);
    this.#offsetSeconds = offsetSeconds;
    this.#offsetUs = offsetUs;
    this.#doneSecond = doneSecond;
    this.#periodicAtNs = this.#clock.nowNs() - periodicAgeNs;
  }

  /** Whether time goes on: neither held by SET nor by the divider. */
  #ticking(): boolean {
    return (this.#cmos[REG.b]! & B.set) === 0 && this.#dividing();
  }

  #dividing(): boolean {
    return (this.#cmos[REG.a]! & A.divider) === A.dividerRunning;
  }

  /** Finds out what time it is for the guest. */
  #look(): void {
    const wallUs = Math.floor(this.#clock.wallNs() / 1000);
    const wallSecond = Math.floor(wallUs / SECOND_US);
    const us = wallUs - wallSecond * SECOND_US + this.#offsetUs;
    const carry = us >= SECOND_US ? 1 : 0;
    this.#second = wallSecond + this.#offsetSeconds + carry;
    this.#us = us - carry * SECOND_US;
  }

  /** Makes `second` and `us` the guest's time. */
  #setTime(second: number, us: number): void {
    const wallUs = Math.floor(this.#clock.wallNs() / 1000);
    const wallSecond = Math.floor(wallUs / SECOND_US);
    const difference = us - (wallUs - wallSecond * SECOND_US);
    const borrow = difference < 0 ? 1 : 0;
    this.#offsetSeconds = second - wallSecond - borrow;
    this.#offsetUs = difference + borrow * SECOND_US;
    this.#second = second;
    this.#us = us;
    this.#doneSecond = second;
  }

  #control(register: typeof REG.a | typeof REG.b, value: number): void {
    const wasTicking = this.#ticking();
    const wasDividing = this.#dividing();
    if (wasTicking) this.#writeTime();
    if (register === REG.a) {
      const changed = (this.#cmos[REG.a]! ^ value) & A.kept;
      this.#cmos[REG.a] = value & A.kept;
      if (changed !== 0) this.#periodicAtNs = this.#clock.nowNs();
    } else {
      this.#cmos[REG.b] = value;
      // Setting SET also withdraws the update interrupt ("Register B").
      if ((value & B.set) !== 0) this.#cmos[REG.b]! &= ~B.updateEnable;
    }
    const phase = wasDividing || !this.#dividing() ? this.#us : DIVIDER_START_US;
    if (!wasTicking && this.#ticking()) this.#readTime(phase);
    else if (phase !== this.#us) this.#setTime(this.#second, phase);
  }

  /** Brings the flags up to date; nothing is signalled yet. */
  #catchUp(): void {
    this.#look();
    if (this.#ticking()) {
      const second = this.#second;
      if (second !== this.#doneSecond) {
        this.#cmos[REG.c]! |= C.update;
        if (second > this.#doneSecond) {
          const alarm = this.#nextAlarm(this.#doneSecond);
          if (alarm !== undefined && alarm <= second) this.#cmos[REG.c]! |= C.alarm;
        }
        this.#doneSecond = second;
      }
    } else {
      this.#doneSecond = this.#second;
    }
    const period = this.#periodNs();
    if (period !== undefined) {
      const ticks = Math.floor((this.#clock.nowNs() - this.#periodicAtNs) / period);
      if (ticks > 0) {
        this.#cmos[REG.c]! |= C.periodic;
        this.#periodicAtNs += ticks * period;
      }
    } else {
      this.#periodicAtNs = this.#clock.nowNs();
    }
  }

  /** Drives the interrupt and arms the timers that an enabled interrupt needs. */
  #update(): void {
    this.#catchUp();
    const enabled = this.#cmos[REG.b]! & C.all & ~C.irq;
    const flags = this.#cmos[REG.c]! & ~C.irq;
    const raised = (flags & enabled) !== 0;
    this.#cmos[REG.c] = flags | (raised ? C.irq : 0);
    this.#irq.set(raised);
    if (!this.#running) return;
    this.#armSecondTimer(enabled & ~flags);
    const period = this.#periodNs();
    if ((enabled & ~flags & C.periodic) !== 0 && period !== undefined) {
      // After some weeks nanoseconds are too coarse for the fractions of a period: never now, or it fires for ever.
      const next = Math.ceil(this.#periodicAtNs + period);
      this.#periodicTimer.arm(Math.max(next, Math.floor(this.#clock.nowNs()) + 1));
    } else {
      this.#periodicTimer.cancel();
    }
  }

  #armSecondTimer(awaited: number): void {
    let seconds: number | undefined;
    if (this.#ticking()) {
      if ((awaited & C.update) !== 0) {
        seconds = 1;
      } else if ((awaited & C.alarm) !== 0) {
        const alarm = this.#nextAlarm(this.#second);
        if (alarm !== undefined) seconds = Math.min(alarm - this.#second, LOOK_AGAIN_SECONDS);
      }
    }
    if (seconds === undefined) this.#secondTimer.cancel();
    else {
      this.#secondTimer.arm(this.#clock.nowNs() + (seconds * SECOND_US - this.#us) * 1000);
    }
  }

  /** The period of the periodic interrupt ("Register A", rate selection), or undefined when there is none. */
  #periodNs(): number | undefined {
    const rate = this.#cmos[REG.a]! & A.rate;
    if (rate === 0 || !this.#dividing()) return undefined;
    // The two fastest settings of other crystals give 256 and 128 Hz with this one.
    const shift = rate <= 2 ? rate + 6 : rate - 1;
    return (2 ** shift * 1e9) / CRYSTAL_HZ;
  }

  /** The first second after `second` that the alarm matches, or undefined when it never does. */
  #nextAlarm(second: number): number | undefined {
    const hours = this.#alarm(REG.hoursAlarm);
    const minutes = this.#alarm(REG.minutesAlarm);
    const seconds = this.#alarm(REG.secondsAlarm);
    // Not a search through all of a day, which a guest could have made at each of its accesses.
    if (hours > 23 || minutes > 59 || seconds > 59) return undefined;
    let at = second + 1;
    while (at <= second + DAY_SECONDS) {
      const inDay = ((at % DAY_SECONDS) + DAY_SECONDS) % DAY_SECONDS;
      if (hours >= 0 && Math.floor(inDay / 3600) !== hours) at += 3600 - (inDay % 3600);
      else if (minutes >= 0 && Math.floor(inDay / 60) % 60 !== minutes) at += 60 - (inDay % 60);
      else if (seconds >= 0 && inDay % 60 !== seconds) at++;
      else return at;
    }
    return undefined;
  }

  /** What an alarm register asks for; -1 for anything. A value that no clock shows never matches. */
  #alarm(register: number): number {
    const value = this.#cmos[register]!;
    if ((value & ALARM_ANY) === ALARM_ANY) return -1;
    return register === REG.hoursAlarm ? this.#hours(value) : this.#number(value);
  }

  /** A register's value as a number, by the data mode. */
  #number(value: number): number {
    return (this.#cmos[REG.b]! & B.binary) !== 0 ? value : (value >> 4) * 10 + (value & 0x0f);
  }

  #digits(value: number): number {
    if ((this.#cmos[REG.b]! & B.binary) !== 0) return value;
    return (Math.floor(value / 10) << 4) | (value % 10);
  }

  #hours(value: number): number {
    if ((this.#cmos[REG.b]! & B.hours24) !== 0) return this.#number(value);
    const hours = this.#number(value & ~PM) % 12;
    return (value & PM) !== 0 ? hours + 12 : hours;
  }

  #hoursDigits(hours: number): number {
    if ((this.#cmos[REG.b]! & B.hours24) !== 0) return this.#digits(hours);
    return this.#digits(hours % 12 || 12) | (hours >= 12 ? PM : 0);
  }

  /** Puts the guest's time into the registers. */
  #writeTime(): void {
    const date = this.#date;
    const cmos = this.#cmos;
    fromSeconds(this.#second, date);
    cmos[REG.seconds] = this.#digits(date.seconds);
    cmos[REG.minutes] = this.#digits(date.minutes);
    cmos[REG.hours] = this.#hoursDigits(date.hours);
    cmos[REG.weekday] = date.weekday + 1;
    cmos[REG.day] = this.#digits(date.day);
    cmos[REG.month] = this.#digits(date.month);
    cmos[REG.year] = this.#digits(date.year % 100);
    cmos[REG.century] = this.#digits(Math.floor(date.year / 100));
  }

  /** Takes the guest's time from the registers; the weekday follows from the date. */
  #readTime(us: number): void {
    const cmos = this.#cmos;
    const seconds = toSeconds({
      year: this.#number(cmos[REG.century]!) * 100 + this.#number(cmos[REG.year]!),
      month: this.#number(cmos[REG.month]!),
      day: this.#number(cmos[REG.day]!),
      hours: this.#hours(cmos[REG.hours]!),
      minutes: this.#number(cmos[REG.minutes]!),
      seconds: this.#number(cmos[REG.seconds]!),
    });
    this.#setTime(seconds, us);
  }
}

function isTime(index: number): boolean {
  return (
    index === REG.century ||
    (index <= REG.year &&
      index !== REG.secondsAlarm &&
      index !== REG.minutesAlarm &&
      index !== REG.hoursAlarm)
  );
}
