/** The seam to whoever decides which host may run the guest (docs/replication.md, "Authority"). */
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
