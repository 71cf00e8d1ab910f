/** The board's side of PCI for tests: buses, interrupt recorders, doorbells, and a guest's configuration accesses. */
import type { Doorbell, DoorbellRegistrar } from '../../src/bus/doorbell.ts';
import type { MsiController, MsiVector } from '../../src/bus/interrupts.ts';
import { type AccessSize, IoBus } from '../../src/bus/io-bus.ts';
import { PciBus } from '../../src/pci/bus.ts';
import { RecordingIrq } from './recording-irq.ts';

/** Records messages as `address:data`. */
export class RecordingMsi implements MsiController {
  readonly messages: string[] = [];
  /** How often a vector was pointed at a message. */
  configured = 0;
  /** Vectors that are not released. */
  live = 0;

  vector(): MsiVector {
    let message = '';
    this.live++;
    return {
      configure: (low, high, data) => {
        this.configured++;
        message = `${(high * 2 ** 32 + low).toString(16)}:${data.toString(16)}`;
      },
      trigger: () => {
        this.messages.push(message);
      },
      release: () => {
        this.live--;
      },
    };
  }

  /** The messages since the last call. */
  take(): string[] {
    return this.messages.splice(0);
  }
}

/** Doorbells that a test rings by writing through {@link TestBoard.doorbell}. */
export class TestDoorbells implements DoorbellRegistrar {
  readonly byAddress = new Map<number, () => void>();

  add(address: number, ring: () => void): Doorbell {
    this.byAddress.set(address, ring);
    return {
      remove: () => {
        if (this.byAddress.get(address) === ring) this.byAddress.delete(address);
      },
    };
  }
}

/** One PCI bus on fresh buses. What the outside sees (interrupts) can be handed from board to board. */
export class PciTestBoard {
  readonly mmio = new IoBus('mmio');
  readonly ports = new IoBus('pio');
  readonly msi: RecordingMsi;
  readonly irqs: readonly [RecordingIrq, RecordingIrq, RecordingIrq, RecordingIrq];
  readonly doorbells = new TestDoorbells();
  readonly bus: PciBus;

  constructor(
    msi = new RecordingMsi(),
    irqs: PciTestBoard['irqs'] = [
      new RecordingIrq(),
      new RecordingIrq(),
      new RecordingIrq(),
      new RecordingIrq(),
    ],
  ) {
    this.msi = msi;
    this.irqs = irqs;
    this.bus = new PciBus({ mmio: this.mmio, ports: this.ports, msi, intx: irqs });
  }

  /** A configuration read by mechanism #1. */
  read(slot: number, offset: number, size: AccessSize = 4, fn = 0): number {
    this.#select(slot, fn, offset);
    return this.ports.read(0xcfc + (offset & 3), size);
  }

  /** A configuration write by mechanism #1. */
  write(slot: number, offset: number, value: number, size: AccessSize = 4, fn = 0): void {
    this.#select(slot, fn, offset);
    this.ports.write(0xcfc + (offset & 3), size, value);
  }

  /** A guest's MMIO write that KVM would turn into a doorbell where one is registered. */
  mmioWrite(address: number, size: AccessSize, value: number): void {
    const ring = this.doorbells.byAddress.get(address);
    if (ring !== undefined) ring();
    else this.mmio.write(address, size, value);
  }

  #select(slot: number, fn: number, offset: number): void {
    this.ports.write(0xcf8, 4, (0x8000_0000 | (slot << 11) | (fn << 8) | (offset & 0xfc)) >>> 0);
  }
}
