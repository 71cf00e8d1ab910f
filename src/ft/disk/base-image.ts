/**
 * A base image that both hosts have: where both prove that it is the same, the first copy of a disk carries only what differs from
 * it. The proof is a digest over size and content, made on each host from its own file; nothing is taken on trust.
 */
import { createHash } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, read } from 'node:fs';
import { promisify } from 'node:util';
import { messageOf, VmmError } from '../../base/error.ts';
import { BLOCK_OP } from '../../block/backend.ts';
import { type DiskAccess, diskError, PIECE_BYTES } from './disk-access.ts';
import { holesOf, type StorageNative } from './host-storage.ts';

const readAt = promisify(read);
const CHUNK_BYTES = 2 ** 20;

/** What a base image is. */
export interface BaseIdentity {
  /** SHA-256 over the size and the SHA-256 of each MiB, in hexadecimal. */
  readonly digest: string;
  readonly bytes: number;
}

/**
 * Reads the base image at `path` and digests it; holes cost nothing.
 * @throws VmmError `DISK_BASE`
 */
export async function digestBase(native: StorageNative, path: string): Promise<BaseIdentity> {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY);
  } catch (error) {
    throw new VmmError('DISK_BASE', `the base image ${path} cannot be read: ${messageOf(error)}`, {
      cause: error,
    });
  }
  try {
    const bytes = fstatSync(fd).size;
    if (bytes === 0 || bytes % 512 !== 0) {
      throw new VmmError('DISK_BASE', `the base image ${path} is no whole number of sectors`);
    }
    const holes = holesOf(native, fd, bytes);
    const all = createHash('sha256').update(`tsvmm base ${bytes}`);
    const chunk = new Uint8Array(CHUNK_BYTES);
    const zeroes = createHash('sha256').update(chunk).digest();
    for (let at = 0; at < bytes; at += CHUNK_BYTES) {
      const length = Math.min(CHUNK_BYTES, bytes - at);
      if (length === CHUNK_BYTES && holes.nextData(at) >= at + length) {
        all.update(zeroes);
        continue;
      }
      const { bytesRead } = await readAt(fd, chunk, 0, length, at);
      if (bytesRead !== length) throw new VmmError('DISK_BASE', `${path} became shorter`);
      all.update(createHash('sha256').update(chunk.subarray(0, length)).digest());
    }
    return { digest: all.digest('hex'), bytes };
  } finally {
    closeSync(fd);
  }
}

/**
 * Makes the content of `image` that of `base`, with its holes.
 * @param wanted asked before each piece: false stops, with a part of it in place
 * @throws VmmError `DISK_*`
 */
export async function layBase(
  image: DiskAccess,
  base: DiskAccess,
  wanted: () => boolean = () => true,
): Promise<void> {
  let failed = 0;
  const done = (result: number): void => {
    if (failed === 0) failed = result;
  };
  await image.zero(BLOCK_OP.writeZeroesUnmap, 0, image.sizeBytes, done);
  const end = Math.min(base.sizeBytes, image.sizeBytes);
  for (let at = 0; at < end && wanted(); ) {
    const data = base.holes?.nextData(at) ?? at;
    // A file system may tell of data in the middle of a block.
    at = Math.max(at, Math.floor(data / 4096) * 4096);
    if (at >= end) break;
    const length = Math.min(PIECE_BYTES, end - at);
    const piece = new Uint8Array(length);
    await base.read(at, length, (bytes) => piece.set(bytes));
    await image.write(at, piece, 0, length, done);
    at += length;
  }
  await image.idle();
  if (failed !== 0) throw diskError('writing to', image.name, failed);
}
