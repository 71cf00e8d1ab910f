/**
 * The area from 768 KiB to 1 MiB, which the host bridge's PAM registers steer segment by segment between ROM and
 * RAM (82441FX, 3.2.18). Each segment is one KVM memory slot: RAM, write-protected RAM, ROM, or nothing.
 */
import { assert } from '../base/assert.ts';
import type { KvmVm } from '../kvm/api.ts';
import { SHADOW_BASE, SHADOW_END } from './layout.ts';

/** How a segment is steered: where reads go, and whether writes reach RAM. */
export interface SegmentAccess {
  /** True: reads come from RAM; false: from ROM (or all ones where there is none). */
  readonly readRam: boolean;
  readonly writeRam: boolean;
}

/** Segment boundaries: twelve of 16 KiB, then the 64 KiB of the system BIOS. */
export const SHADOW_SEGMENTS: readonly { readonly base: number; readonly size: number }[] = [
  ...Array.from({ length: 12 }, (_, i) => ({ base: SHADOW_BASE + i * 0x4000, size: 0x4000 })),
  { base: 0xf_0000, size: 0x1_0000 },
];

/** What the map is made of. */
export interface ShadowSource {
  readonly vm: KvmVm;
  /** First of as many free KVM slots as there are segments. */
  readonly firstSlot: number;
  /** RAM from guest-physical 0 on; at least 1 MiB. */
  readonly ram: ArrayBuffer;
  /** Firmware image whose end lies at 1 MiB when it shows in the area. */
  readonly rom: ArrayBuffer | undefined;
}

/** The steering of the shadow area. */
export class ShadowMap {
  readonly #source: ShadowSource;
  readonly #current: (string | undefined)[] = SHADOW_SEGMENTS.map(() => undefined);

  constructor(source: ShadowSource) {
    assert(source.ram.byteLength >= SHADOW_END, 'RAM covers the shadow area');
    this.#source = source;
  }

  /** Steers segment `index`; cheap when nothing changes. */
  set(index: number, access: SegmentAccess): void {
    const { vm, firstSlot, ram, rom } = this.#source;
    const segment = SHADOW_SEGMENTS[index]!;
    const romOffset = rom === undefined ? -1 : rom.byteLength - (SHADOW_END - segment.base);
    // Reads from ROM with writes to RAM cannot be had from KVM; firmware uses it only for a moment while it
    // copies itself, with source and target in different segments, so RAM serves both then.
    const kind = access.readRam
      ? access.writeRam
        ? 'ram'
        : 'ram-readonly'
      : access.writeRam
        ? 'ram'
        : romOffset >= 0
          ? 'rom'
          : 'none';
    if (this.#current[index] === kind) return;
    const slot = firstSlot + index;
    if (this.#current[index] !== undefined && this.#current[index] !== 'none') vm.unmapSlot(slot);
    this.#current[index] = kind;
    if (kind === 'none') return;
    vm.mapAlias({
      slot,
      guestPhys: segment.base,
      sizeBytes: segment.size,
      buffer: kind === 'rom' ? rom! : ram,
      offset: kind === 'rom' ? romOffset : segment.base,
      readonly: kind !== 'ram',
    });
    if (kind === 'ram' && this.#logging) vm.setDirtyLog(slot, true);
  }

  #logging = false;

  /** Turns dirty logging of the RAM segments on or off, now and for later steering. */
  setDirtyLog(on: boolean): void {
    this.#logging = on;
    for (const [index, kind] of this.#current.entries()) {
      if (kind === 'ram') this.#source.vm.setDirtyLog(this.#source.firstSlot + index, on);
    }
  }
}
