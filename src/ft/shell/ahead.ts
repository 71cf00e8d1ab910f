/**
 * Pages of the next checkpoint, sent before it: harvested and copied while the guest runs, slice by slice, at the price of
 * sending again what the guest writes after that. The page is taken off the dirty set *before* it is copied, so a copy that the
 * guest tore is always followed by a whole one. Nothing of it counts before the transaction commits.
 */
import { PAGE_SIZE } from '../../memory/dirty-set.ts';
import { PAGES_AHEAD_SHARE } from '../wire/page-stream.ts';
import type { ReplicatedGuest } from './guest.ts';
import type { PageSender } from './page-sender.ts';
import { BLOCK_PAGES, type Staging } from './staging.ts';

/** What has been sent ahead, as the checkpoint that it belongs to has to account for it. */
export interface AheadTotals {
  /** The pages, in the order in which they were sent. */
  readonly pages: Uint32Array;
  readonly frames: number;
  readonly bytes: number;
  /** Running CRC-32C of the frames. */
  readonly crc: number;
}

/** A checkpoint of which nothing was sent ahead. */
export const NO_AHEAD: AheadTotals = { pages: new Uint32Array(0), frames: 0, bytes: 0, crc: 0 };

/** See the module's head. */
export class Ahead {
  readonly epoch: number;
  readonly #pages: Uint32Array;
  readonly #guest: ReplicatedGuest;
  readonly #staging: Staging;
  readonly #sender: PageSender;
  readonly #chunk: (chunk: number) => boolean;
  #done = 0;
  /** Copies that are not encoded yet: of pages[#blockFirst, #blockEnd), at this offset in staging; -1: none. */
  #block = -1;
  #blockFirst = 0;
  #blockEnd = 0;
  #frames = 0;
  #bytes = 0;
  #crc = 0;
  #stopped = false;

  /**
   * @param pages frame numbers that were just taken off the dirty set
   * @param chunk takes a filled chunk buffer; false when it is of no use any more
   */
  constructor(
    epoch: number,
    pages: Uint32Array,
    guest: ReplicatedGuest,
    staging: Staging,
    sender: PageSender,
    chunk: (chunk: number) => boolean,
  ) {
    this.epoch = epoch;
    this.#pages = pages;
    this.#guest = guest;
    this.#staging = staging;
    this.#sender = sender;
    this.#chunk = chunk;
  }

  /** Sends one chunk, then yields to the event loop. Waits while all chunk buffers are with the network. */
  run(): void {
    if (this.#stopped || this.#done === this.#pages.length) return;
    const { pool } = this.#sender;
    const chunk = pool.take();
    if (chunk < 0) {
      pool.onFree(() => setImmediate(() => this.run()));
      return;
    }
    if (!this.#copied()) {
      pool.release(chunk);
      return; // Staging belongs to checkpoints that were taken: what is left waits for the next one.
    }
    const count = this.#blockEnd - this.#done;
    const offset = this.#block + (this.#done - this.#blockFirst) * PAGE_SIZE;
    const { bytes } = this.#staging;
    this.#done += this.#sender.encodePages(chunk, this.#pages, this.#done, count, bytes, offset);
    if (this.#done === this.#blockEnd) this.#release();
    this.#frames++;
    this.#bytes += pool.content(chunk).length;
    this.#crc = this.#sender.crc(chunk, this.#crc);
    if (!this.#chunk(chunk)) {
      pool.release(chunk);
      this.#stopped = true;
      this.#release();
      return;
    }
    setImmediate(() => this.run());
  }

  #copied(): boolean {
    if (this.#block >= 0) return true;
    const block = this.#staging.take();
    if (block < 0) return false;
    this.#block = block;
    this.#blockFirst = this.#done;
    this.#blockEnd = Math.min(this.#pages.length, this.#done + BLOCK_PAGES);
    const count = this.#blockEnd - this.#blockFirst;
    this.#guest.map.gather(
      this.#pages.subarray(this.#blockFirst, this.#blockEnd),
      count,
      this.#staging.bytes.subarray(block, block + count * PAGE_SIZE),
    );
    return true;
  }

  #release(): void {
    if (this.#block >= 0) this.#staging.release(this.#block);
    this.#block = -1;
  }

  /** Sends nothing more. What was harvested and not sent is dirty again. @returns what was sent */
  stop(): AheadTotals {
    this.#stopped = true;
    this.#release();
    markDirty(this.#guest, this.#pages.subarray(this.#done));
    const pages = this.#pages.subarray(0, this.#done);
    return { pages, frames: this.#frames, bytes: this.#bytes, crc: this.#crc };
  }
}

/** Takes what is worth sending ahead off the dirty set: at most a share of guest memory. */
export function harvestAhead(guest: ReplicatedGuest, list: Uint32Array): Uint32Array {
  const count = guest.harvest(list);
  const most = Math.floor((guest.memory.totalBytes / PAGE_SIZE) * PAGES_AHEAD_SHARE);
  if (count > most) markDirty(guest, list.subarray(most, count));
  return list.slice(0, Math.min(count, most));
}

/** Pages that were harvested and have not reached the peer: they are dirty again. */
export function markDirty(guest: ReplicatedGuest, pages: Uint32Array): void {
  const { dirty } = guest.memory;
  for (const page of pages) dirty.mark(page * PAGE_SIZE, PAGE_SIZE);
}

/** Finds pages that were sent ahead and captured again. */
export class Repeats {
  readonly #marks: Uint8Array;
  readonly #found: Uint32Array;

  /** @param frames one more than the highest frame number */
  constructor(frames: number) {
    this.#marks = new Uint8Array(frames);
    this.#found = new Uint32Array(Math.ceil(frames * PAGES_AHEAD_SHARE));
  }

  /** The pages that are in both lists; the result is valid until the next call. */
  of(ahead: Uint32Array, captured: Uint32Array): Uint32Array {
    const marks = this.#marks;
    const found = this.#found;
    for (let i = 0; i < ahead.length; i++) marks[ahead[i]!] = 1;
    let count = 0;
    for (let i = 0; i < captured.length; i++) {
      if (marks[captured[i]!] === 1) found[count++] = captured[i]!;
    }
    for (let i = 0; i < ahead.length; i++) marks[ahead[i]!] = 0;
    return found.subarray(0, count);
  }
}
