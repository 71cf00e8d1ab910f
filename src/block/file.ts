/**
 * A raw file or block device as a disk: io_uring (threads where it is off) straight on guest memory through the addon.
 *
 * Cache modes: `none` opens O_DIRECT, so that a completed write is outside this host's page cache (what a disk shared
 * by two hosts needs); `writeback` goes through the page cache. In both a flush is fdatasync. The file is locked while
 * open (open-file-description lock over the whole file: also seen by QEMU and across hosts on NFS).
 */
import { closeSync, constants, openSync } from 'node:fs';
import { codeOf, messageOf, VmmError } from '../base/error.ts';
import type { BlockBackend, BlockHandler, BlockInfo, BlockOp } from './backend.ts';
import { Completions } from './completions.ts';
import { lockHolders } from './lock-holder.ts';
import type { BlockNative, DiskEngine, NativeDisk } from './native.ts';

/** `O_DIRECT` or the page cache. */
export type DiskCache = 'none' | 'writeback';

export interface FileDiskOptions {
  readonly path: string;
  readonly readonly?: boolean;
  /** Default `none`. */
  readonly cache?: DiskCache;
  /** `unlocked`: a standby's view of a shared disk, until {@link FileDisk.lock}. Default `locked`. */
  readonly lock?: 'locked' | 'unlocked';
  /** Default `auto`. */
  readonly engine?: DiskEngine;
  /** Requests at a time, 1-1024. Default 256. */
  readonly maxRequests?: number;
}

const MAX_SEGMENTS = 1024;
const MAX_TRANSFER_BYTES = 64 * 1024 * 1024;

