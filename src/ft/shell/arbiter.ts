/** The seam to whoever decides which host may run the guest (docs/replication.md, "Authority"). */
import type { Logger } from '../../base/log.ts';
import type { ArbiterRequest } from '../core/failover.ts';
import type { Lease } from './lease.ts';

/** What an arbiter answers; the shell adds the ticket. */
export interface ArbiterVerdict {
  readonly result: 'ok' | 'refused' | 'unreachable';
  /** The generation on record; 0 where unknown. */
  readonly generation: number;
  /** Why it refused, one sentence. */
  readonly sentence: string;
}

/** An arbiter, as one host sees it. */
export interface Arbiter {
  /** For messages: `lock /shared/guest.lock`. */
  readonly name: string;
  /** Where authority lapses by itself: until when outputs may leave. */
  readonly lease: Lease | undefined;
  /**
   * A new guest starts here: takes authority and begins a generation.
   * @returns the generation
   * @throws VmmError `ARBITER_*` when the guest runs elsewhere, or the arbiter cannot be asked
   */
  begin(): Promise<number>;
  /** Carries out one request. An answer other than `unreachable` is final. */
  request(request: ArbiterRequest): Promise<ArbiterVerdict>;
  /** Gives back what is held; the record stays. */
  close(): void | Promise<void>;
}

/** Different sentences that are said of one failure; members of a cluster fail in several ways. */
const SENTENCES_MAX = 8;

/** Says what goes wrong with an arbiter: each sentence once, however often it is tried, until it answers again. */
export class ArbiterTrouble {
  readonly #log: Logger;
  readonly #said = new Set<string>();

  constructor(log: Logger) {
    this.#log = log;
  }

  /** Whether anything was said since it answered last. */
  get told(): boolean {
    return this.#said.size > 0;
  }

  /** @param sentence '' where nothing is wrong (any more) */
  tell(sentence: string): void {
    if (sentence === '') this.#said.clear();
    else if (!this.#said.has(sentence) && this.#said.size < SENTENCES_MAX) {
      this.#said.add(sentence);
      this.#log.warn(`arbiter: ${sentence}`);
    }
  }

  /**
   * What an arbiter has answered. One with a lease says by itself what keeps it from answering.
   * @param refusals whether a refusal is trouble: to whoever runs the guest, but not to whoever may want it
   */
  answered(arbiter: Arbiter, { result, sentence }: ArbiterVerdict, refusals: boolean): void {
    if (result === 'unreachable' && arbiter.lease !== undefined) return;
    this.tell(result === 'unreachable' || (result === 'refused' && refusals) ? sentence : '');
  }
}
