/**
 * The PHY of the 82540EM, a Marvell 88E1000 behind the MDI (8254x SDM, 11, 13.4.7): IEEE 802.3 clause 22 registers,
 * auto-negotiation with a partner that can do everything, link status, and the vendor's status register. Left out:
 * signal quality, cable diagnostics, the PHY's own interrupt pin; vendor registers without a meaning here keep what is
 * written.
 */
import type { Clock, Timer } from '../../src/base/clock.ts';
import { MDIC } from './spec.ts';

/** Number of registers. */
export const PHY_REGISTERS = 32;
/** The only address on the MDI (13.4.7). */
const PHY_ADDRESS = 1;
/** From (re)start to completion of auto-negotiation; the real one takes a few seconds. */
const NEGOTIATION_NS = 5_000_000;

/** Register numbers (13.4.7.1). */
export const PHY = {
  control: 0,
  status: 1,
  id1: 2,
  id2: 3,
  advertisement: 4,
  partner: 5,
  expansion: 6,
  gigControl: 9,
  gigStatus: 10,
  extendedStatus: 15,
  specificControl: 16,
  specificStatus: 17,
  interruptEnable: 18,
  extendedControl: 20,
} as const;

/** Bits of register 0. */
export const PHY_CONTROL = {
  speedHigh: 1 << 6,
  fullDuplex: 1 << 8,
  restart: 1 << 9,
  powerDown: 1 << 11,
  autoneg: 1 << 12,
  speedLow: 1 << 13,
  loopback: 1 << 14,
  reset: 1 << 15,
} as const;

/** Bits of register 1. */
export const PHY_STATUS = { linkUp: 1 << 2, autonegComplete: 1 << 5 } as const;

/** Bits of register 17. */
export const PHY_SPECIFIC = {
  link: 1 << 10,
  resolved: 1 << 11,
  fullDuplex: 1 << 13,
  speedShift: 14,
} as const;

const PARTNER = 0xcde1;
const PARTNER_GIG = 0x3c00;

/** [writable bits, value after reset] of every register. */
const REGISTERS: readonly (readonly [number, number])[] = [
  [0x7dc0, 0x1140],
  [0, 0x7949],
  [0, 0x0141],
  [0, 0x0c20],
  [0xffff, 0x0de1],
  [0, 0],
  [0, 0],
  [0xffff, 0x2001],
  [0, 0],
  [0xff00, 0x0e00],
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 0x3000],
  [0xffff, 0x0360],
  [0, 0],
  [0xffff, 0],
  [0, 0],
  [0xffff, 0x0d60],
  ...Array.from({ length: 11 }, () => [0xffff, 0] as const),
];

/** What the wire runs at: 0, 1, 2 = 10, 100, 1000 Mb/s. */
export interface LinkMode {
  readonly speed: number;
  readonly fullDuplex: boolean;
}

const GIGABIT: LinkMode = { speed: 2, fullDuplex: true };

export class Phy {
  readonly registers: Uint16Array<ArrayBuffer> = new Uint16Array(PHY_REGISTERS);
  readonly #clock: Clock;
  readonly #timer: Timer;
  readonly #linkChanged: () => void;
  #cable = false;
  /** The link was lost since register 1 was last read (IEEE 802.3, 22.2.4.2.13). */
  #lost = false;
  /** Clock time at which the running negotiation completes, -1 when none runs. */
  #negotiationEnds = -1;
  #running = false;
  #mode: LinkMode = GIGABIT;

  /** @param linkChanged called after {@link linkUp} or {@link mode} may have changed */
  constructor(clock: Clock, linkChanged: () => void) {
    this.#clock = clock;
    this.#timer = clock.timer(() => this.#negotiated());
    this.#linkChanged = linkChanged;
    this.#defaults();
  }

  /** Whether the link is there: cable in, powered, negotiated or forced. */
  get linkUp(): boolean {
    return (this.registers[PHY.specificStatus]! & PHY_SPECIFIC.link) !== 0;
  }

