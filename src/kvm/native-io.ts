/**
 * Types of what native/io exports: descriptors, timers, TAP, disks, page contents. The rooms that use a part of it
 * declare that part as an interface of their own and get the object injected by the board; these types are what the
 * board has to hand. Argument errors throw TypeError or RangeError; the system's throw Error with `code` and `errno`.
 */
import { loadAddon } from './addon.ts';

/** Watches a descriptor from the event loop. */
export interface NativeFdPoller {
  /** Starts, or changes what is watched for: 1 readable | 2 writable. Level-triggered. */
  start(events: number): void;
  stop(): void;
  /** Whether it keeps the process alive (it does at first). */
  keepAlive(on: boolean): void;
  /** No callback afterwards. Before the descriptor is closed. Idempotent. */
  close(): void;
}

/** A one-shot timer on CLOCK_MONOTONIC with the kernel's precision. */
export interface NativePreciseTimer {
  /** Arms or moves; a past instant fires at once. */
  arm(deadlineNs: number): void;
  cancel(): void;
  keepAlive(on: boolean): void;
  close(): void;
}

/** A TAP interface with 12-byte virtio headers. */
export interface NativeTap {
  readonly fd: number;
  readonly name: string;
  /** Reads into bytes from `start`, listing entries at [from...); entries read, or -errno (-EAGAIN: nothing there). */
  readBatch(
    bytes: Uint8Array,
    start: number,
    offsets: Uint32Array,
    lengths: Uint32Array,
    from: number,
    max: number,
    reserveBytes: number,
  ): number;
  /** Writes entries [from, from + count); how many were taken, or -errno when the interface is gone. */
  writeBatch(
    bytes: Uint8Array,
    offsets: Uint32Array,
    lengths: Uint32Array,
    from: number,
    count: number,
  ): number;
  /** Guest memory for {@link writeScattered}: `KvmMemoryMap.native`. */
  setMemory(memoryMap: object): void;
  /** As writeBatch; entry i goes on with the segments [tailEnds[i - 1], tailEnds[i]) of guest memory. */
  writeScattered(
    bytes: Uint8Array,
    offsets: Uint32Array,
    lengths: Uint32Array,
    from: number,
    count: number,
    tailAddresses: Float64Array,
    tailLengths: Uint32Array,
    tailEnds: Uint32Array,
  ): number;
  /** TUN_F_* bits that received frames may leave to the guest. */
  setOffload(bits: number): void;
  getMac(): Uint8Array;
  setMac(mac: Uint8Array): void;
  getMtu(): number;
  setMtu(mtu: number): void;
  /** IFF_* bits (1 up, 0x40 running), or -errno. */
  getFlags(): number;
  setUp(up: boolean): void;
  /** The link state that the host's side shows. */
  setCarrier(up: boolean): void;
  setPersist(on: boolean): void;
  close(): void;
}

/** Options of {@link NativeIo.BlockIo}. */
export interface NativeBlockOptions {
  readonly fd: number;
  readonly sizeBytes: number;
  readonly blockBytes: number;
  /** What direct I/O asks of memory addresses and lengths; 1 without O_DIRECT. */
  readonly memoryAlign: number;
  readonly readonly: boolean;
  /** 1-1024. */
  readonly maxRequests: number;
  readonly engine: 'auto' | 'io_uring' | 'threads';
}

/** Asynchronous requests of one file; the calls mirror BlockBackend (src/block/backend.ts). */
export interface NativeBlockIo {
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
  /** Completions now at the front of both arrays. */
  reap(tags: Uint32Array, results: Int32Array): number;
  setLeaseDeadlineNs(deadlineNs: number): void;
  /** EBUSY while requests are in flight. */
  close(): void;
}

/** What {@link NativeIo.fileGeometry} tells. */
export interface NativeGeometry {
  readonly kind: 'file' | 'block' | 'other';
  readonly sizeBytes: number;
  readonly logicalBlockBytes: number;
  readonly physicalBlockBytes: number;
  readonly memoryAlign: number;
  readonly offsetAlign: number;
  readonly direct: boolean;
}

