/** The requests of a network disk: what each one is, how far it has come, and in which order they wait for the wire. */
import type { GuestMemory } from '../memory/guest-memory.ts';
import { BLOCK_OP, type BlockInfo, ERRNO } from './backend.ts';
import { KeptRequests } from './kept-requests.ts';

/** Life of a request. */
export const REQUEST = {
  free: 0,
  /** Queued by the device, waiting for `submit`, for the wire, or for the next connection. */
  waiting: 1,
  /** On the wire; its reply is outstanding. */
  sent: 2,
  /** Acknowledged, but the log has no room: done when a flush is. */
  unlogged: 3,
} as const;

/** See the module's head. By tag. */
export class NbdRequests {
  readonly kept: KeptRequests;
  /** One of {@link REQUEST}. */
  readonly state: Uint8Array;
  /** Bytes that the server has answered for. */
  readonly done: Float64Array;
  /** Bytes of the part that is on the wire. */
  readonly part: Float64Array;
  /** Number of a request among all, as it was first given to the wire. */
  readonly order: Float64Array;
  #sequence = 0;
  /** Tags that wait for the wire, oldest first, in a ring. */
  readonly #pending: Uint32Array;
  #head = 0;
  #count = 0;

  constructor(tags: number) {
    this.kept = new KeptRequests(tags);
    this.state = new Uint8Array(tags);
    this.done = new Float64Array(tags);
    this.part = new Float64Array(tags);
    this.order = new Float64Array(tags);
    this.#pending = new Uint32Array(tags);
  }

  /** A number that is greater than every one before. */
  stamp(): number {
    return this.#sequence++;
  }

  /** The tag that is next on the wire, or -1. */
  get next(): number {
    return this.#count === 0 ? -1 : this.#pending[this.#head]!;
  }

  /** Takes {@link next} off what waits. */
  shift(): void {
    this.#head = (this.#head + 1) % this.#pending.length;
    this.#count--;
  }

  /** A request, or its next part, waits behind the others. */
  push(tag: number): void {
    if (this.done[tag] === 0) this.order[tag] = this.stamp();
    this.state[tag] = REQUEST.waiting;
    this.#pending[(this.#head + this.#count) % this.#pending.length] = tag;
    this.#count++;
  }

  /** A request waits before all others. */
  pushFirst(tag: number): void {
    this.state[tag] = REQUEST.waiting;
    this.#head = (this.#head + this.#pending.length - 1) % this.#pending.length;
    this.#pending[this.#head] = tag;
    this.#count++;
  }

  /** Nothing waits for the wire any more. */
  clear(): void {
    this.#head = 0;
    this.#count = 0;
  }

  /** Whether a request is one that the disk can do, as an {@link ERRNO} code. */
  check(tag: number, info: BlockInfo, memory: GuestMemory): number {
    const { kept } = this;
    const op = kept.op[tag]!;
    const offset = kept.offset[tag]!;
    const length = kept.length[tag]!;
    const { sizeBytes, blockSizeBytes, readonly, maxTransferBytes } = info;
    if (op !== BLOCK_OP.read && op !== BLOCK_OP.flush && readonly) return ERRNO.EROFS;
    if (op === BLOCK_OP.flush) return ERRNO.OK;
    if (!(offset >= 0 && length >= 0 && offset + length <= sizeBytes)) return ERRNO.EINVAL;
    if (offset % blockSizeBytes !== 0 || length % blockSizeBytes !== 0) return ERRNO.EINVAL;
    if (op !== BLOCK_OP.read && op !== BLOCK_OP.write) return ERRNO.OK;
    if (length > maxTransferBytes) return ERRNO.EINVAL;
    const addresses = kept.addresses(tag);
    const lengths = kept.lengths(tag);
    let total = 0;
    for (let i = 0; i < kept.count[tag]!; i++) {
      const bytes = lengths[i]!;
      if (bytes > 0 && !memory.contains(addresses[i]!, bytes)) return ERRNO.EFAULT;
      total += bytes;
    }
    return total === length ? ERRNO.OK : ERRNO.EINVAL;
  }
}
