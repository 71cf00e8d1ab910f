/**
 * Requests by tag, kept by who gives them to a disk later or a second time: decorators that hold requests back, and clients
 * that send them again on another connection. Segments grow to what the guest really uses; then nothing is allocated.
 */
import type { BlockBackend, BlockOp } from './backend.ts';

/** Room for so many segments at least. */
const SEGMENTS_MIN = 16;

const NO_ADDRESSES = new Float64Array(0);
const NO_LENGTHS = new Uint32Array(0);

/** See the module's head. What is there of a tag that was never kept means nothing. */
export class KeptRequests {
  readonly op: Uint8Array;
  /** Bytes on the disk: where, and how many. */
  readonly offset: Float64Array;
  readonly length: Float64Array;
  /** How many segments. */
  readonly count: Uint32Array;
  readonly #addresses: Float64Array[];
  readonly #lengths: Uint32Array[];

  /** @param tags tags are in [0, tags) */
  constructor(tags: number) {
    this.op = new Uint8Array(tags);
    this.offset = new Float64Array(tags);
    this.length = new Float64Array(tags);
    this.count = new Uint32Array(tags);
    this.#addresses = new Array<Float64Array>(tags).fill(NO_ADDRESSES);
    this.#lengths = new Array<Uint32Array>(tags).fill(NO_LENGTHS);
  }

  /** Keeps a request, as `queue` of a disk gets it. */
  keep(
    tag: number,
    op: number,
    offsetBytes: number,
    lengthBytes: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void {
    this.note(tag, op, offsetBytes, lengthBytes);
    this.keepSegments(tag, addresses, lengths, first, count);
  }

  /** Keeps what a request does, without segments: those of an earlier request with this tag stay. */
  note(tag: number, op: number, offsetBytes: number, lengthBytes: number): void {
    this.op[tag] = op;
    this.offset[tag] = offsetBytes;
    this.length[tag] = lengthBytes;
  }

  /** Keeps segments. */
  keepSegments(
    tag: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void {
    if (this.#addresses[tag]!.length < count) {
      const room = Math.max(SEGMENTS_MIN, 2 ** Math.ceil(Math.log2(count)));
      this.#addresses[tag] = new Float64Array(room);
      this.#lengths[tag] = new Uint32Array(room);
    }
    const ownAddresses = this.#addresses[tag]!;
    const ownLengths = this.#lengths[tag]!;
    for (let i = 0; i < count; i++) {
      ownAddresses[i] = addresses[first + i]!;
      ownLengths[i] = lengths[first + i]!;
    }
    this.count[tag] = count;
  }

  /** Guest-physical starts of the segments; the first {@link count} count. */
  addresses(tag: number): Float64Array {
    return this.#addresses[tag]!;
  }

  /** Bytes of the segments. */
  lengths(tag: number): Uint32Array {
    return this.#lengths[tag]!;
  }

  /** Queues a kept request at `disk`. */
  queueAt(disk: BlockBackend, tag: number): void {
    disk.queue(
      tag,
      this.op[tag] as BlockOp,
      this.offset[tag]!,
      this.length[tag]!,
      this.#addresses[tag]!,
      this.#lengths[tag]!,
      0,
      this.count[tag]!,
    );
  }
}
