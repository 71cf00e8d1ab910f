/**
 * Which parts of a disk differ, or have to be copied: one bit for each granule of 64 KiB. Used while a standby's copy is
 * brought up to date, and for what a survivor writes alone.
 */

/** The unit in which differences are kept: small enough that a scattered guest does not resend much, 2 MiB of bits per TiB. */
export const GRANULE_BYTES = 64 * 1024;

/** See the module's head. */
export class Granules {
  /** Of the disk. */
  readonly sizeBytes: number;
  /** Of a granule. */
  readonly unitBytes: number;
  /** Granules in all. */
  readonly total: number;
  readonly #words: Uint32Array;
  #count = 0;

  /** @param unitBytes of a granule; other than {@link GRANULE_BYTES} only where small disks are simulated */
  constructor(sizeBytes: number, unitBytes = GRANULE_BYTES) {
    this.sizeBytes = sizeBytes;
    this.unitBytes = unitBytes;
    this.total = Math.ceil(sizeBytes / unitBytes);
    this.#words = new Uint32Array(Math.ceil(this.total / 32));
  }

  /** How many are marked. */
  get count(): number {
    return this.#count;
  }

  /** Bytes that are marked, at most. */
  get bytes(): number {
    return Math.min(this.#count * this.unitBytes, this.sizeBytes);
  }

  has(granule: number): boolean {
    return ((this.#words[granule >>> 5]! >>> (granule & 31)) & 1) === 1;
  }

  /** Marks every granule that [offset, offset + length) touches. */
  mark(offset: number, length: number): void {
    if (length <= 0) return;
    const { unitBytes } = this;
    const last = Math.min(Math.floor((offset + length - 1) / unitBytes), this.total - 1);
    for (let g = Math.floor(offset / unitBytes); g <= last; g++) this.set(g);
  }

  set(granule: number): void {
    const bit = 1 << (granule & 31);
    const word = this.#words[granule >>> 5]!;
    if ((word & bit) !== 0) return;
    this.#words[granule >>> 5] = word | bit;
    this.#count++;
  }

  unset(granule: number): void {
    const bit = 1 << (granule & 31);
    const word = this.#words[granule >>> 5]!;
    if ((word & bit) === 0) return;
    this.#words[granule >>> 5] = word & ~bit;
    this.#count--;
  }

  fill(): void {
    this.mark(0, this.sizeBytes);
  }

  clear(): void {
    this.#words.fill(0);
    this.#count = 0;
  }

  /** The first marked granule at or behind `from`, or -1. */
  next(from: number): number {
    for (let w = from >>> 5; w < this.#words.length; w++) {
      let word = this.#words[w]!;
      if (w === from >>> 5) word &= -1 << (from & 31);
      if (word !== 0) return w * 32 + 31 - Math.clz32(word & -word);
    }
    return -1;
  }

  /** One past the run of marked granules that begins at `from`, at most `limit`. */
  runEnd(from: number, limit: number): number {
    let end = from;
    const stop = Math.min(limit, this.total);
    while (end < stop && this.has(end)) end++;
    return end;
  }

  /** Adds what `other` marks. Both are of disks of one size, in one unit. */
  merge(other: Granules): void {
    for (let g = other.next(0); g >= 0; g = other.next(g + 1)) this.set(g);
  }

  /** The bits, least significant first, as they are persisted. A copy. */
  toBytes(): Uint8Array {
    return new Uint8Array(this.#words.slice().buffer);
  }

  /** Takes bits that {@link toBytes} gave. */
  fromBytes(bytes: Uint8Array): void {
    this.clear();
    for (let g = 0; g < this.total; g++) {
      if (((bytes[g >>> 3]! >>> (g & 7)) & 1) === 1) this.set(g);
    }
  }
}
