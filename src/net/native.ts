/** The part of the native addon that network backends use; the board injects it. */

/** A TAP interface with 12-byte virtio headers. */
export interface NetNativeTap {
  readonly fd: number;
  readonly name: string;
  /** Entries read into bytes from `start`, listed at [from...); or -errno. */
  readBatch(
    bytes: Uint8Array,
    start: number,
    offsets: Uint32Array,
    lengths: Uint32Array,
    from: number,
    max: number,
    reserveBytes: number,
  ): number;
  /** How many of entries [from, from + count) were taken, or -errno when the interface is gone. */
  writeBatch(
    bytes: Uint8Array,
    offsets: Uint32Array,
    lengths: Uint32Array,
    from: number,
    count: number,
  ): number;
  /** Guest memory for {@link writeScattered}: a `KvmMemoryMap.native`. */
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
  setOffload(bits: number): void;
  getMtu(): number;
  /** IFF_* bits, or -errno. */
  getFlags(): number;
  setUp(up: boolean): void;
  close(): void;
}

/** Watches a descriptor. */
export interface NetNativePoller {
  start(events: number): void;
  stop(): void;
  close(): void;
}

/** Functions of the addon. */
export interface NetNative {
  TapDevice: new (name: string, create: boolean) => NetNativeTap;
  FdPoller: new (fd: number, callback: (events: number) => void) => NetNativePoller;
}
