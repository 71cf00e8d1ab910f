/**
 * What a survivor has written since it runs without a standby, kept over an orderly end of its process: the marked granules of
 * one disk, with what they are differences to. It is void from the moment a process takes it up (the marks are in memory then)
 * until that process saves it again: whoever dies in between leaves none, and the disk is copied whole.
 *
 * Nothing calls this yet: the marks of a survivor end with its guest (docs/replication.md).
 *
 *   0        head: what it is of, whether it holds, CRC-32C
 *   4096 ... the bits, in blocks of 4096 bytes of which the last four are the CRC-32C of the others and the block's number
 */
import { readU32, writeU32 } from '../wire/cursor.ts';
import type { Crc } from './disk-log.ts';
import { GRANULE_BYTES, Granules } from './granules.ts';
import type { LogFile } from './log-file.ts';

const MAGIC = 0x44465354; // "TSFD"
const VERSION = 1;
const BLOCK = 4096;
const HEAD = 80;
const DATA = BLOCK - 8;
const HIGH = 2 ** 32;

/** What the marks are differences to: the guest's disk as of an epoch of a generation. */
export interface DifferenceBase {
  /** Which guest; 16 bytes in hexadecimal. */
  readonly vm: string;
  readonly generation: number;
  readonly id: number;
}

/** Where the differences of an image are kept. */
export function differencePath(image: string): string {
  return `${image}.ft-diff`;
}

function head(base: DifferenceBase, sizeBytes: number, holds: boolean, crc: Crc): Uint8Array {
  const bytes = new Uint8Array(BLOCK);
  writeU32(bytes, 0, MAGIC);
  writeU32(bytes, 4, VERSION);
  writeU32(bytes, 8, holds ? 1 : 0);
  writeU32(bytes, 12, GRANULE_BYTES);
  writeU32(bytes, 16, sizeBytes % HIGH);
  writeU32(bytes, 20, Math.floor(sizeBytes / HIGH));
  writeU32(bytes, 24, base.generation);
  writeU32(bytes, 32, base.id % HIGH);
  writeU32(bytes, 36, Math.floor(base.id / HIGH));
  for (let i = 0; i < 16; i++) {
    bytes[40 + i] = Number.parseInt(base.vm.slice(2 * i, 2 * i + 2), 16);
  }
  writeU32(bytes, HEAD - 4, crc(bytes, 0, HEAD - 4, 0));
  return bytes;
}

/** Saves marks; they hold when this resolves. */
export async function saveDifferences(
  file: LogFile,
  crc: Crc,
  base: DifferenceBase,
  granules: Granules,
): Promise<void> {
  await file.write(0, head(base, granules.sizeBytes, false, crc));
  await file.sync();
  const bits = granules.toBytes();
  for (let at = 0, number = 0; at < bits.length; at += DATA, number++) {
    const block = new Uint8Array(BLOCK);
    block.set(bits.subarray(at, Math.min(at + DATA, bits.length)));
    writeU32(block, DATA, number);
    writeU32(block, BLOCK - 4, crc(block, 0, BLOCK - 4, 0));
    await file.write(BLOCK * (1 + number), block);
  }
  await file.sync();
  await file.write(0, head(base, granules.sizeBytes, true, crc));
  await file.sync();
}

/**
 * Takes marks up, once: from now on the file does not hold any more.
 * @returns undefined when there are none, or they are not sound, or of a disk of another size
 */
export async function takeDifferences(
  file: LogFile,
  crc: Crc,
  sizeBytes: number,
): Promise<{ readonly base: DifferenceBase; readonly granules: Granules } | undefined> {
  const bytes = await file.read(0, HEAD);
  if (bytes.length < HEAD || readU32(bytes, 0) !== MAGIC || readU32(bytes, 4) !== VERSION) {
    return undefined;
  }
  if (readU32(bytes, HEAD - 4) !== crc(bytes, 0, HEAD - 4, 0)) return undefined;
  if (readU32(bytes, 8) !== 1 || readU32(bytes, 12) !== GRANULE_BYTES) return undefined;
  if (readU32(bytes, 16) + readU32(bytes, 20) * HIGH !== sizeBytes) return undefined;
  let vm = '';
  for (let i = 0; i < 16; i++) vm += bytes[40 + i]!.toString(16).padStart(2, '0');
  const base = {
    vm,
    generation: readU32(bytes, 24),
    id: readU32(bytes, 32) + readU32(bytes, 36) * HIGH,
  };
  const granules = new Granules(sizeBytes);
  const bits = new Uint8Array(granules.toBytes().length);
  for (let at = 0, number = 0; at < bits.length; at += DATA, number++) {
    const block = await file.read(BLOCK * (1 + number), BLOCK);
    if (block.length < BLOCK || readU32(block, DATA) !== number) return undefined;
    if (readU32(block, BLOCK - 4) !== crc(block, 0, BLOCK - 4, 0)) return undefined;
    bits.set(block.subarray(0, Math.min(DATA, bits.length - at)), at);
  }
  granules.fromBytes(bits);
  await file.write(0, head(base, sizeBytes, false, crc));
  await file.sync();
  return { base, granules };
}
