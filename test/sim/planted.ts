/**
 * Planted bugs: what the simulator must be able to find. Each breaks one rule, in the state machines (by
 * replacing one of their small decisions) or in the simulated shell around them. A simulator that does not find
 * one within its stated number of seeds is broken itself; sim.test.ts asserts that it does.
 */
import type { EffectQueue } from '../../src/ft/core/effects.ts';
import type { EventTap } from '../../src/ft/core/event-tap.ts';
import { PrimaryAuthority, StandbyAuthority } from '../../src/ft/core/failover.ts';
import { LeaseArbiter, type LeaseConfig } from '../../src/ft/core/lease-arbiter.ts';
import { Primary } from '../../src/ft/core/primary.ts';
import type { PrimaryConfig, PrimaryParts } from '../../src/ft/core/primary-types.ts';
import { Receiver, type ReceiverEffect } from '../../src/ft/core/receiver.ts';
import { Sender, type SenderEffect } from '../../src/ft/core/sender.ts';
import { Standby, type StandbyConfig, type StandbyParts } from '../../src/ft/core/standby.ts';
import { FAULT, type FaultCode } from '../../src/ft/wire/fault.ts';
import type {
  CommitMessage,
  ContinueMessage,
  Hello,
  Manifest,
  Message,
} from '../../src/ft/wire/message.ts';

/** The bugs, each with the seeds within which it must be found. */
export const PLANTED = {
  /** Outputs leave when the capture is made, not when it is acknowledged. */
  'release-before-ack': 50,
  /** The standby takes over because nothing is heard. */
  'promote-on-silence': 200,
  /** Pages go into the standby's memory as they arrive. */
  'apply-before-commit': 100,
  /** Block requests in flight are not part of the captured device state. */
  'drop-in-flight': 300,
  /** The tap takes more than was agreed. */
  'unbounded-log': 300,
  /** BEGIN with an id that was used before is accepted. */
  'stale-id': 500,
  /** A missing part of a transaction goes unnoticed. */
  'seq-gap': 300,
  /** ACK as soon as COMMIT arrives. */
  'ack-before-validation': 500,
  /** Outputs leave in another order than they were held. */
  'release-order': 50,
  /** After CANCEL or NACK deltas are still made against what never committed. */
  'delta-base-kept': 300,
  /** The primary goes on alone before the arbiter has recorded it. */
  'unprotected-before-record': 200,
  /** A standby that has END takes over all the same. */
  'end-ignored': 500,
  /** A standby without a first COMMIT takes over. */
  'takeover-without-commit': 1000,
  /** What another generation committed counts as an ACK. */
  'ack-of-other-generation': 1000,
  /** Nothing is replayed at the takeover. */
  'no-replay': 500,
  /** Pages of a transaction that did not commit are not sent again. */
  'returned-pages-lost': 300,
  /** What a device wrote into memory is not in the dirty set. */
  'device-writes-not-dirty': 100,
  /** A lease counts from the answer to the beat, not from the beat's sending. */
  'lease-from-answer': 600,
  /** Outputs go on until the very end of the lease, as if all clocks ran alike. */
  'lease-without-margin': 1000,
  /** The guest is taken without naming the revisions that were seen. */
  'takeover-without-transaction': 100,
  /** The guest is taken when its owner has been silent for a quarter of its lease. */
  'lease-cut-short': 200,
  /** The lease is looked at on the tick, and outputs are released by what was seen then. */
  'lease-checked-too-early': 300,
  /** A page that was sent ahead of the capture and written again after that is not sent again. */
  'ahead-not-resent': 100,
  /** A page sent a second time within a transaction is a delta to the first time, which has not committed. */
  'ahead-base-kept': 100,
  /** Parts of a transaction that was cancelled stay staged. */
  'cancelled-parts-kept': 100,
  /** An old primary that comes back goes on when it hears that a later generation of the guest has begun. */
  'old-primary-unfenced': 200,
  /** A standby's images get what a transaction does to them as its parts arrive. */
  'disk-apply-before-commit': 30,
  /** The images are not flushed when the first copy is complete, before its ACK. */
  'disk-copy-not-flushed': 100,
  /** The journal begins a new lap before what it held is flushed in the image. */
  'disk-lap-not-flushed': 100,
  /** The journal has no data. */
  'disk-epoch-not-journalled': 100,
  /** A recovery does half of the last epoch. */
  'disk-half-epoch-recovered': 30,
  /** With several disks a recovery does what each journal has, also where another has less. */
  'disk-journals-apart': 300,
  /** An epoch's writes are done in the order from last to first. */
  'disk-writes-reordered': 100,
  /** The first copy is called complete while memory has been copied and the disks' rest has not. */
  'disk-copy-cut-short': 30,
  /** The copy of a standby that comes back is taken for one of this run, whatever generation it is of. */
  'disk-old-copy-believed': 100,
  /** Disk writes of epochs that did not commit are not sent again. */
  'disk-returned-writes-lost': 100,
  /** A write goes to a primary's disk at once, and the activity log has its extent a while later. */
  'disk-extent-after-data': 300,
  /** The activity log leaves out the first of its extents. */
  'disk-extent-dropped': 300,
  /** An extent leaves the activity log when it is acknowledged, whether the disk has been flushed or not. */
  'disk-extent-not-flushed': 300,
  /** What a survivor has written since its takeover is left out of the copy that the lost host gets when it comes back. */
  'disk-survivor-not-marked': 30,
  /** What was acknowledged, and may never have reached the standby's disk, is not marked when the standby is lost. */
  'disk-acked-not-marked': 100,
} as const;

/** Name of a planted bug. */
export type Planted = keyof typeof PLANTED;

