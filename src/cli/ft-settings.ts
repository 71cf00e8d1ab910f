/**
 * What an operator can choose about the protection of a guest: read from the command line, from a configuration file, and from
 * requests to a running guest, with the same words and the same errors.
 */
import { VmmError } from '../base/error.ts';
import type { PolicyName } from '../ft/core/epoch-policy.ts';
import { parseEndpoint } from './ft-endpoint.ts';
import type { StatusMode } from './ft-status.ts';
import { badOption, parseDurationNs, parseSize } from './options.ts';

/** What the operator chose. */
export interface ProtectionSettings {
  readonly policy: PolicyName;
  /** Longest time between checkpoints. */
  readonly intervalNs: number;
  /** The guest may stand still this long at the end of the first copy. */
  readonly maxDowntimeNs: number;
  /** How long a peer may be silent before it counts as lost. */
  readonly timeoutNs: number;
  /**
   * What the loss of the peer means once authority allows it: go on unprotected, or hold outputs until told. Undefined: go on
   * where an arbiter excludes the other side, else wait.
   */
  readonly onPeerLoss: 'continue' | 'pause' | undefined;
  readonly status: StatusMode;
  /** Most bytes a second of the disks' first copy; undefined: no limit. */
  readonly copyBytesPerSecondMax: number | undefined;
}

/** Where a standby listens. */
export interface PeerAddress {
  readonly host: string;
  readonly port: number;
}

/** What holds where nothing is said. */
export const SETTINGS_DEFAULTS: ProtectionSettings = {
  policy: 'adaptive',
  intervalNs: 20e6,
  maxDowntimeNs: 30e6,
  timeoutNs: 3e9,
  onPeerLoss: undefined,
  status: 'off',
  copyBytesPerSecondMax: undefined,
};

/** Longest list of peers. */
const PEERS_MAX = 16;

/** Text of an option by its name without the dashes in front: `ft-policy`. */
export type OptionText = (name: string) => string | undefined;

/** One of `values`, or undefined where nothing was given. */
export function choiceOf<const T extends string>(
  option: string,
  value: string | undefined,
  values: readonly T[],
): T | undefined {
  if (value === undefined) return undefined;
  const found = values.find((candidate) => candidate === value);
  if (found === undefined) throw badOption(option, value, `is none of ${values.join(', ')}`);
  return found;
}

function duration(
  option: string,
  value: string | undefined,
  [low, high]: readonly [string, string],
): number | undefined {
  if (value === undefined) return undefined;
  const ns = parseDurationNs(option, value);
  if (ns < parseDurationNs(option, low) || ns > parseDurationNs(option, high)) {
    throw badOption(option, value, `is not between ${low} and ${high}`);
  }
  return ns;
}

/** Options that may be changed while the guest is protected. */
export const LIVE_OPTIONS = ['ft-policy', 'ft-interval', 'ft-max-downtime'] as const;

/**
 * Reads what was said on top of what held before.
 * @param dashes what stands before an option's name where the operator wrote it
 * @throws VmmError `OPTION`
 */
export function parseSettings(
  text: OptionText,
  before: ProtectionSettings = SETTINGS_DEFAULTS,
  dashes = '--',
): ProtectionSettings {
  const name = (option: string): string => `${dashes}${option}`;
  const limit = text('ft-copy-limit');
  const time = (option: string, bounds: readonly [string, string]): number | undefined =>
    duration(name(option), text(option), bounds);
  return {
    policy:
      choiceOf(name('ft-policy'), text('ft-policy'), ['adaptive', 'kemari', 'periodic']) ??
      before.policy,
    intervalNs: time('ft-interval', ['100us', '1m']) ?? before.intervalNs,
    maxDowntimeNs: time('ft-max-downtime', ['100us', '1m']) ?? before.maxDowntimeNs,
    timeoutNs: time('ft-timeout', ['100ms', '10m']) ?? before.timeoutNs,
    onPeerLoss:
      choiceOf(name('ft-on-peer-loss'), text('ft-on-peer-loss'), ['continue', 'pause']) ??
      before.onPeerLoss,
    status:
      choiceOf(name('ft-status'), text('ft-status'), ['off', 'line', 'json']) ?? before.status,
    copyBytesPerSecondMax:
      limit === undefined ? before.copyBytesPerSecondMax : parseSize(name('ft-copy-limit'), limit),
  };
}

/** `HOST[:PORT]` of one or several standbys, separated by commas, in the order in which they are tried. */
export function parsePeers(option: string, value: string): PeerAddress[] {
  const peers = value
    .replace(/,ft_mode$/, '')
    .split(',')
    .map((part) => {
      if (part === '') throw badOption(option, value, 'names a peer of no length');
      return parseEndpoint(option, part, '127.0.0.1');
    });
  if (peers.length > PEERS_MAX) {
    throw badOption(option, value, `names more than ${PEERS_MAX} peers`);
  }
  const names = peers.map(({ host, port }) => `${host}:${port}`);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw badOption(option, value, `names ${twice} twice`);
  return peers;
}

/**
 * Reads the words of `tsvmm set`: `ft-policy=kemari ft-interval=20ms`, as an object.
 * @throws VmmError `OPTION` with one sentence
 */
export function changeSettings(
  changes: Readonly<Record<string, unknown>>,
  before: ProtectionSettings,
): ProtectionSettings {
  const known: readonly string[] = LIVE_OPTIONS;
  const entries = Object.entries(changes);
  if (entries.length === 0) {
    throw new VmmError('OPTION', `tsvmm set takes ${known.join('=.., ')}=..`);
  }
  for (const [key, value] of entries) {
    if (!known.includes(key) || typeof value !== 'string') {
      throw badOption(key, String(value), `cannot be set; tsvmm set takes ${known.join(', ')}`);
    }
  }
  return parseSettings((name) => changes[name] as string | undefined, before, '');
}
