/**
 * What a guest has written to its replicated disks and the standby does not hold yet: a bounded store of data, a queue of done
 * operations in the order in which they were done, and for each the epoch that carries it. The primary's shell seals it at a
 * capture, encodes it behind the pages, and releases it on the ACK; epochs that return put theirs back in front of the next.
 *
 * Data is copied when the guest hands a write over and kept until the ACK (R5: in a fixed number of 4 KiB blocks). Where there
 * is no room the caller waits, and with it the guest. Nothing is allocated per write.
 */
import { assert } from '../../base/assert.ts';
import { DISK_OP, DISK_OP_BYTES, DISK_OPS_VERSION, writeDiskOp } from '../wire/disk-ops.ts';
import { writeSectionHeader } from '../wire/sections.ts';
import { SECTION, SECTION_HEADER_BYTES } from '../wire/spec.ts';

/** All data that waits for its ACK. */
export const DISK_LOG_BYTES = 32 * 2 ** 20;
/** All operations that do. */
export const DISK_LOG_ENTRIES = 8192;
/** Largest write that is taken; larger than any driver sends. */
export const DISK_WRITE_BYTES_MAX = 16 * 2 ** 20;
/** Data of one operation on the wire; longer writes go in several. */
const PIECE_BYTES = 256 * 1024;
/** Largest body that one epoch can have, over all disks. */
export const DISK_EPOCH_BYTES_MAX =
  DISK_LOG_BYTES + (DISK_LOG_ENTRIES + DISK_LOG_BYTES / PIECE_BYTES) * DISK_OP_BYTES;
const BLOCK_BYTES = 4096;
const NO_EPOCH = 0;

/** The CRC-32C of bytes[offset, offset + length), going on from `previous`. */
export type Crc = (bytes: Uint8Array, offset: number, length: number, previous: number) => number;

/** Bounds, smaller in tests. */
export interface DiskLogBounds {
  readonly bytes: number;
  readonly entries: number;
}

/** See the module's head. */
export class DiskLog {
  readonly #crc: Crc;
  readonly #bytes: Uint8Array;
  /** The next block of the same write, or -1. */
  readonly #next: Int32Array;
  #freeBlock = 0;
  #freeBlocks: number;
  // Entries: a slot each, from hold until its release.
  readonly #disk: Uint16Array;
  readonly #op: Uint8Array;
  readonly #offset: Float64Array;
  readonly #length: Float64Array;
  readonly #block: Int32Array;
  readonly #epoch: Float64Array;
  readonly #freeSlots: Uint32Array;
  #freeCount: number;
  // Slots of done operations, in the order in which they were done.
  readonly #queue: Uint32Array;
  #head = 0;
  #count = 0;
  /** Number of the entry at the head, counted since the beginning. */
  #headNumber = 0;
  /** What is being encoded. */
  #encoding = NO_EPOCH;
  #at = 0;
  #within = 0;
  #withinBlock = -1;
  /** Called when room has come back. */
  onRoom: () => void = () => {};

  constructor(
    crc: Crc,
    bounds: DiskLogBounds = { bytes: DISK_LOG_BYTES, entries: DISK_LOG_ENTRIES },
  ) {
    this.#crc = crc;
    const blocks = Math.floor(bounds.bytes / BLOCK_BYTES);
    this.#bytes = new Uint8Array(blocks * BLOCK_BYTES);
    this.#next = new Int32Array(blocks);
    for (let i = 0; i < blocks; i++) this.#next[i] = i + 1 < blocks ? i + 1 : -1;
    this.#freeBlocks = blocks;
    const { entries } = bounds;
    this.#disk = new Uint16Array(entries);
    this.#op = new Uint8Array(entries);
    this.#offset = new Float64Array(entries);
    this.#length = new Float64Array(entries);
    this.#block = new Int32Array(entries);
    this.#epoch = new Float64Array(entries);
    this.#freeSlots = new Uint32Array(entries);
    for (let i = 0; i < entries; i++) this.#freeSlots[i] = i;
    this.#freeCount = entries;
    this.#queue = new Uint32Array(entries);
  }

