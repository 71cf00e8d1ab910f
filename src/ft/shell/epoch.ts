/**
 * One captured checkpoint on its way to the peer: which pages, where their copies lie, states and log. Encoded chunk by chunk
 * while the guest runs; each block of copies is free as soon as it is encoded.
 */
import { type AheadTotals, NO_AHEAD } from './ahead.ts';
import type { ReplicatedGuest } from './guest.ts';
import { BLOCK_PAGES, type Staging } from './staging.ts';

/** See the module's head. */
export class Epoch {
  readonly number: number;
  readonly pages: Uint32Array;
  readonly container: Uint8Array;
  readonly log: Uint8Array;
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
    container: Uint8Array,
    log: Uint8Array,
    staging: Staging,
    guest: ReplicatedGuest,
    ahead: AheadTotals = NO_AHEAD,
  ) {
    this.number = number;
    this.pages = pages;
    this.container = container;
    this.log = log;
    this.#staging = staging;
    this.#guest = guest;
    this.ahead = ahead;
  }

  /** What it occupies in staging, bytes. */
  get bytes(): number {
    return this.pages.length * 4096 + this.container.length + this.log.length;
  }

  /** Copies as many pages as staging has room for; the guest stands still. @returns whether all fitted */
  copyPages(): boolean {
    while (this.#blocks.length * BLOCK_PAGES < this.pages.length) {
      if (!this.#copyBlock(this.#blocks.length)) return false;
    }
    return true;
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
