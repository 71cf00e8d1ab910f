/**
 * A disk in host memory, for tests and simulations. Does what real backends do (batches, completions later, error
 * codes), and can be told to fail, to hold completions back, and to complete in another order.
 */
import { assert } from '../base/assert.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import {
  BLOCK_OP,
  type BlockBackend,
  type BlockHandler,
  type BlockInfo,
  type BlockOp,
  ERRNO,
} from './backend.ts';
import { Completions } from './completions.ts';

export interface MemoryDiskOptions {
  readonly sizeBytes: number;
  readonly blockSizeBytes?: number;
  readonly readonly?: boolean;
  readonly maxRequests?: number;
  /** `loop`: completions come by themselves soon after `submit`; `poll`: only from `poll()`. Default `loop`. */
  readonly delivery?: 'loop' | 'poll';
}

interface Pending {
  readonly tag: number;
  readonly op: BlockOp;
  readonly result: number;
}

export class MemoryDisk implements BlockBackend {
  readonly info: BlockInfo;
  /** The content, as written so far (also what was not flushed). */
  readonly content: Uint8Array;
  /** The content as of the last completed flush: what a power cut would leave at worst. */
  readonly durable: Uint8Array;
  /** Every operation that was done, in order, for assertions. */
  readonly journal: { op: BlockOp; offset: number; length: number }[] = [];
  /** While true nothing completes. */
  held = false;
  /** While true, what is submitted is done when it completes, not before: the latest that a disk may touch memory. */
  late = false;
  /** Decides the result of an operation instead of the disk; undefined lets the disk do it. */
  fault: ((op: BlockOp, offset: number, length: number) => number | undefined) | undefined;

  readonly #memory: GuestMemory;
  readonly #completions: Completions;
  readonly #delivery: 'loop' | 'poll';
  #queued: (() => Pending)[] = [];
  #done: (() => Pending)[] = [];
  #scheduled = false;

  constructor(memory: GuestMemory, options: MemoryDiskOptions) {
    const blockSizeBytes = options.blockSizeBytes ?? 512;
    assert(options.sizeBytes % blockSizeBytes === 0, 'a disk is a whole number of blocks');
    this.#memory = memory;
    this.#delivery = options.delivery ?? 'loop';
    this.content = new Uint8Array(options.sizeBytes);
    this.durable = new Uint8Array(options.sizeBytes);
    this.info = {
      name: 'memory',
      sizeBytes: options.sizeBytes,
      blockSizeBytes,
      physicalBlockSizeBytes: blockSizeBytes,
      readonly: options.readonly === true,
      volatileCache: true,
      discard: true,
      writeZeroes: true,
      maxRequests: options.maxRequests ?? 256,
      maxSegments: 1024,
      maxTransferBytes: 64 * 1024 * 1024,
    };
    this.#completions = new Completions(this.info.maxRequests);
  }

  get inFlight(): number {
    return this.#completions.inFlight;
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
    const where = Array.from(addresses.subarray(first, first + count));
    const sizes = Array.from(lengths.subarray(first, first + count));
    this.#queued.push(() => ({
      tag,
      op,
      result: this.#run(op, offsetBytes, lengthBytes, where, sizes),
    }));
  }

  submit(): void {
    for (const run of this.#queued) {
      const done = this.late ? undefined : run();
      this.#done.push(done === undefined ? run : () => done);
    }
    this.#queued = [];
    this.#schedule();
  }

  /** Lets completions go that {@link held} kept back. */
  release(): void {
    this.held = false;
    this.#schedule();
  }

  poll(): number {
    if (this.held || this.#completions.delivering) return 0;
    const batch = this.#done;
    this.#done = [];
    this.#completions.start();
    for (const run of batch) {
      const { tag, op, result } = run();
      if (op === BLOCK_OP.flush && result === ERRNO.OK) this.durable.set(this.content);
      this.#completions.deliver(tag, result);
    }
    return this.#completions.end();
  }

  drain(done: () => void): void {
    this.#completions.drain(done);
  }

  async close(): Promise<void> {
    this.held = false;
    this.poll();
    await this.#completions.close();
  }

  #schedule(): void {
    if (this.#delivery === 'poll' || this.#scheduled || this.held || this.#done.length === 0)
      return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.poll();
      this.#schedule();
    });
  }

  #run(op: BlockOp, offset: number, length: number, where: number[], sizes: number[]): number {
    const injected = this.fault?.(op, offset, length);
    if (injected !== undefined) return injected;
    const { info, content } = this;
    if (op !== BLOCK_OP.read && op !== BLOCK_OP.flush && info.readonly) return ERRNO.EROFS;
    this.journal.push({ op, offset, length });
    if (op === BLOCK_OP.flush) return ERRNO.OK;
    if (!(offset >= 0 && length >= 0 && offset + length <= info.sizeBytes)) return ERRNO.EINVAL;
    if (offset % info.blockSizeBytes !== 0 || length % info.blockSizeBytes !== 0)
      return ERRNO.EINVAL;
    if (op !== BLOCK_OP.read && op !== BLOCK_OP.write) {
      content.fill(0, offset, offset + length);
      return ERRNO.OK;
    }
    if (sizes.reduce((sum, size) => sum + size, 0) !== length) return ERRNO.EINVAL;
    for (let i = 0; i < where.length; i++) {
      if (sizes[i]! > 0 && !this.#memory.contains(where[i]!, sizes[i]!)) return ERRNO.EFAULT;
    }
    let at = offset;
    for (let i = 0; i < where.length; i++) {
      if (op === BLOCK_OP.read) this.#memory.write(where[i]!, content, at, sizes[i]!);
      else this.#memory.read(where[i]!, content, at, sizes[i]!);
      at += sizes[i]!;
    }
    return ERRNO.OK;
  }
}
