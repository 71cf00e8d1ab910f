/**
 * Fixed ACPI power management hardware: PM1a event and control registers, the PM timer, the power button. SCI is a
 * level interrupt, active high. The machine is always in ACPI mode (SCI_EN stands, no SMI command port), and S5 is
 * its only sleep state. Leaves out: general purpose events, S1-S4, the sleep button, wake-up.
 */
import { assert } from '../../src/base/assert.ts';
import type { Clock, Timer } from '../../src/base/clock.ts';
import { GuestComplaints, type Logger } from '../../src/base/log.ts';
import type { Device } from '../../src/bus/device.ts';
import type { IrqLine } from '../../src/bus/interrupts.ts';
import type { AccessSize, IoRegion } from '../../src/bus/io-bus.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import { OFFSET, PM_TIMER_HZ, PM1, PM1_CONTROL, SLEEP_TYPE_S5 } from './spec.ts';
import { type AcpiPmState, acpiPmSchema } from './state.ts';

/** What an {@link AcpiPm} is made of. */
export interface AcpiPmOptions {
  readonly id: string;
  /** The SCI line. */
  readonly irq: IrqLine;
  readonly clock: Clock;
  readonly log: Logger;
  /** Called inside the guest's write that enters S5. */
  readonly onPowerOff: () => void;
  /** Bits of the PM timer; FADT must say the same. Default 32. */
  readonly timerBits?: 24 | 32;
}

/** The block; map it with length `ACPI_PM_PORTS`. */
export class AcpiPm implements Device<AcpiPmState>, IoRegion {
  readonly id: string;
  readonly name: string;
  readonly schema = acpiPmSchema;
  readonly #irq: IrqLine;
  readonly #clock: Clock;
  readonly #complaints: GuestComplaints;
  readonly #onPowerOff: () => void;
  /** 2 ** timer bits. */
  readonly #modulus: number;
  /** Fires when the timer's top bit changes, while that interrupt is enabled. */
  readonly #overflow: Timer;

  #status = 0;
  #enable = 0;
  #control = 0;
  /** Machine time at which the timer stood at 0. */
  #zeroNs = 0;
  /** How often the top bit had changed when status last took notice. */
  #changesSeen = 0;
  #running = false;

  constructor({ id, irq, clock, log, onPowerOff, timerBits = 32 }: AcpiPmOptions) {
    this.id = id;
    this.name = id;
    this.#irq = irq;
    this.#clock = clock;
    this.#complaints = new GuestComplaints(log, clock, id);
    this.#onPowerOff = onPowerOff;
    this.#modulus = 2 ** timerBits;
    this.#zeroNs = Math.floor(clock.nowNs());
    this.#overflow = clock.timer(() => this.#update());
  }

  /** The power button is pressed (4.8.2.2.1). */
  pressPowerButton(): void {
    this.#status |= PM1.powerButton;
    if (this.#running) this.#update();
  }

  read(offset: number, size: AccessSize): number {
    if (offset % size !== 0) return this.#readParts(offset, size);
    const dword = this.#readDword(offset & ~3);
    return dword >>> (8 * (offset & 3));
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size === 4 || offset % size !== 0) {
      this.#writeParts(offset, size, value);
      return;
    }
    const register = offset & ~1;
    const shift = 8 * (offset & 1);
    const mask = (size === 1 ? 0xff : 0xffff) << shift;
    this.#writeRegister(register, (value << shift) & mask, mask);
    this.#update();
  }

  reset(): void {
    this.#status = 0;
    this.#enable = 0;
    this.#control = 0;
    // The timer may have any value after a reset; going on keeps it monotonic.
    this.#changesSeen = this.#changes();
    this.#overflow.cancel();
    this.#irq.set(false);
  }

  pause(): void {
    this.#running = false;
    this.#overflow.cancel();
  }