/** Those that are about leases. */
export const LEASE_BUGS: readonly Planted[] = [
  'lease-from-answer',
  'lease-without-margin',
  'takeover-without-transaction',
  'lease-cut-short',
  'lease-checked-too-early',
];

/** Those that are about replicated disks. */
export const DISK_BUGS = (Object.keys(PLANTED) as Planted[]).filter((bug) =>
  bug.startsWith('disk-'),
);

/** A planted revision that fits every other. */
export const ANY_REVISION = -1;

class LateLease extends LeaseArbiter {
  protected override leaseFrom(_sentNs: number, answeredNs: number): number {
    return answeredNs;
  }
}

class GreedyLease extends LeaseArbiter {
  protected override margin(): number {
    return 0;
  }
}

class RudeLease extends LeaseArbiter {
  protected override expected(): { recordRevision: number; ownerRevision: number } {
    return { recordRevision: ANY_REVISION, ownerRevision: ANY_REVISION };
  }
}

class HastyLease extends LeaseArbiter {
  protected override leaseIsOver(leaseNs: number, sinceNs: number, nowNs: number): boolean {
    return super.leaseIsOver(leaseNs / 4, sinceNs, nowNs);
  }
}

class AbsentMindedAuthority extends PrimaryAuthority {
  #seen = true;
  override tick(nowNs: number): void {
    this.#seen = super.leaseValid(nowNs);
    super.tick(nowNs);
  }
  override leaseValid(_nowNs: number): boolean {
    return this.#seen;
  }
}

/** A lease machine, with the bug if it is one of its. */
export function makeLeaseArbiter(bug: Planted | undefined, config: LeaseConfig): LeaseArbiter {
  switch (bug) {
    case 'lease-from-answer':
      return new LateLease(config);
    case 'lease-without-margin':
      return new GreedyLease(config);
    case 'takeover-without-transaction':
      return new RudeLease(config);
    case 'lease-cut-short':
      return new HastyLease(config);
    default:
      return new LeaseArbiter(config);
  }
}

class EagerPrimary extends Primary {
  protected override releasableEpoch(): number {
    return Number.POSITIVE_INFINITY;
  }
}

class RashPrimary extends Primary {
  protected override mayPass(): boolean {
    return true;
  }
}

class UnfencedPrimary extends Primary {
  protected override isOver(): boolean {
    return false;
  }
}

class CredulousSender extends Sender {
  protected override generationFits(_message: Message): boolean {
    return true;
  }
  protected override continues(peer: Hello): boolean {
    return peer.complete;
  }
}

class StaleReceiver extends Receiver {
  protected override beginFault(id: number, baseId: number, lastId: number): FaultCode | 0 {
    return id <= lastId ? 0 : super.beginFault(id, baseId, lastId);
  }
}

class GappyReceiver extends Receiver {
  protected override partFault(
    message: ContinueMessage | CommitMessage,
    openId: number,
    frames: number,
  ): FaultCode | 0 {
    const wrong = super.partFault(message, openId, frames);
    return wrong === FAULT.SEQ_WRONG ? 0 : wrong;
  }
}

class HastyReceiver extends Receiver {
  protected override validate(id: number, manifest: Manifest): void {
    super.validate(id, manifest);
    this.validated(id, undefined);
  }
}

class UndyingStandby extends Standby {
  protected override mayEverTakeOver(): boolean {
    return this.receiver.complete;
  }
}

class EmptyStandby extends Standby {
  protected override mayEverTakeOver(): boolean {
    return !this.receiver.ended;
  }
}

/** A primary machine, with the bug if it is one of the primary's. */
export function makePrimary(
  bug: Planted | undefined,
  config: PrimaryConfig,
  tap: EventTap,
): Primary {
  const parts: PrimaryParts = {
    sender: (hello, out: EffectQueue<SenderEffect>) =>
      bug === 'ack-of-other-generation' ? new CredulousSender(hello, out) : new Sender(hello, out),
    authority: (generation, authority, out) =>
      bug === 'lease-checked-too-early'
        ? new AbsentMindedAuthority(generation, authority, out)
        : new PrimaryAuthority(generation, authority, out),
  };
  if (bug === 'release-before-ack') return new EagerPrimary(config, tap, parts);
  if (bug === 'unprotected-before-record') return new RashPrimary(config, tap, parts);
  if (bug === 'old-primary-unfenced') return new UnfencedPrimary(config, tap, parts);
  return new Primary(config, tap, parts);
}

function makeReceiver(
  bug: Planted | undefined,
  hello: Hello,
  out: EffectQueue<ReceiverEffect>,
): Receiver {
  if (bug === 'stale-id') return new StaleReceiver(hello, out);
  if (bug === 'seq-gap') return new GappyReceiver(hello, out);
  if (bug === 'ack-before-validation') return new HastyReceiver(hello, out);
  return new Receiver(hello, out);
}

/** A standby machine, with the bug if it is one of the standby's. */
export function makeStandby(bug: Planted | undefined, given: StandbyConfig): Standby {
  const parts: StandbyParts = {
    receiver: (hello, out) => makeReceiver(bug, hello, out),
    authority: (instance, authority, suspectNs, out) =>
      new StandbyAuthority(instance, authority, suspectNs, out),
  };
  const config: StandbyConfig =
    bug === 'promote-on-silence'
      ? {
          ...given,
          authority: { ...given.authority, arbiter: false, onPeerLoss: 'takeover' },
        }
      : given;
  if (bug === 'end-ignored') return new UndyingStandby(config, parts);
  if (bug === 'takeover-without-commit') return new EmptyStandby(config, parts);
  return new Standby(config, parts);
}
