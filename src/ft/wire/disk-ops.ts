/**
 * Bodies of the sections `diskWrites` (what an epoch does to a replicated disk) and `diskCopy` (a piece of its first copy):
 * operations in the order in which they are to be done, one behind the other.
 *
 *   op u8 | 0 u8 x 3 | crc u32 | offset u64 | length u64 | data (`length` bytes, only of `write`)
 *
 * `crc` is the CRC-32C of the data, 0 where there is none. The redo journal of a standby (ft/disk/redo-journal.ts) keeps the
 * same bytes. Walking them allocates nothing.
 */
import { assert } from '../../base/assert.ts';
import { readU32, writeU32 } from './cursor.ts';

/** Version of both sections. */
export const DISK_OPS_VERSION = 1;
/** Bytes in front of an operation's data. */
export const DISK_OP_BYTES = 24;

/** What an operation does. The numbers are those of BLOCK_OP in block/backend.ts. */
export const DISK_OP = {
  write: 1,
  discard: 3,
  writeZeroes: 4,
  writeZeroesUnmap: 5,
} as const;

const HIGH = 2 ** 32;

/** Writes an operation's head; its data, if any, goes to the returned offset. */
export function writeDiskOp(
  out: Uint8Array,
  at: number,
  op: number,
  crc: number,
  offset: number,
  length: number,
): number {
  assert(at + DISK_OP_BYTES <= out.length, 'room for an operation');
  out[at] = op;
  out[at + 1] = 0;
  out[at + 2] = 0;
  out[at + 3] = 0;
  writeU32(out, at + 4, crc);
  writeU32(out, at + 8, offset % HIGH);
  writeU32(out, at + 12, Math.floor(offset / HIGH));
  writeU32(out, at + 16, length % HIGH);
  writeU32(out, at + 20, Math.floor(length / HIGH));
  return at + DISK_OP_BYTES;
}

/** Walks the operations of one body. Reusable. */
export class DiskOpsReader {
  #bytes: Uint8Array = new Uint8Array(0);
  #at = 0;
  #end = 0;
  op = 0;
  crc = 0;
  /** Where on the disk, and how much. */
  offset = 0;
  length = 0;
  /** Where a write's data lies in the body's bytes; empty for the others. */
  dataStart = 0;
  dataEnd = 0;
  /** Set when the body does not divide into operations; `next` is false then. */
  malformed = false;

  /** Starts over at a body in `bytes[start, end)`. */
  reset(bytes: Uint8Array, start = 0, end: number = bytes.length): this {
    this.#bytes = bytes;
    this.#at = start;
    this.#end = end;
    this.malformed = false;
    return this;
  }

  /** Moves to the next operation; false at the end or when the body is malformed. */
  next(): boolean {
    if (this.malformed || this.#at === this.#end) return false;
    const b = this.#bytes;
    const at = this.#at;
    this.malformed = true;
    if (this.#end - at < DISK_OP_BYTES) return false;
    this.op = b[at]!;
    this.crc = readU32(b, at + 4);
    this.offset = readU32(b, at + 8) + readU32(b, at + 12) * HIGH;
    this.length = readU32(b, at + 16) + readU32(b, at + 20) * HIGH;
    this.dataStart = at + DISK_OP_BYTES;
    const isWrite = this.op === DISK_OP.write;
    this.dataEnd = this.dataStart + (isWrite ? this.length : 0);
    const known =
      isWrite ||
      this.op === DISK_OP.discard ||
      this.op === DISK_OP.writeZeroes ||
      this.op === DISK_OP.writeZeroesUnmap;
    const zero = (b[at + 1]! | b[at + 2]! | b[at + 3]!) === 0 && (isWrite || this.crc === 0);
    if (!known || !zero || this.length === 0) return false;
    if (!Number.isSafeInteger(this.offset + this.length) || this.dataEnd > this.#end) return false;
    this.malformed = false;
    this.#at = this.dataEnd;
    return true;
  }
}
