/** What differs from seed to seed: policy, bounds, delays, arbiter, and which faults happen at all. */
import type { Prng } from '../../src/base/prng.ts';
import {
  POLICY_DEFAULTS,
  type PolicyConfig,
  type PolicyName,
} from '../../src/ft/core/epoch-policy.ts';

export const FAULTS = [
  'kill-primary',
  'kill-standby',
  'kill-at-step',
  'freeze',
  'cut',
  'partition',
  'slow-line',
  'meddle',
  'flip',
  'bad-memory',
  'arbiter-down',
  'disk-slow',
  'disk-failing',
  'switchover',
  'power-off',
  'hasty-order',
] as const;

/** What can befall an arbiter with leases, or be done to it. */
const LEASE_FAULTS = [
  /** One host does not reach the store. */
  'store-cut',
  'store-slow',
  /** An operator starts the guest anew on the other host although it may still run: the arbiter has to see to it. */
  'start-elsewhere',
] as const;

/** What can befall the storage of a host, where the guest's disks are replicated. */
const DISK_FAULTS = [
  'host-disk-slow',
  'host-disk-failing',
  'host-disk-full',
  'kill-host',
  /** The primary is lost soon after protection has come back: the second failure, and the third. */
  'kill-when-protected',
] as const;

export type FaultKind =
  | (typeof FAULTS)[number]
  | (typeof LEASE_FAULTS)[number]
  | (typeof DISK_FAULTS)[number];

export interface Config {
  readonly policy: PolicyConfig;
  readonly arbiter: boolean;
  /** The arbiter gives leases, instead of a lock. */
  readonly leases: boolean;
  readonly primaryGoesOn: boolean;
  /** By policy, without an arbiter: not for guests on a shared disk, so these guests have none. */
  readonly standbyTakesOver: boolean;
  /** Each host has a copy of the guest's disks; else the disk is shared. */
  readonly replicated: boolean;
  readonly delay: number;
  readonly tick: number;
  readonly guestStep: number;
  readonly clientEvery: number;
  readonly grace: number;
  readonly suspect: number;
  readonly tapBytes: number;
  readonly tapEntries: number;
  readonly frameBytes: number;
  readonly transactionBytes: number;
  readonly epochsInFlight: number;
  readonly faultEvery: number;
  readonly faults: readonly FaultKind[];
  readonly safetyEnd: number;
  readonly livenessMax: number;
}

/** Whether the guest has disks: a shared one only where an arbiter decides who runs. */
export function guestHasDisks(config: Config): boolean {
  return config.replicated || !config.standbyTakesOver;
}

const POLICIES: readonly PolicyName[] = ['kemari', 'periodic', 'adaptive'];

/** Of seeds with an arbiter, how many have one with leases. */
const LEASES = 0.5;

/** Of all seeds, in how many the disks are replicated. They take longer. */
const REPLICATED = 0.1;

/** What a seed is drawn for. */
export interface Wanted {
  /** What is looked for is about leases: every seed has an arbiter that gives them, and mostly what befalls that. */
  readonly onlyLeases: boolean;
  /** Whether disks are replicated; undefined: as the seed says. */
  readonly replicated: boolean | undefined;
  /** What is to befall, and nothing else; undefined: as the seed says. */
  readonly faults: readonly FaultKind[] | undefined;
}

/**
 * Draws a configuration. Faults are drawn as a subset, so that rare combinations are not drowned by common ones.
 * What came later is drawn from generators of its own, which leaves the draws of older seeds as they were.
 */
export function drawConfig(prng: Prng, leasePrng: Prng, diskPrng: Prng, wanted: Wanted): Config {
  const { onlyLeases } = wanted;
  const drawn = diskPrng.chance(REPLICATED);
  const replicated = wanted.replicated ?? drawn;
  const arbiter = prng.chance(0.7) || onlyLeases;
  const primaryGoesOn = prng.chance(arbiter ? 0.85 : 0.5);
  const standbyTakesOver = !arbiter && !primaryGoesOn && prng.chance(0.5);
  let faults: FaultKind[] = FAULTS.filter(() => prng.chance(0.35));
  const leases = arbiter && leasePrng.chance(onlyLeases ? 1 : LEASES);
  if (onlyLeases) {
    faults = [...LEASE_FAULTS, ...faults.filter(() => leasePrng.chance(0.2))];
  } else if (leases) {
    faults.push(...LEASE_FAULTS.filter(() => leasePrng.chance(0.35)));
  }
  if (replicated) faults.push(...DISK_FAULTS.filter(() => diskPrng.chance(0.5)));
  if (wanted.faults !== undefined) faults = [...wanted.faults];
  return {
    policy: {
      ...POLICY_DEFAULTS,
      policy: prng.pick(POLICIES),
      intervalNs: prng.between(150, 900),
      gapMinNs: prng.between(20, 200),
      idleMaxNs: 1500,
      pauseShareMax: 0.2,
      preCopyPagesMin: prng.pick([1, 4, 100]),
    },
    arbiter,
    leases,
    primaryGoesOn,
    standbyTakesOver,
    replicated,
    delay: prng.between(10, 120),
    tick: 150,
    guestStep: prng.between(20, 70),
    clientEvery: prng.between(150, 500),
    grace: prng.between(100, 1500),
    suspect: prng.between(100, 1500),
    tapBytes: prng.pick([256, 300, 1024]),
    tapEntries: prng.pick([4, 8, 40]),
    frameBytes: replicated ? 6144 : 2048,
    transactionBytes: replicated ? 32_768 : 8192,
    epochsInFlight: prng.between(1, 4),
    faultEvery: prng.between(500, 4000),
    faults: faults.length > 0 ? faults : ['cut'],
    safetyEnd: 12_000,
    livenessMax: 40_000,
  };
}
