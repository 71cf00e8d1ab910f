/**
 * Guest memory as the VMM reads and writes it: RAM ranges at guest-physical addresses, each one ArrayBuffer
 * of at most 2 GiB. Addresses are Numbers below 2^53. Every write marks the dirty set. Used by loaders,
 * rings and device DMA; which ranges the CPU sees, and how, is the board's business.
 *
 * The scalar accessors assert that the address is RAM: callers that take an address from the guest ask
 * {@link GuestMemory.contains} first (for a ring: once, when the guest enables it).
 */
import { AssertionError, assert } from '../base/assert.ts';
import { hex } from '../base/bits.ts';
import { DirtySet, PAGE_SIZE } from './dirty-set.ts';

/** The most one range can hold: reads at index 2^32 and above are slow on Node 24. */
export const MAX_RANGE_BYTES = 2 ** 31;

/** One contiguous piece of RAM. */
export interface MemoryRange {
  /** Guest-physical address of the first byte. */
  readonly base: number;
  /** One past the last byte. */
  readonly end: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

/** A piece of RAM to build a {@link GuestMemory} from; `base` and the length are multiples of 4 KiB. */
export interface MemoryRangeInit {
  readonly base: number;
  readonly buffer: ArrayBuffer;
}

export class GuestMemory {
  readonly ranges: readonly MemoryRange[];
  /** Pages written through this object, or marked by whoever wrote them natively. */
  readonly dirty: DirtySet;
  #last: MemoryRange;

  /** @param init ascending, not overlapping, at least one */
  constructor(init: readonly MemoryRangeInit[]) {
    assert(init.length > 0, 'guest memory has at least one range');
    let previousEnd = 0;
    this.ranges = init.map(({ base, buffer }) => {
      const end = base + buffer.byteLength;
      assert(base >= previousEnd, 'memory ranges ascend and do not overlap');
      assert(base % PAGE_SIZE === 0 && end % PAGE_SIZE === 0, 'memory ranges are page aligned');
      assert(buffer.byteLength <= MAX_RANGE_BYTES, 'a memory range is at most 2 GiB');
      previousEnd = end;
      return { base, end, bytes: new Uint8Array(buffer), view: new DataView(buffer) };
    });
    this.dirty = new DirtySet(previousEnd / PAGE_SIZE);
    this.#last = this.ranges[0]!;
  }

  /** Bytes of RAM in all. */
  get totalBytes(): number {
    return this.ranges.reduce((sum, range) => sum + range.bytes.length, 0);
  }

  /** The range that holds all of [address, address + length), or undefined. */
  rangeOf(address: number, length: number): MemoryRange | undefined {
    const last = this.#last;
    if (address >= last.base && address + length <= last.end) return last;
    for (const range of this.ranges) {
      if (address >= range.base && address + length <= range.end) {
        this.#last = range;
        return range;
      }
    }
    return undefined;
  }

  /** Whether every byte of [address, address + length) is RAM (it may cross from one range into the next). */
  contains(address: number, length: number): boolean {
    // Beyond 2^53 the sum below would round back to the address and look like an end that was reached.
    if (!(address >= 0 && length >= 0 && address + length <= Number.MAX_SAFE_INTEGER)) return false;
    if (this.rangeOf(address, length) !== undefined) return true;
    let at = address;
    const end = address + length;
    for (const range of this.ranges) {
      if (at >= range.base && at < range.end) at = Math.min(end, range.end);
    }
    return at === end && length > 0;
  }

  #must(address: number, length: number): MemoryRange {
    const range = this.rangeOf(address, length);
    // Not assert(): its message would be built at every access.
    if (range === undefined) {
      throw new AssertionError(`guest address ${hex(address)}+${length} is not RAM`);
    }
    return range;
  }

  readU8(address: number): number {
    const range = this.#must(address, 1);
    return range.bytes[address - range.base]!;
  }

