/**
 * What the outside network looks like to a device: frames in batches, both ways, with back-pressure both ways. A
 * device (virtio-net, e1000) talks only to {@link NetBackend}; decorators (the event-tap, a capture filter)
 * implement it over another one. Pure interface: no I/O here.
 *
 * Every frame in a {@link FrameBatch} is preceded by a 12-byte `virtio_net_hdr_v1` (VIRTIO 1.2, 5.1.6), all zero
 * where no offload is in play. Lengths include that header. `num_buffers` is for the device to fill.
 */
import { assert } from '../base/assert.ts';

/** Bytes of `virtio_net_hdr_v1` in front of every frame. */
export const VNET_HEADER_BYTES = 12;
/** Largest frame without its header: 64 KiB of IP plus Ethernet header and VLAN tag. */
export const MAX_FRAME_BYTES = 65536 + 18;
/** Largest entry of a batch. */
export const MAX_ENTRY_BYTES = VNET_HEADER_BYTES + MAX_FRAME_BYTES;

/** Offload bits; the values are those of Linux's TUN_F_*. */
export const NET_OFFLOAD = { csum: 1, tso4: 2, tso6: 4, tsoEcn: 8, ufo: 16 } as const;

/**
 * Frames in one buffer, in order. Allocated once and reused; who passes it to a call lends it for that call only.
 */
export class FrameBatch {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;
  /** Where each entry (header first) starts in `bytes`; ascending. */
  readonly offsets: Uint32Array<ArrayBuffer>;
  /** Bytes of each entry, header included. */
  readonly lengths: Uint32Array<ArrayBuffer>;
  /** Entries in use. */
  count = 0;
  /** First free byte of `bytes`. */
  used = 0;
  /**
   * Entries may go on in guest memory, for a backend that says {@link NetBackend.sendsGuestMemory}: entry i has the segments
   * [tailEnds[i - 1], tailEnds[i]) behind its bytes here (from 0 for the first). Guest-physical addresses.
   */
  readonly tailAddresses: Float64Array<ArrayBuffer>;
  readonly tailLengths: Uint32Array<ArrayBuffer>;
  readonly tailEnds: Uint32Array<ArrayBuffer>;
  /** Segments in use, of all entries. */
  tailCount = 0;

  /**
   * @param maxFrames most entries
   * @param capacityBytes most bytes of all entries; at least {@link MAX_ENTRY_BYTES}
   * @param tailSegments most segments in guest memory, of all entries
   */
  constructor(maxFrames = 64, capacityBytes = 256 * 1024, tailSegments = 0) {
    assert(maxFrames > 0 && capacityBytes >= MAX_ENTRY_BYTES, 'a batch holds at least one frame');
    this.tailAddresses = new Float64Array(tailSegments);
    this.tailLengths = new Uint32Array(tailSegments);
    this.tailEnds = new Uint32Array(tailSegments > 0 ? maxFrames : 0);
    this.bytes = new Uint8Array(capacityBytes);
    this.view = new DataView(this.bytes.buffer);
    this.offsets = new Uint32Array(maxFrames);
    this.lengths = new Uint32Array(maxFrames);
  }

  get maxFrames(): number {
    return this.offsets.length;
  }

  /** Whether one more entry of `entryBytes` (header included) fits. */
  room(entryBytes: number): boolean {
    return this.count < this.offsets.length && this.used + entryBytes <= this.bytes.length;
  }

  /** Forgets all entries. */
  clear(): void {
    this.count = 0;
    this.used = 0;
    this.tailCount = 0;
  }

  /**
   * Reserves an entry of `entryBytes` and returns its offset in `bytes`, or -1 when there is no room. The caller
   * writes the whole entry, header included.
   */
  add(entryBytes: number): number {
    if (entryBytes < VNET_HEADER_BYTES || !this.room(entryBytes)) return -1;
    const offset = this.used;
    this.offsets[this.count] = offset;
    this.lengths[this.count] = entryBytes;
    if (this.tailEnds.length > 0) this.tailEnds[this.count] = this.tailCount;
    this.count++;
    this.used = offset + entryBytes;
    return offset;
  }

  /** Lets the last entry go on with `length` bytes of guest memory; there must be room for the segment. */
  addTail(address: number, length: number): void {
    assert(this.count > 0 && this.tailCount < this.tailAddresses.length, 'a tail has its place');
    this.tailAddresses[this.tailCount] = address;
    this.tailLengths[this.tailCount] = length;
    this.tailEnds[this.count - 1] = ++this.tailCount;
  }

  /** Appends a frame (without header) behind an all-zero header; false when there is no room. */
  addFrame(source: Uint8Array, start = 0, end: number = source.length): boolean {
    const offset = this.add(VNET_HEADER_BYTES + (end - start));
    if (offset < 0) return false;
    this.bytes.fill(0, offset, offset + VNET_HEADER_BYTES);
    this.bytes.set(source.subarray(start, end), offset + VNET_HEADER_BYTES);
    return true;
  }

  /** The frame of entry `index` without its header, as a view (valid until the batch is reused). For tests and slow paths. */
  frame(index: number): Uint8Array {
    assert(index < this.count, 'entry exists');
    const offset = this.offsets[index]!;
    return this.bytes.subarray(offset + VNET_HEADER_BYTES, offset + this.lengths[index]!);
  }
}

/** What does not change while a backend is open. */
export interface NetInfo {
  /** For messages: `tap tap0`, `stream /run/x.sock`. */
  readonly name: string;
  /** {@link NET_OFFLOAD} bits that a *sent* frame's header may ask for; others must be done by the device. */
  readonly sendOffloads: number;
  /** {@link NET_OFFLOAD} bits that {@link NetBackend.setReceiveOffloads} can turn on. */
  readonly receiveOffloads: number;
  /** The MTU of the other side where it is known. */
  readonly mtu: number | undefined;
}

/** Receives a backend's events. Called from the event loop, never inside a call of the backend. */
export interface NetHandler {
  /** Frames can be received. Repeated every turn of the loop while receiving is enabled and frames are there. */
  receivable(): void;
  /** After a `send` that took less than offered: some can be taken now. */
  writable(): void;
  /** `linkUp` has changed. */
  linkChanged(up: boolean): void;
}

/** A connection to a network. */
export interface NetBackend {
  readonly info: NetInfo;
  /** Whether the other side is there (carrier). Frames sent while it is down are taken and lost, as on a cable. */
  readonly linkUp: boolean;
  /**
   * Whether {@link send} takes entries that go on in guest memory; may change between two calls. Decorators that look at
   * frames do not say so.
   */
  readonly sendsGuestMemory?: boolean;
  /** Sets who receives events; nothing is received before. */
  setHandler(handler: NetHandler): void;
  /**
   * Sends entries [from, batch.count), in order.
   * @returns how many were taken (their bytes were copied or written; the batch is the caller's again). Fewer than
   * offered: keep the rest and wait for {@link NetHandler.writable}.
   */
  send(batch: FrameBatch, from: number): number;
  /**
   * Appends received frames to `batch` while there are any, it has room for a largest one, and fewer than
   * `maxFrames` were added. @returns how many were added.
   */
  receive(batch: FrameBatch, maxFrames: number): number;
  /** Back-pressure: while disabled nothing is reported or read, and the backend's own bounded buffer fills. Starts disabled. */
  setReceiveEnabled(enabled: boolean): void;
  /** What received frames may leave to the guest ({@link NET_OFFLOAD} bits, a subset of `info.receiveOffloads`). */
  setReceiveOffloads(bits: number): void;
  /** Gives everything back; no event afterwards. */
  close(): Promise<void>;
}
