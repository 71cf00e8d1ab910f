/**
 * One descriptor chain, flattened: guest-physical segments, first those that the device reads, then those that it
 * writes (VIRTIO 1.2, 2.7.4.2). Filled by `VirtQueue.pop` and reused for the next chain: who pops borrows it until
 * the next pop. All segments are RAM when it has been filled.
 */
import type { GuestMemory } from '../memory/guest-memory.ts';

/** Most segments of one chain; a longer one is a fault of the guest. */
export const CHAIN_MAX_SEGMENTS = 1024;

/** What collects segments of guest memory. */
export interface TailTarget {
  addTail(address: number, length: number): void;
}

export class Chain {
  readonly addresses = new Float64Array(CHAIN_MAX_SEGMENTS);
  readonly lengths = new Uint32Array(CHAIN_MAX_SEGMENTS);
  /** Index of the first descriptor: names the chain towards the driver. */
  head = 0;
  /** Segments [0, readable) are the device's to read. */
  readable = 0;
  /** Segments [readable, count) are the device's to write. */
  count = 0;
  // Sums of 32-bit lengths may need a double; in a typed array that is never a boxed one.
  readonly #bytes = new Float64Array(2);

  /** Bytes in the readable part. */
  get readableBytes(): number {
    return this.#bytes[0]!;
  }

  /** Bytes in the writable part. */
  get writableBytes(): number {
    return this.#bytes[1]!;
  }

  /** Appends a segment; readable ones first, at most {@link CHAIN_MAX_SEGMENTS} in all. */
  add(address: number, length: number, write: boolean): void {
    this.addresses[this.count] = address;
    this.lengths[this.count] = length;
    this.count++;
    if (write) {
      this.#bytes[1]! += length;
    } else {
      this.readable++;
      this.#bytes[0]! += length;
    }
  }

  /** Empties it. */
  clear(head: number): void {
    this.head = head;
    this.readable = 0;
    this.count = 0;
    this.#bytes[0] = 0;
    this.#bytes[1] = 0;
  }

  /**
   * Copies up to `length` bytes of the readable part, from byte `skip` on, to `out[at...]`.
   * @returns how many were there
   */
  read(memory: GuestMemory, skip: number, out: Uint8Array, at: number, length: number): number {
    return this.#copy(memory, 0, this.readable, skip, out, at, length, false);
  }

  /**
   * Copies `source[at, at + length)` into the writable part from byte `skip` on.
   * @returns how many fitted
   */
  write(memory: GuestMemory, skip: number, source: Uint8Array, at: number, length: number): number {
    return this.#copy(memory, this.readable, this.count, skip, source, at, length, true);
  }

  /** Lets the last entry of `batch` go on with the readable part from byte `skip` on. */
  tailInto(batch: TailTarget, skip: number): void {
    let before = skip;
    for (let i = 0; i < this.readable; i++) {
      const segment = this.lengths[i]!;
      if (before < segment) {
        batch.addTail(this.addresses[i]! + before, segment - before);
        before = 0;
      } else {
        before -= segment;
      }
    }
  }

  /** Where byte `skip` of the writable part is; it must be there. */
  writableAt(skip: number): number {
    let before = skip;
    let i = this.readable;
    while (before >= this.lengths[i]!) before -= this.lengths[i++]!;
    return this.addresses[i]! + before;
  }

  #copy(
    memory: GuestMemory,
    first: number,
    end: number,
    skip: number,
    bytes: Uint8Array,
    at: number,
    length: number,
    toGuest: boolean,
  ): number {
    let left = length;
    let offset = at;
    let before = skip;
    for (let i = first; i < end && left > 0; i++) {
      const segment = this.lengths[i]!;
      if (before >= segment) {
        before -= segment;
        continue;
      }
      const n = Math.min(left, segment - before);
      const address = this.addresses[i]! + before;
      before = 0;
      if (toGuest) memory.write(address, bytes, offset, n);
      else memory.read(address, bytes, offset, n);
      offset += n;
      left -= n;
    }
    return length - left;
  }
}
