/**
 * The 82540EM on a PCI bus: BAR 0 is the register window (128 KiB of memory), BAR 1 the I/O window (64 bytes), INTA#,
 * an optional expansion ROM (iPXE). Left out: power management and MSI capabilities, the flash BAR.
 * The board makes one, adds {@link E1000Device.pci} to its bus, and drives its life cycle.
 */
import { assert } from '../../src/base/assert.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Logger } from '../../src/base/log.ts';
import type { Device } from '../../src/bus/device.ts';
import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import type { NetBackend } from '../../src/net/backend.ts';
import { PciFunction, type PciFunctionState, pciFunctionCodec } from '../../src/pci/function.ts';
import { requireState, type Schema, schema } from '../../src/snapshot/schema.ts';
import { E1000 } from './e1000.ts';
import { IO_BYTES, MMIO_BYTES, PCI_ID } from './spec.ts';
import { type E1000State, e1000Fields } from './state.ts';

/** What the device is built from. */
export interface E1000DeviceOptions {
  /** Unique on the board: `e1000:net0`. */
  readonly id: string;
  /** Station address, 6 bytes. */
  readonly mac: Uint8Array;
  readonly memory: GuestMemory;
  readonly backend: NetBackend;
  readonly clock: Clock;
  readonly log: Logger;
  /** Content of the expansion ROM. */
  readonly rom?: Uint8Array;
}

/** The chip's state and that of its PCI function. */
export interface E1000DeviceState extends E1000State {
  pci: PciFunctionState;
}

/** Layout of {@link E1000DeviceState}. */
export const E1000_SCHEMA: Schema<E1000DeviceState> = schema<E1000DeviceState>('e1000', 1, {
  ...e1000Fields,
  pci: pciFunctionCodec,
});

export class E1000Device implements Device<E1000DeviceState> {
  readonly id: string;
  readonly schema: Schema<E1000DeviceState> = E1000_SCHEMA;
  /** For the bus. */
  readonly pci: PciFunction;
  readonly #chip: E1000;
  #paused = true;

  constructor(options: E1000DeviceOptions) {
    const { id, rom } = options;
    this.id = id;
    this.#chip = new E1000({ ...options, irq: { set: (level) => this.pci.setIntx(level) } });
    this.pci = new PciFunction({
      name: id,
      vendorId: PCI_ID.vendor,
      deviceId: PCI_ID.device,
      revision: PCI_ID.revision,
      classCode: PCI_ID.classCode,
      subsystemVendorId: PCI_ID.vendor,
      subsystemId: PCI_ID.device,
      bars: [
        { index: 0, kind: 'mem32', sizeBytes: MMIO_BYTES, region: this.#chip.mmio },
        { index: 1, kind: 'io', sizeBytes: IO_BYTES, region: this.#chip.io },
      ],
      interruptPin: 1,
      ...(rom === undefined ? {} : { rom }),
    });
    this.pci.hooks = { configWritten: () => this.#chip.setDma(this.pci.busMaster) };
    this.#chip.setDma(false);
  }

  reset(): void {
    this.pci.reset();
    this.#chip.setDma(false);
    this.#chip.reset();
  }

  pause(): void {
    this.#paused = true;
    this.#chip.pause();
  }

  resume(): void {
    this.#paused = false;
    this.#chip.resume();
  }

  save(): E1000DeviceState {
    assert(this.#paused, `${this.id}: state is taken while paused`);
    return { ...this.#chip.save(), pci: this.pci.save() };
  }

  load(state: E1000DeviceState): void {
    assert(this.#paused, `${this.id}: state is loaded while paused`);
    const { pci, ...chip } = state;
    this.pci.check(pci);
    requireState(pci.intx === state.asserted, `${this.id}: interrupt line disagrees with INTx`);
    this.#chip.load(chip);
    this.pci.load(pci);
    this.#chip.setDma(this.pci.busMaster);
  }
}
