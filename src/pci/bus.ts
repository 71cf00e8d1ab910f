/**
 * One PCI bus: 32 slots of up to 8 functions, and how the guest reaches their configuration space
 * (configuration mechanism #1 at ports 0xCF8/0xCFC; on request an ECAM region). It connects functions to the
 * board's buses and routes their INTx pins to four shared lines. Bridges and further buses are left out.
 */
import { assert } from '../base/assert.ts';
import { sizeMask } from '../base/bits.ts';
import { VmmError } from '../base/error.ts';
import type { Device } from '../bus/device.ts';
import { type IrqLine, type MsiController, SharedIrqLine } from '../bus/interrupts.ts';
import type { AccessSize, IoBus, IoRegion, Mapping } from '../bus/io-bus.ts';
import { u32 } from '../snapshot/codec.ts';
import { type Schema, schema } from '../snapshot/schema.ts';
import type { PciFunction } from './function.ts';
import { CONFIG_ADDRESS_PORT, CONFIG_BYTES, FUNCTIONS_PER_SLOT, SLOTS_PER_BUS } from './spec.ts';

/** What a bus needs of the board. */
export interface PciBusOptions {
  readonly mmio: IoBus;
  readonly ports: IoBus;
  readonly msi: MsiController;
  /** Four level-triggered lines; {@link intxLineOf} says which pin reaches which. */
  readonly intx: readonly [IrqLine, IrqLine, IrqLine, IrqLine];
  /** Port 0xCF9, which lies inside mechanism #1's address register: the board's reset control, if it has one. */
  readonly resetControl?: { read(): number; write(value: number): void };
}

/** The bus's own saved state: the address register of mechanism #1. */
export interface PciBusState {
  configAddress: number;
}

const busSchema = schema<PciBusState>('pci-bus', 1, { configAddress: u32 });

/**
 * Which of the four INTx lines (0 to 3) `pin` (1 = INTA#) of `slot` drives: rotated by slot, as PC chip sets and
 * their firmware expect it (PCI 3.0, 2.2.6, implementation note). Slot 1's INTA# is line 0.
 */
export function intxLineOf(slot: number, pin: number): number {
  return (slot + pin + 2) & 3;
}

/** Where a function sits. */
export interface PciPlace {
  /** 0 to 31; the lowest empty slot from 1 on when absent. */
  readonly slot?: number;
  /** 0 to 7. Default 0. */
  readonly function?: number;
}

