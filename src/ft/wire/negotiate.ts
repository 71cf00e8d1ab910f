/**
 * What two HELLOs agree on, or why they cannot. Pure; both ends run it on the same two messages and so come
 * to the same answer.
 */
import { FAULT, type Fault, fault } from './fault.ts';
import type { Hello, Limits } from './message.ts';
import { ARBITER, ON_PEER_LOSS, ROLE } from './spec.ts';

/** What holds for a connection. */
export interface Agreement {
  readonly protocol: number;
  readonly limits: Limits;
  /** Methods both ends can do. */
  readonly compression: number;
}

/** Smallest limits with which replication works at all. */
export const LIMITS_MIN: Limits = {
  frameBytesMax: 256,
  transactionBytesMax: 1024,
  epochsInFlightMax: 1,
  tapBytesMax: 256,
};

/** Largest relative difference of TSC frequencies that is taken without scaling, parts per million. */
export const TSC_PPM_MAX = 250;

/** The agreement of two HELLOs, or the {@link Fault} that stands in its way. */
export function negotiate(mine: Hello, theirs: Hello): Agreement | Fault {
  const protocol = Math.min(mine.protocolMax, theirs.protocolMax);
  if (protocol < mine.protocolMin || protocol < theirs.protocolMin) {
    const range = (h: Hello): string => `${h.protocolMin}-${h.protocolMax}`;
    return fault(FAULT.PROTOCOL_VERSION, `here ${range(mine)}, there ${range(theirs)}`);
  }
  if (mine.role === theirs.role) {
    return fault(FAULT.ROLE_CONFLICT, mine.role === ROLE.primary ? 'primary' : 'standby');
  }
  if (mine.vm !== theirs.vm) return fault(FAULT.OTHER_VM);
  if (mine.machineDigest !== theirs.machineDigest) return fault(FAULT.OTHER_MACHINE);
  if (mine.cpuDigest !== theirs.cpuDigest) return fault(FAULT.OTHER_CPU);
  if (mine.tscKhz !== theirs.tscKhz) {
    const ppm = (Math.abs(mine.tscKhz - theirs.tscKhz) / mine.tscKhz) * 1e6;
    if (!(ppm <= TSC_PPM_MAX)) {
      return fault(FAULT.OTHER_CPU, `TSC ${mine.tscKhz} kHz here, ${theirs.tscKhz} kHz there`);
    }
  }
  if (mine.pageBytes !== theirs.pageBytes) return fault(FAULT.PAGE_SIZE);
  if (mine.arbiter !== theirs.arbiter) {
    return fault(FAULT.POLICY_CONFLICT, 'the two ends name different arbiters');
  }
  const policies = [mine.onPeerLoss, theirs.onPeerLoss];
  if (
    mine.arbiter === ARBITER.none &&
    policies.includes(ON_PEER_LOSS.goOn) &&
    policies.includes(ON_PEER_LOSS.takeover)
  ) {
    return fault(FAULT.POLICY_CONFLICT);
  }
  const a = mine.limits;
  const b = theirs.limits;
  const limits: Limits = {
    frameBytesMax: Math.min(a.frameBytesMax, b.frameBytesMax),
    transactionBytesMax: Math.min(a.transactionBytesMax, b.transactionBytesMax),
    epochsInFlightMax: Math.min(a.epochsInFlightMax, b.epochsInFlightMax),
    tapBytesMax: Math.min(a.tapBytesMax, b.tapBytesMax),
  };
  for (const key of Object.keys(LIMITS_MIN) as (keyof Limits)[]) {
    if (limits[key] < LIMITS_MIN[key]) return fault(FAULT.LIMITS, `${key} ${limits[key]}`);
  }
  return { protocol, limits, compression: mine.compression & theirs.compression };
}