  /** Speed and duplex of the link; 1000 Mb/s while there is none. */
  get mode(): LinkMode {
    return this.#mode;
  }

  /** Whether transmitted frames come back instead of going out (register 0, bit 14). */
  get loopback(): boolean {
    return (this.registers[PHY.control]! & PHY_CONTROL.loopback) !== 0;
  }

  /** Plugs the cable in or out. */
  setCable(present: boolean): void {
    if (present === this.#cable) return;
    this.#cable = present;
    this.#start();
  }

  /** Power-on: the link is there at once when a cable is, so that firmware need not wait. */
  powerOn(): void {
    this.#defaults();
    this.#lost = false;
    this.#mode = GIGABIT;
    this.#negotiationEnds = -1;
    this.#timer.cancel();
    this.#establish();
  }

  /** Hardware or software reset: registers at their defaults, negotiation starts anew. */
  reset(): void {
    if (this.linkUp) this.#lost = true;
    this.#defaults();
    this.#start();
  }

  #defaults(): void {
    REGISTERS.forEach(([, value], i) => {
      this.registers[i] = value;
    });
  }

  /** One MDI cycle (13.4.7). @returns the MDIC word with the answer */
  access(mdic: number): number {
    const answer = ((mdic & ~(MDIC.error | MDIC.ready)) | MDIC.ready) >>> 0;
    if (((mdic >>> MDIC.phyShift) & 0x1f) !== PHY_ADDRESS) return (answer | MDIC.error) >>> 0;
    const register = (mdic >>> MDIC.registerShift) & 0x1f;
    switch (mdic & MDIC.opMask) {
      case MDIC.opRead:
        return ((answer & ~MDIC.dataMask) | this.read(register)) >>> 0;
      case MDIC.opWrite:
        this.write(register, mdic & MDIC.dataMask);
        return answer;
      default:
        return (answer | MDIC.error) >>> 0;
    }
  }

  /** Reads a register; a lost link shows in register 1 until that was read. */
  read(register: number): number {
    const value = this.registers[register]!;
    if (register !== PHY.status || !this.#lost) return value;
    this.#lost = false;
    return value & ~PHY_STATUS.linkUp;
  }

  /** Writes a register with its side effects. */
  write(register: number, value: number): void {
    if (register === PHY.control && (value & PHY_CONTROL.reset) !== 0) {
      this.reset();
      return;
    }
    const [writable] = REGISTERS[register]!;
    const before = this.registers[register]!;
    this.registers[register] = (before & ~writable) | (value & writable);
    if (register !== PHY.control) return;
    const changed = (before ^ value) & writable & ~PHY_CONTROL.loopback;
    const restart = (value & PHY_CONTROL.restart) !== 0 && (value & PHY_CONTROL.autoneg) !== 0;
    if (restart || changed !== 0) this.#start();
    else this.#linkChanged();
  }

  #possible(): boolean {
    return this.#cable && (this.registers[PHY.control]! & PHY_CONTROL.powerDown) === 0;
  }

  #start(): void {
    const registers = this.registers;
    if (this.linkUp) this.#lost = true;
    registers[PHY.status]! &= ~(PHY_STATUS.linkUp | PHY_STATUS.autonegComplete);
    registers[PHY.specificStatus] = 0;
    registers[PHY.partner] = 0;
    registers[PHY.expansion] = 0;
    registers[PHY.gigStatus] = 0;
    this.#mode = GIGABIT;
    this.#negotiationEnds = -1;
    this.#timer.cancel();
    this.#linkChanged();
    if (!this.#possible()) return;
    if ((registers[PHY.control]! & PHY_CONTROL.autoneg) === 0) {
      this.#establish();
      return;
    }
    this.#negotiationEnds = this.#clock.nowNs() + NEGOTIATION_NS;
    if (this.#running) this.#timer.arm(this.#negotiationEnds);
  }

  #negotiated(): void {
    this.#negotiationEnds = -1;
    this.#establish();
  }

