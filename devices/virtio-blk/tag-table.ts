/**
 * Requests of a virtio-blk device that are at its backend, by tag: which chain each belongs to, and what has to be
 * done when it completes. Struct of arrays; nothing is allocated once every tag has carried its largest request.
 */
import { assert } from '../../src/base/assert.ts';
import { BLOCK_OP, type BlockOp } from '../../src/block/backend.ts';
import { KeptRequests } from '../../src/block/kept-requests.ts';
import type { DirtySet } from '../../src/memory/dirty-set.ts';

const FREE = 0;
const ACTIVE = 1;
/** At the backend, but nobody waits for it: the device was reset, or took over another state. */
const FORGOTTEN = 2;
/** Completed while the device was paused. */
const HELD = 3;

export class TagTable {
  readonly #state: Uint8Array;
  readonly #heads: Uint16Array;
  readonly #status: Float64Array;
  readonly #results: Int32Array;
  /** Of each tag: what it does, and where a read writes. */
  readonly #kept: KeptRequests;
  /** A stack of free tags. */
  readonly #freeTags: Uint16Array;
  #freeCount: number;
  readonly #held: Uint16Array;
  #heldCount = 0;

  constructor(tags: number) {
    this.#state = new Uint8Array(tags);
    this.#heads = new Uint16Array(tags);
    this.#status = new Float64Array(tags);
    this.#results = new Int32Array(tags);
    this.#kept = new KeptRequests(tags);
    this.#freeTags = Uint16Array.from({ length: tags }, (_, i) => tags - 1 - i);
    this.#freeCount = tags;
    this.#held = new Uint16Array(tags);
  }

  /** Whether {@link take} can be called. */
  get available(): boolean {
    return this.#freeCount > 0;
  }

  /** Tags at the backend or held. */
  get busy(): number {
    return this.#state.length - this.#freeCount;
  }

  /** Takes a tag for the chain `head`, whose status byte is at `statusAddress`. */
  take(head: number, statusAddress: number, op: BlockOp): number {
    assert(this.#freeCount > 0, 'a tag is free');
    const tag = this.#freeTags[--this.#freeCount]!;
    this.#state[tag] = ACTIVE;
    this.#heads[tag] = head;
    this.#status[tag] = statusAddress;
    this.#kept.op[tag] = op;
    this.#kept.count[tag] = 0;
    return tag;
  }

  /** Remembers where a read will have written. */
  keepSegments(
    tag: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void {
    this.#kept.keepSegments(tag, addresses, lengths, first, count);
  }

  /** Marks what a read has written as dirty. @returns its bytes */
  markSegments(tag: number, dirty: DirtySet): number {
    const addresses = this.#kept.addresses(tag);
    const lengths = this.#kept.lengths(tag);
    const count = this.#kept.count[tag]!;
    let bytes = 0;
    for (let i = 0; i < count; i++) {
      const length = lengths[i]!;
      dirty.mark(addresses[i]!, length);
      bytes += length;
    }
    return bytes;
  }

  opOf(tag: number): BlockOp {
    return this.#kept.op[tag] as BlockOp;
  }

  headOf(tag: number): number {
    return this.#heads[tag]!;
  }

  statusOf(tag: number): number {
    return this.#status[tag]!;
  }

  /** The request goes on as a flush under the same tag. */
  becomeFlush(tag: number): void {
    this.#kept.op[tag] = BLOCK_OP.flush;
    this.#kept.count[tag] = 0;
  }

  isForgotten(tag: number): boolean {
    return this.#state[tag] === FORGOTTEN;
  }

  free(tag: number): void {
    assert(this.#state[tag] !== FREE, 'the tag is in use');
    this.#state[tag] = FREE;
    this.#freeTags[this.#freeCount++] = tag;
  }

  /** Keeps a completion until {@link takeHeld}. */
  hold(tag: number, result: number): void {
    this.#state[tag] = HELD;
    this.#results[tag] = result;
    this.#held[this.#heldCount++] = tag;
  }

  /** Hands over the completions that were kept, in their order. */
  takeHeld(finish: (tag: number, result: number) => void): void {
    const count = this.#heldCount;
    this.#heldCount = 0;
    for (let i = 0; i < count; i++) {
      const tag = this.#held[i]!;
      this.#state[tag] = ACTIVE;
      finish(tag, this.#results[tag]!);
    }
  }

  /**
   * Nobody waits for anything any more; tags at the backend stay taken until they complete. Reads whose completion was held
   * back have written to memory: marks that as dirty.
   */
  forgetAll(dirty: DirtySet): void {
    for (let i = 0; i < this.#heldCount; i++) {
      this.markSegments(this.#held[i]!, dirty);
      this.free(this.#held[i]!);
    }
    this.#heldCount = 0;
    for (let tag = 0; tag < this.#state.length; tag++) {
      if (this.#state[tag] === ACTIVE) this.#state[tag] = FORGOTTEN;
    }
  }
}
