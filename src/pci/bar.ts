/**
 * One base address register: its bits in configuration space, and the mapping of its region on a bus while the
 * guest has decoding on and a usable address in it (PCI 3.0, 6.2.5.1; expansion ROM 6.2.5.2).
 */
import { assert } from '../base/assert.ts';
import { isPowerOfTwo } from '../base/bits.ts';
import type { IoBus, IoRegion, Mapping } from '../bus/io-bus.ts';
import { PCI_COMMAND, PCI_REG } from './spec.ts';

/** Which address space a BAR decodes, and how wide it is. */
export type BarKind = 'mem32' | 'mem64' | 'io';

/** What a device gives for one BAR. */
export interface BarOptions {
  /** 0 to 5; a mem64 BAR takes the next index too. */
  readonly index: number;
  readonly kind: BarKind;
  /** A power of two; at least 16 for memory, 4 to 256 for I/O. */
  readonly sizeBytes: number;
  readonly prefetchable?: boolean;
  readonly region: IoRegion;
  /** Called after the region has moved, with its address or undefined when it is not decoded. */
  readonly moved?: (base: number | undefined) => void;
}

/** Addresses at and above this are not decoded; no processor reaches them. */
const ADDRESS_LIMIT = 2 ** 52;
const ROM_INDEX = 6;

export class Bar {
  readonly index: number;
  readonly kind: BarKind;
  readonly sizeBytes: number;
  readonly prefetchable: boolean;
  readonly isRom: boolean;
  readonly #region: IoRegion;
  readonly #moved: ((base: number | undefined) => void) | undefined;
  #mapping: Mapping | undefined;

  constructor(name: string, options: BarOptions, isRom = false) {
    const { index, kind, sizeBytes } = options;
    assert(isPowerOfTwo(sizeBytes), `${name}: BAR ${index} is a power of two`);
    const smallest = kind === 'io' ? 4 : 16;
    const largest = kind === 'io' ? 256 : kind === 'mem32' ? 2 ** 31 : 2 ** 40;
    assert(sizeBytes >= smallest && sizeBytes <= largest, `${name}: BAR ${index} has a legal size`);
    this.index = index;
    this.kind = kind;
    this.sizeBytes = sizeBytes;
    this.prefetchable = options.prefetchable ?? false;
    this.isRom = isRom;
    this.#region = options.region;
    this.#moved = options.moved;
  }

  /** The BAR of an expansion ROM that holds `content`. */
  static rom(name: string, content: Uint8Array): Bar {
    let sizeBytes = 2048;
    while (sizeBytes < content.length) sizeBytes *= 2;
    return new Bar(
      name,
      { index: ROM_INDEX, kind: 'mem32', sizeBytes, region: romRegion(`${name} rom`, content) },
      true,
    );
  }

  /** How many of the six registers it takes. */
  get registers(): number {
    return this.kind === 'mem64' ? 2 : 1;
  }

  /** Its offset in configuration space. */
  get register(): number {
    return this.isRom ? PCI_REG.rom : PCI_REG.bar0 + 4 * this.index;
  }

  /** The read-only low bits. */
  get typeBits(): number {
    if (this.isRom) return 0;
    if (this.kind === 'io') return 1;
    return (this.kind === 'mem64' ? 4 : 0) | (this.prefetchable ? 8 : 0);
  }

  /** Writable bits of the (low) register. */
  get writableLow(): number {
    if (this.isRom) return (-this.sizeBytes | 1) >>> 0;
    return this.sizeBytes >= 2 ** 32 ? 0 : -this.sizeBytes >>> 0;
  }

  /** Writable bits of the upper register of a 64-bit BAR. */
  get writableHigh(): number {
    return this.sizeBytes > 2 ** 32 ? -(this.sizeBytes / 2 ** 32) >>> 0 : 0xffffffff;
  }

  /** Where it is mapped now; undefined while it is not decoded. */
  get base(): number | undefined {
    return this.#mapping?.base;
  }

  /** Makes the mapping agree with the registers. */
  update(
    config: Uint8Array,
    command: number,
    place: { readonly mmio: IoBus; readonly ports: IoBus; readonly rank: number },
  ): void {
    const base = this.#decoded(config, command);
    if (base === this.base) return;
    this.#mapping?.unmap();
    this.#mapping =
      base === undefined
        ? undefined
        : (this.kind === 'io' ? place.ports : place.mmio).map(
            base,
            this.sizeBytes,
            this.#region,
            place.rank + this.index,
          );
    this.#moved?.(base);
  }

  #decoded(config: Uint8Array, command: number): number | undefined {
    const io = this.kind === 'io';
    if ((command & (io ? PCI_COMMAND.io : PCI_COMMAND.memory)) === 0) return undefined;
    const at = this.register;
    const low =
      (config[at]! | (config[at + 1]! << 8) | (config[at + 2]! << 16) | (config[at + 3]! << 24)) >>>
      0;
    if (this.isRom && (low & 1) === 0) return undefined;
    let base = (low & this.writableLow & (this.isRom ? ~1 : ~0)) >>> 0;
    // All ones is a guest that asks for the size, not an address; 0 is what power-on leaves.
    let sizing = base === (this.writableLow & (this.isRom ? ~1 : ~0)) >>> 0 && !io;
    if (this.kind === 'mem64') {
      const high = config.subarray(at + 4, at + 8);
      const top = (high[0]! | (high[1]! << 8) | (high[2]! << 16) | (high[3]! << 24)) >>> 0;
      sizing = sizing && top === 0;
      base += top * 2 ** 32;
    }
    const limit = io ? 0x1_0000 : ADDRESS_LIMIT;
    if (base === 0 || sizing || base + this.sizeBytes > limit) return undefined;
    return base;
  }
}

/** A region that answers reads from `content` (all ones behind its end) and drops writes. */
export function romRegion(name: string, content: Uint8Array): IoRegion {
  return {
    name,
    read(offset, size) {
      let value = 0;
      for (let i = 0; i < size; i++) value |= (content[offset + i] ?? 0xff) << (8 * i);
      return value >>> 0;
    },
    write() {},
  };
}