  #establish(): void {
    const registers = this.registers;
    if (!this.#possible()) {
      this.#linkChanged();
      return;
    }
    const auto = (registers[PHY.control]! & PHY_CONTROL.autoneg) !== 0;
    const mode = auto ? this.#best() : this.#forced();
    if (auto) {
      registers[PHY.partner] = PARTNER;
      // Page received, partner can negotiate.
      registers[PHY.expansion] = 0x3;
      registers[PHY.gigStatus] = PARTNER_GIG;
      registers[PHY.status]! |= PHY_STATUS.autonegComplete;
    }
    if (mode !== undefined) {
      this.#mode = mode;
      registers[PHY.status]! |= PHY_STATUS.linkUp;
      registers[PHY.specificStatus] =
        PHY_SPECIFIC.link |
        PHY_SPECIFIC.resolved |
        (mode.fullDuplex ? PHY_SPECIFIC.fullDuplex : 0) |
        (mode.speed << PHY_SPECIFIC.speedShift);
    }
    this.#linkChanged();
  }

  #forced(): LinkMode {
    const control = this.registers[PHY.control]!;
    const speed =
      (control & PHY_CONTROL.speedHigh) !== 0 ? 2 : (control & PHY_CONTROL.speedLow) !== 0 ? 1 : 0;
    return { speed, fullDuplex: (control & PHY_CONTROL.fullDuplex) !== 0 };
  }

  /** The best mode that is advertised (IEEE 802.3, 28B.3, 40.5.1.1), or undefined when nothing is. */
  #best(): LinkMode | undefined {
    const gig = this.registers[PHY.gigControl]!;
    const base = this.registers[PHY.advertisement]!;
    if ((gig & 0x200) !== 0) return GIGABIT;
    if ((gig & 0x100) !== 0) return { speed: 2, fullDuplex: false };
    if ((base & 0x100) !== 0) return { speed: 1, fullDuplex: true };
    if ((base & 0x80) !== 0) return { speed: 1, fullDuplex: false };
    if ((base & 0x40) !== 0) return { speed: 0, fullDuplex: true };
    if ((base & 0x20) !== 0) return { speed: 0, fullDuplex: false };
    return undefined;
  }

  pause(): void {
    this.#running = false;
    this.#timer.cancel();
  }

  resume(): void {
    this.#running = true;
    if (this.#negotiationEnds >= 0) this.#timer.arm(this.#negotiationEnds);
  }

  /** Nanoseconds until negotiation completes, -1 when none runs. For saved state. */
  get negotiationLeftNs(): number {
    if (this.#negotiationEnds < 0) return -1;
    return Math.max(0, this.#negotiationEnds - this.#clock.nowNs());
  }

  /** Takes over a saved state, without telling anybody. The cable is what it was when that was saved. */
  load(registers: Uint16Array, negotiationLeftNs: number, cable: boolean, linkLost: boolean): void {
    this.registers.set(registers);
    this.#cable = cable;
    this.#lost = linkLost;
    this.#negotiationEnds =
      negotiationLeftNs < 0 ? -1 : this.#clock.nowNs() + Math.round(negotiationLeftNs);
    const specific = registers[PHY.specificStatus]!;
    const fullDuplex = (specific & PHY_SPECIFIC.fullDuplex) !== 0;
    const speed = (specific >>> PHY_SPECIFIC.speedShift) & 3;
    this.#mode = this.linkUp ? { speed, fullDuplex } : GIGABIT;
  }

  /** Whether the link was lost since register 1 was last read. */
  get linkLost(): boolean {
    return this.#lost;
  }

  /** Whether a cable is in, as last told. */
  get cable(): boolean {
    return this.#cable;
  }
}
