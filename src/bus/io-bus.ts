/**
 * The port bus and the memory-mapped I/O bus: who answers at which address, and what an access looks like
 * by the time a device sees it. The bus, not the device, splits wide or straddling accesses and decides what
 * nobody's address reads as (all ones). Map changes are rare, look-ups are a binary search.
 */
import { assert } from '../base/assert.ts';
import { sizeMask } from '../base/bits.ts';

/** Width of one access as a region sees it, bytes. */
export type AccessSize = 1 | 2 | 4;

/**
 * Something that answers reads and writes at offsets from wherever it is mapped. Both methods get offsets
 * inside the region, and values that fit the size (unsigned). They never throw for what a guest does.
 */
export interface IoRegion {
  /** For messages and traces. */
  readonly name: string;
  /** The widest access that the region understands; the bus splits wider ones, low part first. Default 4. */
  readonly maxAccess?: AccessSize;
  read(offset: number, size: AccessSize): number;
  write(offset: number, size: AccessSize, value: number): void;
}

/** A region's place on a bus. */
export interface Mapping {
  readonly base: number;
  readonly length: number;
  readonly region: IoRegion;
  /** Who answers where mappings overlap: the lower rank. */
  readonly rank: number;
  /** Takes the region off the bus; a second call does nothing. */
  unmap(): void;
}

interface Span {
  readonly start: number;
  readonly end: number;
  readonly base: number;
  readonly region: IoRegion;
}

/** One address space of regions. */
export class IoBus {
  readonly name: string;
  #mappings: Mapping[] = [];
  #spans: Span[] = [];
  #last: Span | undefined;

  constructor(name: string) {
    this.name = name;
  }

  /**
   * Puts `region` at [base, base + length). Where regions overlap (a guest may move a BAR onto another device) the one
   * of the lower `rank` answers, of the same rank the one mapped first; the other shows where that is taken off. What a
   * guest moves has ranks of its own: the order of its moves is in no saved state, and must not matter after a restore.
   */
  map(base: number, length: number, region: IoRegion, rank = 0): Mapping {
    assert(base >= 0 && length > 0, `${region.name}: mapping has a length`);
    const mapping: Mapping = {
      base,
      length,
      region,
      rank,
      unmap: () => {
        this.#mappings = this.#mappings.filter((other) => other !== mapping);
        this.#rebuild();
      },
    };
    const behind = this.#mappings.findIndex((other) => other.rank > rank);
    this.#mappings.splice(behind < 0 ? this.#mappings.length : behind, 0, mapping);
    this.#rebuild();
    return mapping;
  }

  /** The mappings, by rank and then in the order they were made. */
  get mappings(): readonly Mapping[] {
    return this.#mappings;
  }

  /**
   * A read of `size` bytes (1, 2, 4) at `address`. Parts that nobody answers read as all ones.
   * @returns the value, unsigned
   */
  read(address: number, size: AccessSize): number {
    const span = this.#find(address);
    if (span === undefined && this.#none(address, size)) return sizeMask(size);
    if (span !== undefined && address + size <= span.end && size <= (span.region.maxAccess ?? 4)) {
      return (span.region.read(address - span.base, size) & sizeMask(size)) >>> 0;
    }
    const part = this.#partSize(span, address, size);
    let value = 0;
    for (let i = 0; i < size; i += part) {
      const piece = part === size ? 0xff : this.read(address + i, part);
      value |= piece << (8 * i);
    }
    return value >>> 0;
  }

  /** A write of `size` bytes (1, 2, 4) at `address`; what nobody answers is dropped. */
  write(address: number, size: AccessSize, value: number): void {
    const span = this.#find(address);
    if (span === undefined && this.#none(address, size)) return;
    if (span !== undefined && address + size <= span.end && size <= (span.region.maxAccess ?? 4)) {
      span.region.write(address - span.base, size, (value & sizeMask(size)) >>> 0);
      return;
    }
    const part = this.#partSize(span, address, size);
    if (part === size) return;
    for (let i = 0; i < size; i += part) {
      this.write(address + i, part, ((value >>> (8 * i)) & sizeMask(part)) >>> 0);
    }
  }

  #partSize(span: Span | undefined, address: number, size: AccessSize): AccessSize {
    if (span === undefined || address + size > span.end) return 1;
    const widest = span.region.maxAccess ?? 4;
    return widest < size ? widest : 1;
  }

  /** Whether no byte of the access has an owner (the first is known to have none). */
  #none(address: number, size: number): boolean {
    for (let i = 1; i < size; i++) if (this.#find(address + i) !== undefined) return false;
    return true;
  }

  #find(address: number): Span | undefined {
    const last = this.#last;
    if (last !== undefined && address >= last.start && address < last.end) return last;
    const spans = this.#spans;
    let low = 0;
    let high = spans.length - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const span = spans[middle]!;
      if (address < span.start) high = middle - 1;
      else if (address >= span.end) low = middle + 1;
      else {
        this.#last = span;
        return span;
      }
    }
    return undefined;
  }

  #rebuild(): void {
    this.#last = undefined;
    const spans: Span[] = [];
    for (const { base, length, region } of this.#mappings) {
      let free = [{ start: base, end: base + length }];
      for (const taken of spans) {
        free = free.flatMap(({ start, end }) =>
          taken.end <= start || taken.start >= end
            ? [{ start, end }]
            : [
                { start, end: Math.min(end, taken.start) },
                { start: Math.max(start, taken.end), end },
              ].filter((piece) => piece.start < piece.end),
        );
      }
      for (const piece of free) spans.push({ ...piece, base, region });
    }
    this.#spans = spans.sort((a, b) => a.start - b.start);
  }
}
