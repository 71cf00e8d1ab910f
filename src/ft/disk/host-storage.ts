/** What this host knows of the storage behind a disk: its identity, its holes, room in its file, what makes it durable. */
import {
  closeSync,
  constants,
  fdatasync,
  fsyncSync,
  openSync,
  readFileSync,
  statfsSync,
  statSync,
  unlinkSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { crc32c } from '../../base/crc32c.ts';
import { codeOf, messageOf, VmmError } from '../../base/error.ts';
import { ActivityFile, type ActivityState, activityPath } from './activity-file.ts';
import type { ActivityParts } from './activity-log.ts';
import type { HoleMap } from './disk-access.ts';
import type { Crc } from './disk-log.ts';
import { GRANULE_BYTES, Granules } from './granules.ts';
import { openLogFile } from './log-file.ts';
import type { Room } from './replica-disks.ts';
import type { StorageIdentity } from './storage.ts';

/** The calls of the addon that are needed here. */
export interface StorageNative {
  seekFile(fd: number, offset: number, holes: boolean): number;
  allocateFile(fd: number, mode: number, offset: number, length: number): void;
  tryLock(fd: number, exclusive: boolean, start: number, length: number): boolean;
}

/** Linux: file systems of one host alone (statfs(2), f_type). */
const LOCAL_FILE_SYSTEMS: ReadonlySet<number> = new Set([
  0xef53, // ext2, ext3, ext4
  0x58465342, // XFS
  0x9123683e, // Btrfs
  0xf2f52010, // F2FS
  0x2fc12fc1, // ZFS
  0xca451a4e, // bcachefs
  0x01021994, // tmpfs
]);
const FALLOC_FL_KEEP_SIZE = 1;

function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim();
}

/** Identifies the storage at `source`, a path or an address; undefined when there is nothing at the path. */
export function identifyStorage(source: string): StorageIdentity | undefined {
  if (/^nbd(\+unix)?:/.test(source)) {
    return { kind: 'network', host: '', where: source, local: false };
  }
  const stat = statSync(source, { throwIfNoEntry: false });
  if (stat === undefined) return undefined;
  const host = bootId();
  if (stat.isBlockDevice()) {
    return { kind: 'device', host, where: `device ${stat.rdev}`, local: false };
  }
  const local = LOCAL_FILE_SYSTEMS.has(Number(statfsSync(source).type) >>> 0);
  return { kind: 'file', host, where: `${stat.dev}:${stat.ino}`, local };
}

/** Whether somebody else holds a lock on the file at `path`. */
export function isLocked(native: StorageNative, path: string): boolean {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDWR);
  } catch {
    return false;
  }
  try {
    // Given back at once by closing the only descriptor.
    return !native.tryLock(fd, true, 0, 0);
  } finally {
    closeSync(fd);
  }
}

/** Holes of an open file, as its file system tells them. */
export function holesOf(native: StorageNative, fd: number, sizeBytes: number): HoleMap {
  const seek = (offset: number, holes: boolean, otherwise: number): number => {
    const found = native.seekFile(fd, offset, holes);
    return found >= 0 ? Math.min(found, sizeBytes) : otherwise;
  };
  return {
    // -ENXIO (6): nothing but a hole from here on. Another error: the file system does not tell, so all may be data.
    nextData(offset) {
      const found = native.seekFile(fd, offset, false);
      if (found >= 0) return Math.min(found, sizeBytes);
      return found === -6 ? sizeBytes : offset;
    },
    nextHole: (offset) => seek(offset, true, sizeBytes),
  };
}

/**
 * Room in a sparse file, taken by granules before data is promised.
 * @param fd of its own; closed by `close`
 */
export function fileRoom(native: StorageNative, path: string, fd: number, sizeBytes: number): Room {
  const taken = new Granules(sizeBytes);
  let works = true;
  return {
    ensure(offset, length) {
      if (!works) return;
      const last = Math.floor((offset + length - 1) / GRANULE_BYTES);
      for (let g = Math.floor(offset / GRANULE_BYTES); g <= last; g++) {
        if (taken.has(g)) continue;
        const start = g * GRANULE_BYTES;
        try {
          native.allocateFile(
            fd,
            FALLOC_FL_KEEP_SIZE,
            start,
            Math.min(GRANULE_BYTES, sizeBytes - start),
          );
        } catch (error) {
          const code = codeOf(error);
          if (code === 'ENOSPC' || code === 'EDQUOT') {
            throw new VmmError('DISK_FULL', `there is no room left for the disk ${path}`);
          }
          if (code === 'EIO') {
            throw new VmmError('DISK_IO', `${path} cannot be written: ${messageOf(error)}`);
          }
          works = false;
          return;
        }
        taken.set(g);
      }
    },
    forget(offset, length) {
      const end = Math.ceil((offset + length) / GRANULE_BYTES);
      for (let g = Math.floor(offset / GRANULE_BYTES); g < Math.min(end, taken.total); g++) {
        taken.unset(g);
      }
    },
    close: () => closeSync(fd),
  };
}

/**
 * Tells an image from another one that is put in its place later: inode, size, and when it was made.
 * @throws Error when there is none
 */
export function imageStamp(image: string): number {
  const { ino, size, birthtimeMs } = statSync(image);
  return crc32c(new TextEncoder().encode(`${ino} ${size} ${birthtimeMs}`));
}

/** How the activity log of the image file at `image` is kept. */
export function activityParts(
  image: string,
  crc: Crc,
  warn: (sentence: string) => void,
): ActivityParts {
  const sync = promisify(fdatasync);
  // One for the whole run: an error is told once to each descriptor that was open when it happened.
  let fd = -1;
  return {
    image: imageStamp(image),
    open: () => ActivityFile.open(openLogFile(activityPath(image), true)!, crc),
    async flush() {
      // Of the file, whoever wrote it: data in the page cache, and what the disk itself holds back.
      if (fd < 0) fd = openSync(image, constants.O_RDONLY);
      await sync(fd);
    },
    sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms).unref()),
    warn,
    close() {
      if (fd >= 0) closeSync(fd);
      fd = -1;
    },
  };
}

/** An image that was changed so much later than its log was, was changed by somebody else. */
const STRANGER_MS = 60_000;

/**
 * Reads the activity log of an image.
 * @returns undefined where there is none that holds for the image as it is
 * @throws VmmError `DISK_LOG`
 */
export async function readActivity(image: string, crc: Crc): Promise<ActivityState | undefined> {
  const path = activityPath(image);
  const file = openLogFile(path, false);
  if (file === undefined) return undefined;
  try {
    const { found } = await ActivityFile.open(file, crc);
    if (found === undefined || found.image !== imageStamp(image)) return undefined;
    return statSync(image).mtimeMs > statSync(path).mtimeMs + STRANGER_MS ? undefined : found;
  } finally {
    await file.close();
  }
}

/** Does away with the activity log of an image; durable when it returns. @throws VmmError `DISK_LOG` */
export function removeActivity(image: string): void {
  const path = activityPath(image);
  try {
    unlinkSync(path);
    const folder = openSync(dirname(path), constants.O_RDONLY);
    try {
      fsyncSync(folder);
    } finally {
      closeSync(folder);
    }
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return;
    throw new VmmError('DISK_LOG', `removing ${path} failed: ${messageOf(error)}`, {
      hint: 'The file says that the image is as its lost primary left it, which is not so any more: delete it.',
      cause: error,
    });
  }
}
