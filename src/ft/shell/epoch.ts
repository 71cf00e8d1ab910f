/**
 * One captured checkpoint on its way to the peer: which pages, where their copies lie, states and log. Encoded chunk by chunk
 * while the guest runs; each block of copies is free as soon as it is encoded.
 */
import { type AheadTotals, NO_AHEAD } from './ahead.ts';
import type { ReplicatedGuest } from './guest.ts';
import { BLOCK_PAGES, type Staging } from './staging.ts';

/** From this many pages on they are copied on a thread beside this one: waking it takes as long as copying a few hundred. */
const BESIDE_PAGES = 1024;

/** See the module's head. */
export class Epoch {
  readonly number: number;
  readonly pages: Uint32Array;
  /** Everything but memory; empty until it is there. */
  container: Uint8Array = new Uint8Array(0);
  log: Uint8Array = new Uint8Array(0);
  /** What of this checkpoint was sent before it was taken. */
  readonly ahead: AheadTotals;
  readonly #staging: Staging;
  readonly #guest: ReplicatedGuest;
  /** Block offsets by position; -1 once encoded, or never copied. */
  readonly #blocks: number[] = [];
  /** Pages encoded so far. */
  done = 0;
  #disposed = false;

  constructor(
    number: number,
    pages: Uint32Array,
    staging: Staging,
    guest: ReplicatedGuest,
    ahead: AheadTotals = NO_AHEAD,
  ) {
    this.number = number;
    this.pages = pages;
    this.#staging = staging;
    this.#guest = guest;
    this.ahead = ahead;
  }

  /** What it occupies in staging, bytes. */
  get bytes(): number {
    return this.pages.length * 4096 + this.container.length + this.log.length;
  }

  /**
   * Begins to copy as many pages as staging has room for, beside what the caller does; the guest stands still. Ended by
   * {@link endCopy}, whatever happens in between. @returns whether all fit
   */
  beginCopy(): boolean {
    const wanted = Math.ceil(this.pages.length / BLOCK_PAGES);
    if (this.pages.length < BESIDE_PAGES) {
      while (this.#blocks.length < wanted) if (!this.#copyBlock(this.#blocks.length)) return false;
      return true;
    }
    while (this.#blocks.length < wanted) {
      const offset = this.#staging.take();
      if (offset < 0) break;
      this.#blocks.push(offset);
    }
    const { map } = this.#guest;
    const count = Math.min(this.pages.length, this.#blocks.length * BLOCK_PAGES);
    const blocks = Uint32Array.from(this.#blocks);
    map.beginGather(this.pages, count, this.#staging.bytes, blocks, BLOCK_PAGES);
    return this.#blocks.length === wanted;
  }

  /** Waits for the copies, and helps with them. */
  endCopy(): void {
    this.#guest.map.endGather();
  }

  #copyBlock(index: number): boolean {
    const offset = this.#staging.take();
    if (offset < 0) return false;
    const first = index * BLOCK_PAGES;
    const count = Math.min(BLOCK_PAGES, this.pages.length - first);
    this.#guest.map.gather(
      this.pages.subarray(first, first + count),
      count,
      this.#staging.bytes.subarray(offset, offset + count * 4096),
    );
    this.#blocks[index] = offset;
    return true;
  }

  /** Where page number `this.done` lies in staging, and how many follow it there; copies now what did not fit before. */
  next(): { readonly offset: number; readonly count: number } | undefined {
    const index = Math.floor(this.done / BLOCK_PAGES);
    if (this.#blocks[index] === undefined && !this.#copyBlock(index)) return undefined;
    const within = this.done - index * BLOCK_PAGES;
    const end = Math.min(this.pages.length, (index + 1) * BLOCK_PAGES);
    return { offset: this.#blocks[index]! + within * 4096, count: end - this.done };
  }

  /** `count` more pages are encoded. */
  advance(count: number): void {
    const before = Math.floor(this.done / BLOCK_PAGES);
    this.done += count;
    const after =
      this.done === this.pages.length ? this.#blocks.length : Math.floor(this.done / BLOCK_PAGES);
    for (let i = before; i < after; i++) this.#free(i);
  }

  #free(index: number): void {
    const offset = this.#blocks[index];
    if (offset === undefined || offset < 0) return;
    this.#staging.release(offset);
    this.#blocks[index] = -1;
  }

  /** Whether it is of no more use: its copies may have been overwritten. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /** Gives back what it still occupies. */
  dispose(): void {
    this.#disposed = true;
    for (let i = 0; i < this.#blocks.length; i++) this.#free(i);
  }
}