/** Encoder of the page stream, with the cache of what was sent (native/README.md). */
export interface NativePageEncoder {
  /**
   * Encodes pages[first, first + count), whose contents lie in `staging` from `stagingOffset`, into `out`.
   * No page twice between two commits unless {@link forget} was called for it. `stats` (5 words): adds to zero, same,
   * delta, raw; the last is set to the end offset in `out`.
   * @returns how many were encoded; fewer than `count` when `out` is full
   */
  encode(
    pages: Uint32Array,
    first: number,
    count: number,
    staging: Uint8Array,
    stagingOffset: number,
    out: Uint8Array,
    outOffset: number,
    stats: Uint32Array,
  ): number;
  /** These pages' last records were not committed: no delta or `same` against them. */
  forget(pages: Uint32Array, first: number, count: number): void;
  clear(): void;
}

/** Negative results of {@link NativeIo.decodePages}. */
export const DECODE_ERROR = { malformed: -1, checksum: -2, noRoom: -3, notMemory: -4 } as const;

/** Everything of native/io. */
export interface NativeIo {
  FdPoller: new (
    fd: number,
    /** 1 readable | 2 writable, or -errno; with `drainEventFd` the count that was read from the eventfd. */
    callback: (events: number) => void,
    drainEventFd?: boolean,
  ) => NativeFdPoller;
  PreciseTimer: new (callback: () => void) => NativePreciseTimer;
  TapDevice: new (name: string, create: boolean) => NativeTap;
  /** `memoryMap` is `KvmMemoryMap.native`. */
  BlockIo: new (
    memoryMap: object,
    options: NativeBlockOptions,
    onReady: () => void,
  ) => NativeBlockIo;
  /** What a disk with engine `auto` would use on this host now. */
  probeDiskEngine(): 'io_uring' | 'threads';
  PageEncoder: new (cachePages: number) => NativePageEncoder;
  /**
   * Decodes stream[start, end) into `staging`, page numbers into `pages`; `base` holds the committed content.
   * @returns pages decoded, or one of {@link DECODE_ERROR} (staging is then rubbish)
   */
  decodePages(
    stream: Uint8Array,
    start: number,
    end: number,
    base: object,
    pages: Uint32Array,
    first: number,
    staging: Uint8Array,
    stagingOffset: number,
  ): number;
  crc32c(bytes: Uint8Array, offset: number, length: number, previous: number): number;
  /** CRC-32C of each of `count` pages. */
  crcPages(staging: Uint8Array, offset: number, count: number, sums: Uint32Array): void;
  isZero(bytes: Uint8Array, offset: number, length: number): boolean;
  bytesEqual(
    a: Uint8Array,
    aOffset: number,
    b: Uint8Array,
    bOffset: number,
    length: number,
  ): boolean;
  createEventFd(): number;
  signalEventFd(fd: number): void;
  closeFd(fd: number): void;
  setNonBlocking(fd: number): void;
  /** Bytes read (0 at the end), or -errno. */
  readFd(fd: number, bytes: Uint8Array, offset: number, length: number): number;
  /** Bytes written, or -errno. */
  writeFd(fd: number, bytes: Uint8Array, offset: number, length: number): number;
  /** Open-file-description lock; false when somebody else holds a conflicting one. */
  tryLock(fd: number, exclusive: boolean, start: number, length: number): boolean;
  unlock(fd: number, start: number, length: number): void;
  fileGeometry(fd: number): NativeGeometry;
  /** fallocate(2). */
  allocateFile(fd: number, mode: number, offset: number, length: number): void;
  /** The first byte of data, or with `holes` of a hole, at or behind `offset`; -ENXIO where there is none, or -errno. */
  seekFile(fd: number, offset: number, holes: boolean): number;
  openPty(): { master: number; slave: number; path: string };
  monotonicNs(): number;
  boottimeNs(): number;
  /** CPUs of the affinity mask. */
  cpuCount(): number;
}

/** The addon's I/O half; VmmError NATIVE_MISSING. */
export function loadNativeIo(): NativeIo {
  return loadAddon() as NativeIo;
}

/** How disk requests would reach the kernel on this host. */
export function blockEngineProbe(io: NativeIo): 'io_uring' | 'threads' {
  return io.probeDiskEngine();
}