  resume(): void {
    if (this.#running) return;
    this.#running = true;
    this.#update();
  }

  save(): AcpiPmState {
    assert(!this.#running, `${this.id}: state is saved only while paused`);
    this.#notice();
    return {
      status: this.#status,
      enable: this.#enable,
      control: this.#control,
      timerNs: this.#elapsedNs(),
    };
  }

  load(state: AcpiPmState): void {
    assert(!this.#running, `${this.id}: state is loaded only while paused`);
    requireState((state.status & ~PM1.status) === 0, 'acpi-pm: status');
    requireState((state.enable & ~PM1.enable) === 0, 'acpi-pm: enable');
    requireState((state.control & ~PM1_CONTROL.kept) === 0, 'acpi-pm: control');
    this.#status = state.status;
    this.#enable = state.enable;
    this.#control = state.control;
    this.#zeroNs = Math.floor(this.#clock.nowNs()) - state.timerNs;
    this.#changesSeen = this.#changes();
  }

  #readDword(offset: number): number {
    switch (offset) {
      case OFFSET.pm1Status:
        this.#notice();
        return ((this.#enable << 16) | this.#status) >>> 0;
      case OFFSET.pm1Control:
        return this.#control | PM1_CONTROL.sciEnable;
      case OFFSET.timer:
        return this.#ticks() % this.#modulus;
      default:
        return 0;
    }
  }

  #readParts(offset: number, size: AccessSize): number {
    let value = 0;
    for (let i = 0; i < size; i++) {
      value |=
        ((this.#readDword((offset + i) & ~3) >>> (8 * ((offset + i) & 3))) & 0xff) << (8 * i);
    }
    return value >>> 0;
  }

  #writeParts(offset: number, size: AccessSize, value: number): void {
    const part = offset % 2 === 0 ? 2 : 1;
    for (let i = 0; i < size; i += part) {
      this.write(offset + i, part, (value >>> (8 * i)) & (part === 2 ? 0xffff : 0xff));
    }
  }

  /** Writes the bytes of a 16-bit register that `mask` covers. */
  #writeRegister(register: number, value: number, mask: number): void {
    switch (register) {
      case OFFSET.pm1Status:
        this.#notice();
        this.#status &= ~value;
        break;
      case OFFSET.pm1Enable:
        this.#enable = ((this.#enable & ~mask) | value) & PM1.enable;
        break;
      case OFFSET.pm1Control:
        this.#control = ((this.#control & ~mask) | value) & PM1_CONTROL.kept;
        if ((value & PM1_CONTROL.sleepEnable) !== 0) this.#sleep();
        break;
      default:
        break;
    }
  }

  #sleep(): void {
    const type = (this.#control & PM1_CONTROL.sleepType) >> PM1_CONTROL.sleepTypeShift;
    if (type === SLEEP_TYPE_S5) this.#onPowerOff();
    else this.#complaints.warn(`asked for sleep type ${type}, which this machine does not have`);
  }

  #elapsedNs(): number {
    return Math.max(0, Math.floor(this.#clock.nowNs()) - this.#zeroNs);
  }

  /** The timer without its limit of bits; exact, since seconds and the rest are scaled apart. */
  #ticks(): number {
    const ns = this.#elapsedNs();
    const seconds = Math.floor(ns / 1e9);
    return seconds * PM_TIMER_HZ + Math.floor(((ns - seconds * 1e9) * PM_TIMER_HZ) / 1e9);
  }

  /** How often the top bit has changed. */
  #changes(): number {
    return Math.floor(this.#ticks() / (this.#modulus / 2));
  }

  /** Brings TMR_STS up to date (4.8.3.1.1: set whenever the top bit changes). */
  #notice(): void {
    const changes = this.#changes();
    if (changes === this.#changesSeen) return;
    this.#changesSeen = changes;
    this.#status |= PM1.timer;
  }

  #update(): void {
    this.#notice();
    this.#irq.set((this.#status & this.#enable & PM1.events) !== 0);
    const waits = (this.#enable & PM1.timer) !== 0 && (this.#status & PM1.timer) === 0;
    if (waits && this.#running) {
      const ticks = (this.#changesSeen + 1) * (this.#modulus / 2);
      this.#overflow.arm(this.#zeroNs + Math.ceil((ticks / PM_TIMER_HZ) * 1e9) + 1);
    } else {
      this.#overflow.cancel();
    }
  }
}
