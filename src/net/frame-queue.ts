/**
 * A bounded queue of frames in one buffer, each behind a 4-byte big-endian length, as the stream protocol has them on
 * the wire. Appending and taking do not allocate.
 */
import { assert } from '../base/assert.ts';
import { type FrameBatch, MAX_FRAME_BYTES, VNET_HEADER_BYTES } from './backend.ts';

/** Bytes of the length in front of each frame. */
export const LENGTH_BYTES = 4;
const MIN_FRAME_BYTES = 14;

export class FrameQueue {
  readonly bytes: Buffer<ArrayBuffer>;
  /** Filled part: [start, end). */
  start = 0;
  end = 0;

  constructor(capacityBytes: number) {
    assert(capacityBytes >= LENGTH_BYTES + MAX_FRAME_BYTES, 'the largest frame fits');
    this.bytes = Buffer.alloc(capacityBytes);
  }

  get length(): number {
    return this.end - this.start;
  }

  clear(): void {
    this.start = 0;
    this.end = 0;
  }

  #makeRoom(bytes: number): boolean {
    if (this.end + bytes <= this.bytes.length) return true;
    if (this.length + bytes > this.bytes.length) return false;
    this.bytes.copyWithin(0, this.start, this.end);
    this.end -= this.start;
    this.start = 0;
    return true;
  }

  /** Appends raw bytes of the wire; false when they do not fit. */
  append(chunk: Uint8Array): boolean {
    if (!this.#makeRoom(chunk.length)) return false;
    this.bytes.set(chunk, this.end);
    this.end += chunk.length;
    return true;
  }

  /** Appends entries [from, batch.count) without their virtio headers; how many were taken (too long ones are dropped). */
  appendFrames(batch: FrameBatch, from: number): number {
    let index = from;
    for (; index < batch.count; index++) {
      const offset = batch.offsets[index]! + VNET_HEADER_BYTES;
      const length = batch.lengths[index]! - VNET_HEADER_BYTES;
      if (length > MAX_FRAME_BYTES) continue;
      if (!this.#makeRoom(LENGTH_BYTES + length)) break;
      this.bytes.writeUInt32BE(length, this.end);
      this.bytes.set(batch.bytes.subarray(offset, offset + length), this.end + LENGTH_BYTES);
      this.end += LENGTH_BYTES + length;
    }
    return index - from;
  }

  /** Whether a whole frame is there. A length beyond any frame counts as one: {@link takeFrames} reports it. */
  hasFrame(): boolean {
    if (this.length < LENGTH_BYTES) return false;
    const length = this.bytes.readUInt32BE(this.start);
    return length > MAX_FRAME_BYTES || this.length >= LENGTH_BYTES + length;
  }

  /**
   * Moves up to `maxFrames` whole frames into `batch`, behind zero headers; frames shorter than an Ethernet header are
   * dropped. @returns how many were added, or -1 when the bytes are not frames (a length beyond any frame)
   */
  takeFrames(batch: FrameBatch, maxFrames: number): number {
    let added = 0;
    while (added < maxFrames && this.length >= LENGTH_BYTES) {
      const length = this.bytes.readUInt32BE(this.start);
      if (length > MAX_FRAME_BYTES) return added > 0 ? added : -1;
      if (this.length < LENGTH_BYTES + length) break;
      if (length >= MIN_FRAME_BYTES) {
        const from = this.start + LENGTH_BYTES;
        if (!batch.addFrame(this.bytes, from, from + length)) break;
        added++;
      }
      this.start += LENGTH_BYTES + length;
    }
    if (this.start === this.end) this.clear();
    return added;
  }
}