export class PciBus implements Device<PciBusState> {
  readonly id = 'pci-bus';
  readonly schema: Schema<PciBusState> = busSchema;
  readonly #options: PciBusOptions;
  readonly #functions: (PciFunction | undefined)[] = new Array<PciFunction | undefined>(
    SLOTS_PER_BUS * FUNCTIONS_PER_SLOT,
  ).fill(undefined);
  readonly #lines: readonly SharedIrqLine[];
  #address = 0;
  #paused = true;

  constructor(options: PciBusOptions) {
    this.#options = options;
    this.#lines = options.intx.map((line) => new SharedIrqLine(line));
    options.ports.map(CONFIG_ADDRESS_PORT, 8, this.#portRegion());
  }

  /**
   * Connects `fn` to the bus.
   * @returns its slot
   * @throws VmmError `PCI_SLOT_TAKEN`, `PCI_BUS_FULL`
   */
  add(fn: PciFunction, place: PciPlace = {}): number {
    const slot = place.slot ?? this.#freeSlot(fn.name);
    const index = place.function ?? 0;
    assert(slot >= 0 && slot < SLOTS_PER_BUS, 'a bus has 32 slots');
    assert(index >= 0 && index < FUNCTIONS_PER_SLOT, 'a slot has 8 functions');
    const other = this.at(slot, index);
    if (other !== undefined) {
      throw new VmmError(
        'PCI_SLOT_TAKEN',
        `${fn.name} cannot have PCI address ${slot}.${index}: ${other.name} has it`,
        { hint: 'Give one of them another slot, or none, so that one is chosen.' },
      );
    }
    const first = this.at(slot, 0);
    if (index > 0) {
      assert(first !== undefined, 'function 0 of a slot is added first');
      first.setMultiFunction();
      fn.setMultiFunction();
    }
    this.#functions[slot * FUNCTIONS_PER_SLOT + index] = fn;
    const { mmio, ports, msi } = this.#options;
    const pin = fn.interruptPin;
    const intx = pin === 0 ? NO_LINE : this.#lines[intxLineOf(slot, pin)]!.source();
    // Fixed devices come before all functions, and these in the order of their places.
    const rank = 8 * (1 + slot * FUNCTIONS_PER_SLOT + index);
    fn.attach({ mmio, ports, msi, rank, intx });
    return slot;
  }

  /** The function at a place, or undefined. */
  at(slot: number, fn: number): PciFunction | undefined {
    return this.#functions[slot * FUNCTIONS_PER_SLOT + fn];
  }

  /** All functions, by slot and number. */
  functions(): PciFunction[] {
    return this.#functions.filter((fn) => fn !== undefined);
  }

  /** A configuration read: absent functions read as all ones (PCI 3.0, 6.1). */
  configRead(slot: number, fn: number, offset: number, size: AccessSize): number {
    const target = this.at(slot, fn);
    return target === undefined ? sizeMask(size) : target.configRead(offset, size);
  }

  /** A configuration write; lost where there is no function. */
  configWrite(slot: number, fn: number, offset: number, size: AccessSize, value: number): void {
    this.at(slot, fn)?.configWrite(offset, size, value);
  }

  /**
   * Maps an enhanced configuration region (PCI Express Base 3.0, 7.2.2) for this one bus: 1 MiB at `base`. The
   * registers beyond the 256 of a conventional function read as all ones.
   */
  mapEcam(base: number): Mapping {
    const region: IoRegion = {
      name: 'pci ecam',
      read: (offset, size) => {
        const register = offset & 0xfff;
        if (register >= CONFIG_BYTES) return sizeMask(size);
        return this.configRead(offset >>> 15, (offset >>> 12) & 7, register, size);
      },
      write: (offset, size, value) => {
        const register = offset & 0xfff;
        if (register >= CONFIG_BYTES) return;
        this.configWrite(offset >>> 15, (offset >>> 12) & 7, register, size, value);
      },
    };
    return this.#options.mmio.map(base, 0x10_0000, aligned(region));
  }

  /** Only the address register: every function is reset by its device. */
  reset(): void {
    this.#address = 0;
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
  }

  save(): PciBusState {
    assert(this.#paused, 'state is taken while paused');
    return { configAddress: this.#address };
  }

  load(state: PciBusState): void {
    this.#address = (state.configAddress & ADDRESS_BITS) >>> 0;
  }

  #freeSlot(name: string): number {
    for (let slot = 1; slot < SLOTS_PER_BUS; slot++) {
      if (this.at(slot, 0) === undefined) return slot;
    }
    throw new VmmError('PCI_BUS_FULL', `no PCI slot is left for ${name}`, {
      hint: `One bus holds ${SLOTS_PER_BUS - 1} devices; remove one.`,
    });
  }

  /** Address register, reset control and data register; accesses of all sizes on their byte lanes. */
  #portRegion(): IoRegion {
    return aligned({
      name: 'pci config',
      read: (offset, size) => {
        if (offset >= 4) {
          const register = this.#selected(offset - 4);
          if (register < 0) return sizeMask(size);
          return this.configRead(this.#slot(), this.#function(), register, size);
        }
        if (offset === 0 && size === 4) return this.#address;
        const { resetControl } = this.#options;
        return offset === 1 && size === 1 && resetControl ? resetControl.read() : sizeMask(size);
      },
      write: (offset, size, value) => {
        if (offset >= 4) {
          const register = this.#selected(offset - 4);
          if (register < 0) return;
          this.configWrite(this.#slot(), this.#function(), register, size, value);
        } else if (offset === 0 && size === 4) {
          this.#address = (value & ADDRESS_BITS) >>> 0;
        } else if (offset === 1 && size === 1) {
          this.#options.resetControl?.write(value);
        }
      },
    });
  }

  /** The configuration offset that the data port's byte `lane` reaches, or -1 when nothing is selected. */
  #selected(lane: number): number {
    const enabled = this.#address >= 0x8000_0000;
    const bus = (this.#address >>> 16) & 0xff;
    return enabled && bus === 0 ? (this.#address & 0xfc) + lane : -1;
  }

  #slot(): number {
    return (this.#address >>> 11) & 31;
  }

  #function(): number {
    return (this.#address >>> 8) & 7;
  }
}

/** Bits of the address register that exist (PCI 3.0, 3.2.2.3.2). */
const ADDRESS_BITS = 0x80ff_fffc;

const NO_LINE: IrqLine = { set() {} };

/** Splits accesses that cross a dword into bytes, so that configuration space sees only ones inside. */
function aligned(region: IoRegion): IoRegion {
  return {
    name: region.name,
    read(offset, size) {
      if ((offset & 3) + size <= 4) return region.read(offset, size);
      let value = 0;
      for (let i = 0; i < size; i++) value |= region.read(offset + i, 1) << (8 * i);
      return value >>> 0;
    },
    write(offset, size, value) {
      if ((offset & 3) + size <= 4) return region.write(offset, size, value);
      for (let i = 0; i < size; i++) region.write(offset + i, 1, (value >>> (8 * i)) & 0xff);
    },
  };
}
