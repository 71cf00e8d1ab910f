/**
 * The first copy: all pages, then those written meanwhile, round by round, in slices between which the event loop runs, while the
 * guest runs. Ends when what is left fits the allowed downtime. Knows neither connection nor protocol: its owner says
 * whether it is still wanted and takes the chunks.
 */
import { assert } from '../../base/assert.ts';
import { PAGE_SIZE } from '../../memory/dirty-set.ts';
import { SyncRounds } from '../core/epoch-policy.ts';
import { allFrames, type ReplicatedGuest } from './guest.ts';
import type { PageSender } from './page-sender.ts';
import { BLOCK_PAGES, type Staging } from './staging.ts';

/** Most rounds while the guest runs. */
const ROUNDS_MAX = 30;
/** So few pages are not worth a round, whatever the measured rate says: 4 MiB. */
const REST_PAGES = 1024;

/** Progress of the first copy. */
export interface SyncProgress {
  readonly round: number;
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly bytesPerSecond: number;
}

/** What the copy is made with. */
export interface FirstCopyParts {
  readonly guest: ReplicatedGuest;
  readonly sender: PageSender;
  readonly staging: Staging;
  /** The guest may stand still this long for what is left at the end. */
  readonly maxDowntimeNs: number;
  nowNs(): number;
}

/** Who wants it. */
export interface FirstCopyOwner {
  /** Whether the copy is still of use: the connection stands and asked for it. */
  wanted(): boolean;
  /** A chunk buffer is filled. */
  chunk(chunk: number): void;
  progress(progress: SyncProgress): void;
  /**
   * It has converged.
   * @param rest frame numbers of pages that are still to be sent, by the first transaction
   * @param late the guest writes faster than the link takes it: the rest is more than the downtime allows
   */
  done(rest: Uint32Array, late: boolean): void;
}

/** See the module's head. */
export class FirstCopy {
  readonly #parts: FirstCopyParts;
  readonly #owner: FirstCopyOwner;
  readonly #rounds: SyncRounds;
  readonly #list: Uint32Array;
  #pages: Uint32Array;
  #done = 0;
  #roundBytes = 0;
  #roundStartNs: number;

  constructor(parts: FirstCopyParts, owner: FirstCopyOwner) {
    this.#parts = parts;
    this.#owner = owner;
    const { guest, maxDowntimeNs } = parts;
    this.#list = new Uint32Array(guest.memory.totalBytes / PAGE_SIZE);
    this.#rounds = new SyncRounds({ downtimeMaxNs: maxDowntimeNs, roundsMax: ROUNDS_MAX });
    this.#pages = allFrames(guest.memory);
    this.#roundStartNs = parts.nowNs();
  }

  /** Copies one slice, then yields to the event loop. */
  run(): void {
    if (!this.#owner.wanted()) return;
    if (this.#done === this.#pages.length) {
      this.#roundDone();
      return;
    }
    const { guest, sender, staging } = this.#parts;
    const { pool } = sender;
    const chunk = pool.take();
    if (chunk < 0) {
      pool.onFree(() => setImmediate(() => this.run()));
      return;
    }
    const block = staging.take();
    assert(block >= 0, 'nothing else occupies staging during the first copy');
    const count = Math.min(BLOCK_PAGES, this.#pages.length - this.#done);
    const pages = this.#pages.subarray(this.#done, this.#done + count);
    guest.map.gather(pages, count, staging.bytes.subarray(block, block + count * PAGE_SIZE));
    const taken = sender.encodePages(chunk, pages, 0, count, staging.bytes, block);
    staging.release(block);
    this.#done += taken;
    this.#roundBytes += pool.content(chunk).length;
    this.#owner.chunk(chunk);
    setImmediate(() => this.run());
  }

  #roundDone(): void {
    const { guest, nowNs } = this.#parts;
    this.#rounds.roundDone(this.#roundBytes, nowNs() - this.#roundStartNs);
    this.#owner.progress({
      round: this.#rounds.rounds,
      doneBytes: this.#roundBytes,
      totalBytes: this.#pages.length * PAGE_SIZE,
      bytesPerSecond: this.#rounds.bytesPerNs * 1e9,
    });
    const count = guest.harvest(this.#list);
    const next = count <= REST_PAGES ? 'commit' : this.#rounds.next(count * PAGE_SIZE);
    const rest = this.#list.slice(0, count);
    if (next !== 'round') {
      this.#owner.done(rest, next === 'commit-late');
      return;
    }
    this.#pages = rest;
    this.#done = 0;
    this.#roundBytes = 0;
    this.#roundStartNs = nowNs();
    this.run();
  }
}
