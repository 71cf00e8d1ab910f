/** The part of the native addon that file-backed disks use; the board injects it. */

/** See BlockBackend: the calls are its native half. */
export interface NativeDisk {
  readonly inFlight: number;
  readonly engine: string;
  queue(
    tag: number,
    op: number,
    offset: number,
    length: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void;
  submit(): void;
  reap(tags: Uint32Array, results: Int32Array): number;
  setLeaseDeadlineNs(deadlineNs: number): void;
  close(): void;
}

/** How requests reach the kernel; `auto` prefers io_uring and falls back to threads where it is off. */
export type DiskEngine = 'auto' | 'io_uring' | 'threads';

/** Functions of the addon. */
export interface BlockNative {
  BlockIo: new (
    memoryMap: object,
    options: {
      fd: number;
      sizeBytes: number;
      blockBytes: number;
      memoryAlign: number;
      readonly: boolean;
      maxRequests: number;
      engine: DiskEngine;
    },
    onReady: () => void,
  ) => NativeDisk;
  fileGeometry(fd: number): {
    readonly kind: 'file' | 'block' | 'other';
    readonly sizeBytes: number;
    readonly logicalBlockBytes: number;
    readonly physicalBlockBytes: number;
    readonly memoryAlign: number;
    readonly offsetAlign: number;
    readonly direct: boolean;
  };
  tryLock(fd: number, exclusive: boolean, start: number, length: number): boolean;
}
