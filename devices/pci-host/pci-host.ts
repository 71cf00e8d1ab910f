/**
 * The host bridge at 0:0.0: identity of an 82441FX, which SeaBIOS looks for, and its programmable attribute map, by
 * which firmware turns the ROM shadow areas 0xC0000-0xFFFFF from ROM into RAM. The bridge only announces the map;
 * changing memory slots is the board's. Everything else of the 82441FX is left out (DRAM sizing, SMRAM, AGP).
 */
import { assert } from '../../src/base/assert.ts';
import type { Device } from '../../src/bus/device.ts';
import { PciFunction, type PciFunctionState, pciFunctionCodec } from '../../src/pci/function.ts';
import { type Schema, schema } from '../../src/snapshot/schema.ts';
import {
  HOST_BRIDGE_CLASS,
  HOST_BRIDGE_ID,
  PAM_FIRST,
  PAM_LAST,
  PAM_MASK,
  PAM_READ,
  PAM_WRITE,
  SMRAM,
} from './spec.ts';

/** How accesses of the processor to one area are answered. */
export interface PamSegment {
  readonly base: number;
  readonly sizeBytes: number;
  /** Reads come from RAM; otherwise from the ROM behind. */
  readonly readRam: boolean;
  /** Writes go to RAM; otherwise they are lost. */
  readonly writeRam: boolean;
}

/** What the bridge needs. */
export interface PciHostOptions {
  /**
   * Told all 13 segments, ascending, whenever one has changed, and after reset and load. The board changes its
   * memory map before a vCPU goes on.
   */
  readonly onPam: (segments: readonly PamSegment[]) => void;
}

/** The saved state. */
export interface PciHostState {
  pci: PciFunctionState;
}

const pciHostSchema = schema<PciHostState>('pci-host', 1, { pci: pciFunctionCodec });

const PAM_REGISTERS = Array.from({ length: PAM_LAST - PAM_FIRST + 1 }, (_, i) => PAM_FIRST + i);

export class PciHost implements Device<PciHostState> {
  readonly id = 'pci-host';
  readonly schema: Schema<PciHostState> = pciHostSchema;
  /** To be added to the bus at slot 0. */
  readonly pci: PciFunction;
  readonly #onPam: (segments: readonly PamSegment[]) => void;
  /** The attribute bits last announced, two per segment. */
  #announced = -1;
  #paused = true;
  #opening = false;

  constructor({ onPam }: PciHostOptions) {
    this.#onPam = onPam;
    this.pci = new PciFunction({
      name: this.id,
      vendorId: HOST_BRIDGE_ID.vendor,
      deviceId: HOST_BRIDGE_ID.device,
      revision: HOST_BRIDGE_ID.revision,
      classCode: HOST_BRIDGE_CLASS,
      writable: [
        ...PAM_REGISTERS.map((offset) => ({ offset, mask: PAM_MASK })),
        { offset: SMRAM, mask: 0x7f },
      ],
      initial: [{ offset: SMRAM, value: 0x02 }],
    });
    this.pci.hooks = { configWritten: () => this.#announceChange() };
  }

  /** The areas as they are now. */
  segments(): PamSegment[] {
    // PAM0's upper nibble is the BIOS area; the others rise in 16 KiB steps from 0xC0000 (82441FX, table 4).
    const segments: PamSegment[] = [];
    for (let i = 0; i < 12; i++) {
      const register = this.pci.read16(PAM_FIRST + 1 + (i >> 1)) & 0xff;
      segments.push(segment(0xc_0000 + i * 0x4000, 0x4000, register >> (4 * (i & 1))));
    }
    segments.push(segment(0xf_0000, 0x1_0000, (this.pci.read16(PAM_FIRST) & 0xff) >> 4));
    return segments;
  }

  /** Turns the whole shadow area into RAM, as firmware leaves it: for kernels that are booted without one. */
  openShadow(): void {
    // Announced once: the map of memory is changed once.
    this.#opening = true;
    for (const offset of PAM_REGISTERS) this.pci.configWrite(offset, 1, PAM_MASK);
    this.#opening = false;
    this.#announceChange();
  }

  reset(): void {
    this.pci.reset();
    this.#announced = -1;
    this.#announceChange();
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
  }

  save(): PciHostState {
    assert(this.#paused, 'state is taken while paused');
    return { pci: this.pci.save() };
  }

  load(state: PciHostState): void {
    this.pci.load(state.pci);
    this.#announced = -1;
    this.#announceChange();
  }

  #announceChange(): void {
    if (this.#opening) return;
    const segments = this.segments();
    let bits = 0;
    for (const { readRam, writeRam } of segments) {
      bits = bits * 4 + (readRam ? PAM_READ : 0) + (writeRam ? PAM_WRITE : 0);
    }
    if (bits === this.#announced) return;
    this.#announced = bits;
    this.#onPam(segments);
  }
}

function segment(base: number, sizeBytes: number, nibble: number): PamSegment {
  return {
    base,
    sizeBytes,
    readRam: (nibble & PAM_READ) !== 0,
    writeRam: (nibble & PAM_WRITE) !== 0,
  };
}
