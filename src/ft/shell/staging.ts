/**
 * Where captured pages lie until they are encoded: blocks of a fixed number of pages, so that several epochs share one bounded
 * area. A capture that finds too few free blocks keeps the guest stopped and streams instead (see checkpoint.ts).
 */
import { PAGE_SIZE } from '../../memory/dirty-set.ts';

/** Pages of one block: 2 MiB. */
export const BLOCK_PAGES = 512;

/** See the module's head. */
export class Staging {
  readonly bytes: Uint8Array;
  readonly #free: number[];

  /**
   * @param blocks how many; at least enough for two ordinary checkpoints
   * @param allocate where the memory comes from; a plain array when absent
   */
  constructor(
    blocks: number,
    allocate = (sizeBytes: number): Uint8Array => new Uint8Array(sizeBytes),
  ) {
    this.bytes = allocate(blocks * BLOCK_PAGES * PAGE_SIZE);
    this.#free = Array.from({ length: blocks }, (_, i) => blocks - 1 - i);
  }

  get freePages(): number {
    return this.#free.length * BLOCK_PAGES;
  }

  /** A free block's byte offset, or -1. */
  take(): number {
    const block = this.#free.pop();
    return block === undefined ? -1 : block * BLOCK_PAGES * PAGE_SIZE;
  }

  /** Gives back the block at a byte offset. */
  release(offset: number): void {
    this.#free.push(offset / (BLOCK_PAGES * PAGE_SIZE));
  }
}
