/**
 * The vocabulary of the primary machine (primary.ts): how it is set up, what it wants done, and where it can be. For the machine
 * itself, the shell that carries its effects out, and the simulator.
 */
import type { Hello } from '../wire/message.ts';
import type { EffectQueue } from './effects.ts';
import type { CommitReason, PolicyConfig } from './epoch-policy.ts';
import type { ArbiterEffect, AuthorityConfig, PrimaryAuthority } from './failover.ts';
import type { LivenessConfig } from './liveness.ts';
import type { Sender, SenderEffect } from './sender.ts';

/** How a primary is set up. */
export interface PrimaryConfig {
  /** What this end announces; its generation is the guest's. */
  readonly hello: Hello;
  readonly authority: AuthorityConfig;
  readonly policy: PolicyConfig;
  readonly liveness: LivenessConfig;
  /** Whether a peer is wanted at all from the start. */
  readonly protect: boolean;
  /** From one connection attempt to the next. */
  readonly reconnectNs: number;
  /** How long a lost peer may stay lost, with outputs held, before authority to go on alone is sought. */
  readonly graceNs: number;
  /** An epoch (or HELLO, INIT, END ...) unanswered for this long means that the peer is lost, although it may still speak. */
  readonly ackDeadlineNs: number;
}

/** What the shell does for the primary. Sender effects keep their duties (sender.ts). */
export type PrimaryEffect =
  | SenderEffect
  | ArbiterEffect
  /** Try to connect to the standby; report `connected`, or `dialFailed` where that is known. */
  | { readonly type: 'connect' }
  /**
   * Take a checkpoint. Duty, in order: stop the vCPUs at a completed boundary, drain I/O completions, call
   * {@link Primary.paused}, harvest and gather into staging, capture states and {@link EventTap.writeLog},
   * run on unless `atomic`, call {@link Primary.captured} (or {@link Primary.captureFailed}).
   */
  | {
      readonly type: 'capture';
      readonly epoch: number;
      readonly atomic: boolean;
      readonly reason: CommitReason;
    }
  /**
   * Send dirty pages ahead of the capture that will have this epoch, while the guest runs: harvest, *then* copy, and give the
   * chunks to {@link Primary.chunk}. Duty at that capture: what has not been sent is dirty again before the harvest, and what
   * is harvested goes behind what was sent, also pages that were sent already. `returned` may come instead.
   */
  | { readonly type: 'pre-copy'; readonly epoch: number }
  /** The guest, stopped by an atomic capture, runs on. */
  | { readonly type: 'run' }
  /** Stop the guest for good, let no output out: another generation runs it, or has been given it. */
  | { readonly type: 'fence'; readonly generation: number }
  /** The guest is over here: everything is out and the peer or the arbiter knows. The process may go. */
  | { readonly type: 'over'; readonly why: 'ended' | 'handed-over' }
  /** For status lines and logs; no duty. */
  | { readonly type: 'phase'; readonly phase: PrimaryPhase; readonly sentence: string };

/** Where a primary is. */
export type PrimaryPhase =
  /** No protection; outputs pass. */
  | 'alone'
  /** A standby is being synchronised. */
  | 'joining'
  /** The standby may take over. */
  | 'protected'
  /** The standby is lost; outputs wait for it, the arbiter or the operator. */
  | 'lost'
  /** The guest stands still while it is handed over, or after its end. */
  | 'handing'
  | 'ending'
  /** Another generation runs the guest. */
  | 'fenced'
  | 'over';

/** The parts that a test may replace. */
export interface PrimaryParts {
  sender(hello: Hello, out: EffectQueue<SenderEffect>): Sender;
  authority(
    generation: number,
    config: AuthorityConfig,
    out: EffectQueue<ArbiterEffect>,
  ): PrimaryAuthority;
}
