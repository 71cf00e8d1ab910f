/**
 * A guest's whole state in one file: a page with magic and sizes, the state container, then RAM range by range at
 * page-aligned offsets. Pages of zeroes are left as holes. The file is written beside its final name and renamed.
 *
 *   0     "TSVMMSN1" | u32 container bytes | u32 range count | per range: u64 base, u64 size, u64 offset, u32 crc
 *   4096  container, then the ranges
 */
import {
  closeSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { alignUp } from '../base/bits.ts';
import { crc32c } from '../base/crc32c.ts';
import { messageOf, VmmError } from '../base/error.ts';
import { PAGE_SIZE } from '../memory/dirty-set.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { corrupt, Reader, Writer } from '../snapshot/codec.ts';

const MAGIC = 'TSVMMSN1';
const MAX_RANGES = 100;
const MAX_CONTAINER_BYTES = 256 * 2 ** 20;
const CHUNK = 2 ** 20;

function isZero(bytes: Uint8Array): boolean {
  const words = new BigUint64Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 3);
  for (const word of words) if (word !== 0n) return false;
  return true;
}

/**
 * Writes `container` and all of `memory` to `path`. The machine must be paused.
 * @throws VmmError `SAVE_FILE`; then there is no file at `path` that was not there before
 */
export function writeSavedFile(path: string, container: Uint8Array, memory: GuestMemory): void {
  const temporary = `${path}.${process.pid}.part`;
  let fd: number | undefined;
  try {
    fd = openSync(temporary, 'wx', 0o600);
    let offset = PAGE_SIZE + alignUp(container.length, PAGE_SIZE);
    const head = new Writer(PAGE_SIZE);
    for (const char of MAGIC) head.u8(char.charCodeAt(0));
    head.u32(container.length);
    head.u32(memory.ranges.length);
    for (const range of memory.ranges) {
      head.u64(BigInt(range.base));
      head.u64(BigInt(range.bytes.length));
      head.u64(BigInt(offset));
      head.u32(writeRange(fd, range.bytes, offset));
      offset += range.bytes.length;
    }
    head.u32(crc32c(head.bytes()));
    ftruncateSync(fd, offset);
    writeSync(fd, container, 0, container.length, PAGE_SIZE);
    writeSync(fd, head.bytes(), 0, head.length, 0);
    fsyncSync(fd);
    closeSync(fd);
    fd = undefined;
    renameSync(temporary, path);
  } catch (error) {
    if (fd !== undefined) closeSync(fd);
    rmSync(temporary, { force: true });
    throw new VmmError(
      'SAVE_FILE',
      `the state cannot be written to '${path}': ${messageOf(error)}`,
      {
        hint: 'The file needs room for all of the guest memory that is in use.',
        cause: error,
      },
    );
  }
}

function writeRange(fd: number, bytes: Uint8Array, offset: number): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += CHUNK) {
    const chunk = bytes.subarray(at, Math.min(at + CHUNK, bytes.length));
    if (isZero(chunk)) continue;
    sum = crc32c(chunk, 0, chunk.length, sum);
    for (let done = 0; done < chunk.length; ) {
      done += writeSync(fd, chunk, done, chunk.length - done, offset + at + done);
    }
  }
  return sum;
}

/** An opened state file. */
export interface SavedFile {
  readonly container: Uint8Array;
  /**
   * Reads RAM.
   * @throws VmmError `STATE_CORRUPT` when the ranges differ or a checksum fails
   */
  readInto(memory: GuestMemory): void;
  close(): void;
}

/** Opens a state file. @throws VmmError `STATE_CORRUPT`, `FILE` */
export function openSavedFile(path: string): SavedFile {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (error) {
    throw new VmmError('FILE', `--restore ${path}: ${messageOf(error)}`, { cause: error });
  }
  const take = (length: number, position: number): Uint8Array => {
    const bytes = new Uint8Array(length);
    if (readSync(fd, bytes, 0, length, position) !== length) throw corrupt('the file is cut off');
    return bytes;
  };
  try {
    const headBytes = take(PAGE_SIZE, 0);
    const head = new Reader(headBytes);
    for (const char of MAGIC)
      if (head.u8() !== char.charCodeAt(0)) throw corrupt('the file is no saved state');
    const containerBytes = head.u32();
    const count = head.u32();
    if (containerBytes > MAX_CONTAINER_BYTES || count > MAX_RANGES)
      throw corrupt('sizes in its head are impossible');
    const ranges = Array.from({ length: count }, () => ({
      base: Number(head.u64()),
      size: Number(head.u64()),
      offset: Number(head.u64()),
      sum: head.u32(),
    }));
    const headLength = PAGE_SIZE - head.remaining;
    if (head.u32() !== crc32c(headBytes, 0, headLength))
      throw corrupt('its head fails the checksum');
    return {
      container: take(containerBytes, PAGE_SIZE),
      readInto(memory) {
        const same =
          ranges.length === memory.ranges.length &&
          ranges.every(({ base, size }, i) => {
            const range = memory.ranges[i]!;
            return range.base === base && range.bytes.length === size;
          });
        if (!same)
          throw corrupt('its memory is laid out differently; give the --memory that the guest had');
        for (const [i, { base, size, offset, sum }] of ranges.entries()) {
          const { bytes } = memory.ranges[i]!;
          if (readRange(fd, bytes, offset) !== sum)
            throw corrupt('guest memory fails its checksum');
          memory.dirty.mark(base, size);
        }
      },
      close: () => closeSync(fd),
    };
  } catch (error) {
    closeSync(fd);
    if (error instanceof VmmError) throw error;
    throw new VmmError('FILE', `--restore ${path}: ${messageOf(error)}`, { cause: error });
  }
}

function readRange(fd: number, bytes: Uint8Array, offset: number): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += CHUNK) {
    const chunk = bytes.subarray(at, Math.min(at + CHUNK, bytes.length));
    for (let done = 0; done < chunk.length; ) {
      const n = readSync(fd, chunk, done, chunk.length - done, offset + at + done);
      if (n === 0) throw corrupt('the file is cut off');
      done += n;
    }
    if (!isZero(chunk)) sum = crc32c(chunk, 0, chunk.length, sum);
  }
  return sum;
}
