/** Opens a disk as the operator describes it: a raw file or device, or an NBD address. Called by the board. */
import type { Logger } from '../base/log.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import type { BlockBackend } from './backend.ts';
import { type DiskCache, type FileDiskOptions, openFileDisk } from './file.ts';
import type { BlockNative, DiskEngine } from './native.ts';
import { isNbdUrl, parseNbdUrl } from './nbd-url.ts';
import { PauseWhenFull } from './pause-when-full.ts';

/** A disk option. */
export interface DiskSpec {
  /** A path, or an NBD address. */
  readonly source: string;
  readonly readonly: boolean;
  /** For files. Default `none`. */
  readonly cache?: DiskCache;
  /** For files: see FileDiskOptions.lock. */
  readonly lock?: FileDiskOptions['lock'];
  /** For files. Default `auto`. */
  readonly engine?: DiskEngine;
  /** What happens when the disk is full. Default `report`. */
  readonly whenFull?: 'report' | 'pause';
}

/** What disks need of the machine. */
export interface DiskParts {
  readonly native: BlockNative;
  /** `KvmMemoryMap.native`: guest memory for native I/O. */
  readonly memoryMap: object;
  /** The same memory, for I/O done here. */
  readonly memory: GuestMemory;
  readonly log: Logger;
  /** Called with `whenFull: 'pause'`: stop the guest; {@link OpenDisk.resume} lets the writes go again. */
  readonly onFull?: (source: string) => void;
}

/** An open disk. */
export interface OpenDisk {
  readonly backend: BlockBackend;
  /** After a pause for lack of space. */
  resume(): void;
}

/** Opens `spec`; VmmError DISK_*, NBD_*. */
export async function openDisk(parts: DiskParts, spec: DiskSpec): Promise<OpenDisk> {
  const { source, readonly, cache, lock, engine } = spec;
  const plain: BlockBackend = isNbdUrl(source)
    ? await (await import('./nbd.ts')).openNbd(parts.memory, parts.log, {
        name: source,
        address: parseNbdUrl(source),
        readonly,
      })
    : openFileDisk(parts.native, parts.memoryMap, {
        path: source,
        readonly,
        ...(cache && { cache }),
        ...(lock && { lock }),
        ...(engine && { engine }),
      });
  if (spec.whenFull !== 'pause') return { backend: plain, resume() {} };
  const backend = new PauseWhenFull(plain, () => parts.onFull?.(source));
  return { backend, resume: () => backend.resume() };
}