/** Opens `options.path`. VmmError DISK_* in words when it is missing, locked, empty or not a disk. */
export function openFileDisk(
  native: BlockNative,
  /** `KvmMemoryMap.native`: where segments lie. */
  memoryMap: object,
  options: FileDiskOptions,
): FileDisk {
  const readonly = options.readonly === true;
  const fd = openImage(
    options.path,
    readonly,
    options.cache ?? 'none',
    options.lock !== 'unlocked',
  );
  try {
    return new FileDisk(native, memoryMap, options, fd);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function openImage(path: string, readonly: boolean, cache: DiskCache, locks: boolean): number {
  const direct = cache === 'none' ? constants.O_DIRECT : 0;
  // Linux: keeps a device that is mounted (or used by another such opener) from being opened for writing. On a
  // regular file without O_CREAT it does nothing.
  const exclusive = !readonly && locks && path.startsWith('/dev/') ? constants.O_EXCL : 0;
  const flags = (readonly ? constants.O_RDONLY : constants.O_RDWR) | direct | exclusive;
  try {
    return openSync(path, flags);
  } catch (error) {
    const code = codeOf(error);
    if (code === 'EINVAL' && direct !== 0) {
      throw new VmmError('DISK_NO_DIRECT', `the file system of ${path} has no direct I/O`, {
        hint: 'Use cache=writeback for this disk, or put the image on ext4, XFS or another disk file system.',
        cause: error,
      });
    }
    if (code === 'EBUSY') {
      throw new VmmError('DISK_LOCKED', `${path} is mounted or in use on this host`, {
        hint: 'Unmount it, or end the program that uses it; two users would destroy its content.',
        cause: error,
      });
    }
    const reason: Record<string, string> = {
      ENOENT: 'there is no such file',
      EACCES: 'permission denied',
      EISDIR: 'it is a directory',
      EROFS: 'the file system is read-only',
      ENXIO: 'the device is gone',
    };
    throw new VmmError(
      'DISK_OPEN',
      `cannot open disk ${path}: ${reason[code ?? ''] ?? messageOf(error)}`,
      {
        hint:
          code === 'EROFS' || code === 'EACCES'
            ? 'Add readonly to the disk option if the guest shall only read it.'
            : 'Check the path of the disk option.',
        cause: error,
      },
    );
  }
}

export class FileDisk implements BlockBackend {
  readonly info: BlockInfo;
  readonly #fd: number;
  readonly #native: BlockNative;
  readonly #io: NativeDisk;
  readonly #completions: Completions;
  readonly #tags: Uint32Array;
  readonly #results: Int32Array;

  /** @param fd open with the flags that `options` ask for; closed by {@link close} */
  constructor(native: BlockNative, memoryMap: object, options: FileDiskOptions, fd: number) {
    const geometry = native.fileGeometry(fd);
    const { path } = options;
    if (geometry.kind === 'other') {
      throw new VmmError('DISK_KIND', `${path} is neither a file nor a block device`, {
        hint: 'A disk is a raw image or a block device; other formats come through NBD (qemu-nbd).',
      });
    }
    const blockSizeBytes = Math.max(512, geometry.logicalBlockBytes, geometry.offsetAlign);
    const sizeBytes = geometry.sizeBytes - (geometry.sizeBytes % blockSizeBytes);
    if (sizeBytes === 0) {
      throw new VmmError(
        'DISK_EMPTY',
        `${path} has ${geometry.sizeBytes} bytes: less than one sector`,
        {
          hint: `Give it a size first, for example: truncate -s 1G ${path}`,
        },
      );
    }
    const maxRequests = options.maxRequests ?? 256;
    this.#fd = fd;
    this.#native = native;
    this.info = {
      name: path,
      sizeBytes,
      blockSizeBytes,
      physicalBlockSizeBytes: Math.max(blockSizeBytes, geometry.physicalBlockBytes),
      readonly: options.readonly === true,
      volatileCache: true,
      discard: true,
      writeZeroes: true,
      maxRequests,
      maxSegments: MAX_SEGMENTS,
      maxTransferBytes: MAX_TRANSFER_BYTES,
    };
    if (options.lock !== 'unlocked') this.lock();
    this.#completions = new Completions(maxRequests);
    this.#tags = new Uint32Array(maxRequests);
    this.#results = new Int32Array(maxRequests);
    this.#io = new native.BlockIo(
      memoryMap,
      {
        fd,
        sizeBytes,
        blockBytes: blockSizeBytes,
        memoryAlign: Math.max(1, geometry.memoryAlign),
        readonly: this.info.readonly,
        maxRequests,
        engine: options.engine ?? 'auto',
      },
      () => this.#deliver(),
    );
  }

  /** `io_uring` or `threads`. */
  get engine(): string {
    return this.#io.engine;
  }

  get inFlight(): number {
    return this.#completions.inFlight;
  }

  /** Takes the lock (shared when read-only) if it is not held yet; VmmError DISK_LOCKED says by whom it is held. */
  lock(): void {
    const { name, readonly } = this.info;
    if (this.tryLock()) return;
    const holders = lockHolders(name);
    const who =
      holders.length > 0
        ? holders.join(', ')
        : 'another process (of another user or on another host)';
    throw new VmmError('DISK_LOCKED', `disk ${name} is already in use by ${who}`, {
      hint: readonly
        ? 'Wait until the other side ends, or use a copy.'
        : 'Two machines that write one disk destroy it: end the other one, use a copy, or open it readonly on both sides.',
    });
  }

  /** Takes the lock as {@link lock} does, and asks nobody who holds it: whether it is held here now. */
  tryLock(): boolean {
    return this.#native.tryLock(this.#fd, !this.info.readonly, 0, 0);
  }

  setHandler(handler: BlockHandler): void {
    this.#completions.setHandler(handler);
  }

  queue(
    tag: number,
    op: BlockOp,
    offsetBytes: number,
    lengthBytes: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void {
    this.#completions.begin(tag);
    this.#io.queue(tag, op, offsetBytes, lengthBytes, addresses, lengths, first, count);
  }

  submit(): void {
    this.#io.submit();
  }

  poll(): number {
    return this.#completions.delivering ? 0 : this.#deliver();
  }

  #deliver(): number {
    const completions = this.#completions;
    completions.start();
    const count = this.#io.reap(this.#tags, this.#results);
    for (let i = 0; i < count; i++) completions.deliver(this.#tags[i]!, this.#results[i]!);
    return completions.end();
  }

  drain(done: () => void): void {
    this.#completions.drain(done);
  }

  setLeaseDeadlineNs(deadlineNs: number): void {
    this.#io.setLeaseDeadlineNs(deadlineNs);
  }

  async close(): Promise<void> {
    if (this.#completions.closed) return;
    await this.#completions.close();
    this.#io.close();
    closeSync(this.#fd);
  }
}
