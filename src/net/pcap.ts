/**
 * A capture filter: stands between a device and its network and writes every frame, both ways, to a file that Wireshark
 * and tcpdump open (pcap with nanoseconds). Frames are captured as the backend sees them: with offloads that is before
 * segmentation and with partial checksums. A full disk ends the capture, never the traffic.
 */
import { closeSync, openSync, writeSync } from 'node:fs';
import { messageOf, VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import {
  type FrameBatch,
  MAX_FRAME_BYTES,
  type NetBackend,
  type NetHandler,
  type NetInfo,
  VNET_HEADER_BYTES,
} from './backend.ts';

/** Magic number of pcap files with nanosecond time stamps. */
const MAGIC_NS = 0xa1b23c4d;
const LINKTYPE_ETHERNET = 1;
const FILE_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;

export interface CaptureOptions {
  readonly path: string;
  /** Wall-clock nanoseconds since 1970. */
  readonly wallNs: () => number;
}

/** Puts a capture between `inner` and its device; VmmError NET_PCAP when the file cannot be made. */
export function openCapture(
  inner: NetBackend,
  log: Logger,
  options: CaptureOptions,
): CaptureFilter {
  try {
    return new CaptureFilter(inner, log, options);
  } catch (error) {
    throw new VmmError(
      'NET_PCAP',
      `cannot write the capture file ${options.path}: ${messageOf(error)}`,
      { hint: 'Check that the folder exists and can be written.', cause: error },
    );
  }
}

export class CaptureFilter implements NetBackend {
  readonly #inner: NetBackend;
  readonly #log: Logger;
  readonly #options: CaptureOptions;
  readonly #buffer = Buffer.alloc(2 * (RECORD_HEADER_BYTES + MAX_FRAME_BYTES));
  #used = 0;
  #fd: number | undefined;

  constructor(inner: NetBackend, log: Logger, options: CaptureOptions) {
    this.#inner = inner;
    this.#log = log;
    this.#options = options;
    this.#fd = openSync(options.path, 'w', 0o600);
    const b = this.#buffer;
    b.writeUInt32LE(MAGIC_NS, 0);
    b.writeUInt16LE(2, 4);
    b.writeUInt16LE(4, 6);
    b.writeUInt32LE(MAX_FRAME_BYTES, 16);
    b.writeUInt32LE(LINKTYPE_ETHERNET, 20);
    this.#used = FILE_HEADER_BYTES;
    this.#flush();
  }

  get info(): NetInfo {
    return this.#inner.info;
  }
  get linkUp(): boolean {
    return this.#inner.linkUp;
  }

  setHandler(handler: NetHandler): void {
    this.#inner.setHandler(handler);
  }

  send(batch: FrameBatch, from: number): number {
    const taken = this.#inner.send(batch, from);
    this.#record(batch, from, taken);
    return taken;
  }

  receive(batch: FrameBatch, maxFrames: number): number {
    const from = batch.count;
    const added = this.#inner.receive(batch, maxFrames);
    this.#record(batch, from, added);
    return added;
  }

  setReceiveEnabled(enabled: boolean): void {
    this.#inner.setReceiveEnabled(enabled);
  }

  setReceiveOffloads(bits: number): void {
    this.#inner.setReceiveOffloads(bits);
  }

  async close(): Promise<void> {
    this.#stop();
    await this.#inner.close();
  }

  #record(batch: FrameBatch, from: number, count: number): void {
    if (this.#fd === undefined || count === 0) return;
    const now = this.#options.wallNs();
    const seconds = Math.floor(now / 1e9);
    const b = this.#buffer;
    for (let i = from; i < from + count; i++) {
      const start = batch.offsets[i]! + VNET_HEADER_BYTES;
      const length = Math.min(batch.lengths[i]! - VNET_HEADER_BYTES, MAX_FRAME_BYTES);
      if (this.#used + RECORD_HEADER_BYTES + length > b.length) this.#flush();
      let at = this.#used;
      // As 32 bits: what a host's clock that is far off says must not end the traffic.
      b.writeUInt32LE(seconds >>> 0, at);
      b.writeUInt32LE(Math.floor(now - seconds * 1e9) >>> 0, at + 4);
      b.writeUInt32LE(length, at + 8);
      b.writeUInt32LE(length, at + 12);
      at += RECORD_HEADER_BYTES;
      b.set(batch.bytes.subarray(start, start + length), at);
      this.#used = at + length;
    }
    this.#flush();
  }

  #flush(): void {
    const bytes = this.#used;
    this.#used = 0;
    if (this.#fd === undefined) return;
    try {
      for (let at = 0; at < bytes; ) at += writeSync(this.#fd, this.#buffer, at, bytes - at);
    } catch (error) {
      this.#log.warn(`capture to ${this.#options.path} ended: ${messageOf(error)}`);
      this.#stop();
    }
  }

  #stop(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}
