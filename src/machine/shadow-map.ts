/**
 * The area from 768 KiB to 1 MiB, which the host bridge's PAM registers steer segment by segment between ROM and
 * RAM (82441FX, 3.2.18): RAM, write-protected RAM, ROM, or nothing. Neighbours that are steered alike share one KVM memory
 * slot, since KVM waits for all vCPUs at each change of a slot.
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

/** What KVM shows of a segment. */
type Kind = 'ram' | 'ram-readonly' | 'rom' | 'none';

/** Segments [first, end) that are steered alike, in the slot of the first one. */
interface Run {
  readonly first: number;
  readonly end: number;
  readonly kind: Kind;
}

function sameRun(a: Run, b: Run): boolean {
  return a.first === b.first && a.end === b.end && a.kind === b.kind;
}

/** The steering of the shadow area. */
export class ShadowMap {
  readonly #source: ShadowSource;
  #mapped: readonly Run[] = [];
  #logging = false;

  constructor(source: ShadowSource) {
    assert(source.ram.byteLength >= SHADOW_END, 'RAM covers the shadow area');
    this.#source = source;
  }

  /** Steers all segments; what stays as it is is not touched. The vCPU whose access steers them stands still meanwhile. */
  steer(segments: readonly SegmentAccess[]): void {
    assert(segments.length === SHADOW_SEGMENTS.length, 'every segment is steered');
    const { vm, firstSlot } = this.#source;
    const wanted: Run[] = [];
    for (const [first, access] of segments.entries()) {
      const kind = this.#kindOf(first, access);
      const last = wanted.at(-1);
      if (last?.kind === kind) wanted[wanted.length - 1] = { ...last, end: first + 1 };
      else wanted.push({ first, end: first + 1, kind });
    }
    const before = this.#mapped;
    this.#mapped = wanted.filter(({ kind }) => kind !== 'none');
    for (const run of before) {
      if (!this.#mapped.some((other) => sameRun(run, other))) vm.unmapSlot(firstSlot + run.first);
    }
    for (const run of this.#mapped) {
      if (!before.some((other) => sameRun(run, other))) this.#map(run);
    }
  }

  #kindOf(index: number, { readRam, writeRam }: SegmentAccess): Kind {
    // Reads from ROM with writes to RAM cannot be had from KVM; firmware uses it only for a moment while it
    // copies itself, with source and target in different segments, so RAM serves both then.
    if (writeRam) return 'ram';
    if (readRam) return 'ram-readonly';
    return this.#romOffset(index) >= 0 ? 'rom' : 'none';
  }

  #romOffset(index: number): number {
    const { rom } = this.#source;
    return rom === undefined ? -1 : rom.byteLength - (SHADOW_END - SHADOW_SEGMENTS[index]!.base);
  }

  #map({ first, end, kind }: Run): void {
    const { vm, firstSlot, ram, rom } = this.#source;
    const guestPhys = SHADOW_SEGMENTS[first]!.base;
    const last = SHADOW_SEGMENTS[end - 1]!;
    const slot = firstSlot + first;
    vm.mapAlias({
      slot,
      guestPhys,
      sizeBytes: last.base + last.size - guestPhys,
      buffer: kind === 'rom' ? rom! : ram,
      offset: kind === 'rom' ? this.#romOffset(first) : guestPhys,
      readonly: kind !== 'ram',
    });
    if (kind === 'ram' && this.#logging) vm.setDirtyLog(slot, true);
  }

  /** Turns dirty logging of the RAM segments on or off, now and for later steering. */
  setDirtyLog(on: boolean): void {
    this.#logging = on;
    for (const { first, kind } of this.#mapped) {
      if (kind === 'ram') this.#source.vm.setDirtyLog(this.#source.firstSlot + first, on);
    }
  }
}
