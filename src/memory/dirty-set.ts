/**
 * Pages that the VMM itself wrote (device DMA, loaders): KVM's dirty log never holds those, so they are
 * collected here and merged with the log at harvest. Page numbers are guest frame numbers (address >> 12).
 * The words live in a `bitset` set; only whole words are touched, never its per-bit iterator.
 */
import BitSet from 'bitset';

/** log2 of the page size that dirty tracking uses (4 KiB). */
export const PAGE_SHIFT = 12;
/** The page size that dirty tracking uses, bytes. */
export const PAGE_SIZE = 4096;

/** A set of guest frame numbers. */
export class DirtySet {
  readonly #words: number[];
  #lowWord = Number.POSITIVE_INFINITY;
  #highWord = -1;

  /** @param frames one more than the highest frame number that will be marked */
  constructor(frames: number) {
    const set = new BitSet();
    if (frames > 0) set.set(frames - 1, 1).set(frames - 1, 0);
    this.#words = set.data;
    while (this.#words.length < Math.ceil(frames / 32)) this.#words.push(0);
  }

  /** Whether nothing is marked. */
  get empty(): boolean {
    return this.#highWord < 0;
  }

  /** Marks every page that [address, address + length) touches; `length` 0 marks nothing. */
  mark(address: number, length: number): void {
    if (length <= 0) return;
    const first = Math.floor(address / PAGE_SIZE);
    const last = Math.floor((address + length - 1) / PAGE_SIZE);
    const words = this.#words;
    for (let frame = first; frame <= last; frame++) {
      const index = frame >>> 5;
      words[index] = words[index]! | (1 << (frame & 31)) | 0;
    }
    const low = first >>> 5;
    const high = last >>> 5;
    if (low < this.#lowWord) this.#lowWord = low;
    if (high > this.#highWord) this.#highWord = high;
  }

  /** Whether `frame` is marked. */
  has(frame: number): boolean {
    return ((this.#words[frame >>> 5] ?? 0) & (1 << (frame & 31))) !== 0;
  }

  /**
   * Writes the marked frame numbers, ascending, into `out` from `at` on, and unmarks them.
   * @returns how many were written; when `out` is full the rest stays marked
   */
  takeInto(out: Uint32Array, at = 0): number {
    let count = 0;
    const words = this.#words;
    for (let index = this.#lowWord; index <= this.#highWord; index++) {
      let word = words[index]!;
      while (word !== 0) {
        if (at + count >= out.length) {
          words[index] = word;
          this.#lowWord = index;
          return count;
        }
        const bit = 31 - Math.clz32(word & -word);
        out[at + count++] = index * 32 + bit;
        word &= word - 1;
      }
      words[index] = 0;
    }
    this.clear();
    return count;
  }

  /** ORs the set into bitmap words (bit n of word w is frame 32 w + n) and unmarks everything. */
  mergeInto(bitmap: Uint32Array): void {
    for (let index = this.#lowWord; index <= this.#highWord; index++) {
      bitmap[index]! |= this.#words[index]!;
    }
    this.clear();
  }

  /** Unmarks everything. */
  clear(): void {
    for (let index = this.#lowWord; index <= this.#highWord; index++) this.#words[index] = 0;
    this.#lowWord = Number.POSITIVE_INFINITY;
    this.#highWord = -1;
  }
}