  /** Operations that are done and wait for their ACK. */
  get count(): number {
    return this.#count;
  }

  /** Bytes of data held, in whole blocks. */
  get heldBytes(): number {
    return this.#bytes.length - this.#freeBlocks * BLOCK_BYTES;
  }

  // --- writes

  /**
   * Room for an operation that is about to be done.
   * @returns its slot, or -1 when there is none now: {@link onRoom} is called when some comes back
   */
  take(disk: number, op: number, offset: number, length: number): number {
    const blocks = op === DISK_OP.write ? Math.ceil(length / BLOCK_BYTES) : 0;
    assert(blocks * BLOCK_BYTES <= this.#bytes.length, 'a write fits into an empty log');
    if (this.#freeCount === 0 || this.#freeBlocks < blocks) return -1;
    const slot = this.#freeSlots[--this.#freeCount]!;
    this.#disk[slot] = disk;
    this.#op[slot] = op;
    this.#offset[slot] = offset;
    this.#length[slot] = length;
    this.#epoch[slot] = NO_EPOCH;
    this.#block[slot] = blocks === 0 ? -1 : this.#freeBlock;
    let last = -1;
    for (let i = 0; i < blocks; i++) {
      last = this.#freeBlock;
      this.#freeBlock = this.#next[last]!;
    }
    if (last >= 0) this.#next[last] = -1;
    this.#freeBlocks -= blocks;
    return slot;
  }

  /**
   * Copies data into a slot from byte `at` of the write on, piece by piece.
   * @param copy puts `length` bytes from byte `from` of the source into `into` at `offset`
   */
  fill(
    slot: number,
    at: number,
    length: number,
    copy: (from: number, into: Uint8Array, offset: number, length: number) => void,
  ): void {
    let block = this.#block[slot]!;
    for (let skip = Math.floor(at / BLOCK_BYTES); skip > 0; skip--) block = this.#next[block]!;
    let within = at % BLOCK_BYTES;
    for (let done = 0; done < length; ) {
      const n = Math.min(length - done, BLOCK_BYTES - within);
      copy(done, this.#bytes, block * BLOCK_BYTES + within, n);
      done += n;
      within += n;
      if (within === BLOCK_BYTES) {
        within = 0;
        block = this.#next[block]!;
      }
    }
  }

  /** The disk has done it: it belongs to the next epoch that is sealed. */
  done(slot: number): void {
    this.#queue[(this.#head + this.#count) % this.#queue.length] = slot;
    this.#count++;
  }

  /** The disk has refused it. */
  drop(slot: number): void {
    this.#free(slot);
    this.onRoom();
  }

  // --- epochs

  /** The guest stands still for the capture of `epoch`: what is done so far and covered by no earlier epoch is its. */
  seal(epoch: number): void {
    for (let i = this.#count - 1; i >= 0; i--) {
      const slot = this.#slotAt(i);
      if (this.#epoch[slot] !== NO_EPOCH) break;
      this.#epoch[slot] = epoch;
    }
  }

  /** Epochs from `epoch` on will not commit: what they carry belongs to the next. */
  returnFrom(epoch: number): void {
    if (this.#encoding >= epoch) this.#encoding = NO_EPOCH;
    for (let i = this.#count - 1; i >= 0; i--) {
      const slot = this.#slotAt(i);
      if (this.#epoch[slot] === NO_EPOCH) continue;
      if (this.#epoch[slot]! < epoch) break;
      this.#epoch[slot] = NO_EPOCH;
    }
  }

  /** The standby holds `epoch` and all before it; `each` hears of what it got. */
  release(
    epoch: number,
    each: (disk: number, offset: number, length: number) => void = () => {},
  ): void {
    let released = false;
    while (this.#count > 0) {
      const covered = this.#epoch[this.#slotAt(0)]!;
      if (covered === NO_EPOCH || covered > epoch) break;
      const slot = this.#slotAt(0);
      each(this.#disk[slot]!, this.#offset[slot]!, this.#length[slot]!);
      this.#pop();
      released = true;
    }
    if (released) this.onRoom();
  }

  /** Forgets everything that is done; `each` learns what the standby will not have heard of. */
  clear(each: (disk: number, offset: number, length: number) => void): void {
    while (this.#count > 0) {
      const slot = this.#slotAt(0);
      each(this.#disk[slot]!, this.#offset[slot]!, this.#length[slot]!);
      this.#pop();
    }
    this.#encoding = NO_EPOCH;
    this.onRoom();
  }

  // --- encoding

  /** Begins to encode what `epoch` carries. One epoch at a time. */
  beginEncoding(epoch: number): void {
    let i = 0;
    while (i < this.#count && this.#epoch[this.#slotAt(i)] !== epoch) i++;
    this.#encoding = epoch;
    this.#at = this.#headNumber + i;
    this.#within = 0;
  }

  /**
   * Puts the next operations of one disk as a section into `out`.
   * @returns bytes written; 0 when all of the epoch has been encoded
   */
  encode(out: Uint8Array): number {
    assert(this.#encoding !== NO_EPOCH, 'an epoch is encoded that has not returned');
    let end = SECTION_HEADER_BYTES;
    let disk = -1;
    for (;;) {
      const i = this.#at - this.#headNumber;
      if (i >= this.#count) break;
      const slot = this.#slotAt(i);
      if (this.#epoch[slot] !== this.#encoding) break;
      if (disk < 0) disk = this.#disk[slot]!;
      else if (disk !== this.#disk[slot]) break;
      const next = this.#encodeOne(slot, out, end);
      if (next < 0) break;
      end = next;
    }
    if (disk < 0) return 0;
    assert(end > SECTION_HEADER_BYTES, 'a chunk holds at least one piece');
    writeSectionHeader(
      out,
      0,
      SECTION.diskWrites,
      DISK_OPS_VERSION,
      disk,
      end - SECTION_HEADER_BYTES,
    );
    return end;
  }

  /** One operation, or as much of it as one piece holds; -1 when there is no room for that. */
  #encodeOne(slot: number, out: Uint8Array, at: number): number {
    const op = this.#op[slot]!;
    const length = this.#length[slot]!;
    const offset = this.#offset[slot]!;
    if (op !== DISK_OP.write) {
      if (at + DISK_OP_BYTES > out.length) return -1;
      this.#at++;
      return writeDiskOp(out, at, op, 0, offset, length);
    }
    const n = Math.min(PIECE_BYTES, length - this.#within);
    if (at + DISK_OP_BYTES + n > out.length) return -1;
    let block = this.#within === 0 ? this.#block[slot]! : this.#withinBlock;
    let to = at + DISK_OP_BYTES;
    for (let left = n; left > 0; ) {
      const piece = Math.min(left, BLOCK_BYTES);
      const from = block * BLOCK_BYTES;
      out.set(this.#bytes.subarray(from, from + piece), to);
      to += piece;
      left -= piece;
      block = this.#next[block]!;
    }
    const data = at + DISK_OP_BYTES;
    writeDiskOp(out, at, op, this.#crc(out, data, n, 0), offset + this.#within, n);
    this.#within += n;
    this.#withinBlock = block;
    if (this.#within === length) {
      this.#within = 0;
      this.#at++;
    }
    return to;
  }

  // --- inside

  #slotAt(i: number): number {
    return this.#queue[(this.#head + i) % this.#queue.length]!;
  }

  #pop(): void {
    this.#free(this.#slotAt(0));
    this.#head = (this.#head + 1) % this.#queue.length;
    this.#count--;
    this.#headNumber++;
  }

  #free(slot: number): void {
    let block = this.#block[slot]!;
    while (block >= 0) {
      const next = this.#next[block]!;
      this.#next[block] = this.#freeBlock;
      this.#freeBlock = block;
      this.#freeBlocks++;
      block = next;
    }
    this.#freeSlots[this.#freeCount++] = slot;
  }
}