  /** Little-endian, as all below. A scalar never crosses two ranges (ranges are page aligned; keep scalars aligned). */
  readU16(address: number): number {
    const range = this.#must(address, 2);
    return range.view.getUint16(address - range.base, true);
  }

  readU32(address: number): number {
    const range = this.#must(address, 4);
    return range.view.getUint32(address - range.base, true);
  }

  /** A 64-bit value as a Number; values above 2^53 lose low bits (they are no valid address or length). */
  readU64(address: number): number {
    const range = this.#must(address, 8);
    const offset = address - range.base;
    return (
      range.view.getUint32(offset + 4, true) * 0x1_0000_0000 + range.view.getUint32(offset, true)
    );
  }

  writeU8(address: number, value: number): void {
    const range = this.#must(address, 1);
    range.bytes[address - range.base] = value;
    this.dirty.mark(address, 1);
  }

  writeU16(address: number, value: number): void {
    const range = this.#must(address, 2);
    range.view.setUint16(address - range.base, value, true);
    this.dirty.mark(address, 2);
  }

  writeU32(address: number, value: number): void {
    const range = this.#must(address, 4);
    range.view.setUint32(address - range.base, value, true);
    this.dirty.mark(address, 4);
  }

  /** @param value a non-negative integer below 2^53 */
  writeU64(address: number, value: number): void {
    const range = this.#must(address, 8);
    const offset = address - range.base;
    range.view.setUint32(offset, value % 0x1_0000_0000, true);
    range.view.setUint32(offset + 4, Math.floor(value / 0x1_0000_0000), true);
    this.dirty.mark(address, 8);
  }

  /**
   * Copies guest memory into `out[offset, offset + length)`.
   * @returns false (and `out` may be partly written) when a byte of the source is not RAM
   */
  read(
    address: number,
    out: Uint8Array,
    offset = 0,
    length: number = out.length - offset,
  ): boolean {
    return this.#copy(address, out, offset, length, false);
  }

  /**
   * Copies `source[offset, offset + length)` into guest memory and marks it dirty.
   * @returns false when a byte of the target is not RAM; nothing has been written then
   */
  write(
    address: number,
    source: Uint8Array,
    offset = 0,
    length: number = source.length - offset,
  ): boolean {
    return this.#copy(address, source, offset, length, true);
  }

  /** Sets [address, address + length) to `value`; false when it is not all RAM. */
  fill(address: number, length: number, value: number): boolean {
    if (!this.contains(address, length)) return false;
    let at = address;
    let left = length;
    while (left > 0) {
      const range = this.#must(at, 1);
      const n = Math.min(left, range.end - at);
      range.bytes.fill(value, at - range.base, at - range.base + n);
      at += n;
      left -= n;
    }
    this.dirty.mark(address, length);
    return true;
  }

  #copy(
    address: number,
    other: Uint8Array,
    offset: number,
    length: number,
    toGuest: boolean,
  ): boolean {
    assert(offset >= 0 && offset + length <= other.length, 'copy stays inside the host buffer');
    if (length === 0) return true;
    if (!this.contains(address, length)) return false;
    let at = address;
    let from = offset;
    let left = length;
    while (left > 0) {
      const range = this.#must(at, 1);
      const n = Math.min(left, range.end - at);
      const start = at - range.base;
      if (n <= 64) {
        // Short copies: a loop is cheaper than making two subarrays.
        if (toGuest) for (let i = 0; i < n; i++) range.bytes[start + i] = other[from + i]!;
        else for (let i = 0; i < n; i++) other[from + i] = range.bytes[start + i]!;
      } else if (toGuest) {
        range.bytes.set(other.subarray(from, from + n), start);
      } else {
        other.set(range.bytes.subarray(start, start + n), from);
      }
      at += n;
      from += n;
      left -= n;
    }
    if (toGuest) this.dirty.mark(address, length);
    return true;
  }
}
