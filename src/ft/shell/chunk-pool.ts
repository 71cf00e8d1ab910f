/** A fixed number of equal buffers: the bound (R5) of what is encoded and not yet taken by the network. */
import { assert } from '../../base/assert.ts';

/** Hands out buffers by number. */
export class ChunkPool {
  readonly #buffers: readonly Uint8Array[];
  readonly #free: number[];
  readonly #used: Uint32Array;
  #onFree: (() => void) | undefined;

  constructor(count: number, bytes: number) {
    this.#buffers = Array.from({ length: count }, () => new Uint8Array(bytes));
    this.#free = Array.from({ length: count }, (_, i) => i);
    this.#used = new Uint32Array(count);
  }

  /** A buffer's number, or -1 when all are in use: {@link onFree} tells when one comes back. */
  take(): number {
    return this.#free.pop() ?? -1;
  }

  bytes(chunk: number): Uint8Array {
    return this.#buffers[chunk]!;
  }

  /** Notes how much of it is filled. */
  fill(chunk: number, used: number): void {
    this.#used[chunk] = used;
  }

  /** The filled part. */
  content(chunk: number): Uint8Array {
    return this.#buffers[chunk]!.subarray(0, this.#used[chunk]);
  }

  release(chunk: number): void {
    assert(!this.#free.includes(chunk), 'a buffer comes back once');
    this.#free.push(chunk);
    const waiting = this.#onFree;
    this.#onFree = undefined;
    waiting?.();
  }

  /** Calls `callback` once when a buffer comes back; replaces an earlier one. */
  onFree(callback: () => void): void {
    this.#onFree = callback;
  }
}
