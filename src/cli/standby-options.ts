/** The options of `tsvmm standby`. */
import { requireKey } from '../ft/shell/link.ts';
import { wholeArbiter } from './arbiter-paths.ts';
import { keyOf, parseEndpoint } from './ft-endpoint.ts';
import {
  type PeerAddress,
  type ProtectionSettings,
  parsePeers,
  parseSettings,
} from './ft-settings.ts';
import { badOption } from './options.ts';
import { LOG_LEVELS, type LogLevel } from './report.ts';

/** What `tsvmm standby` was asked to do. */
export interface StandbyOptions {
  readonly listen: { readonly host: string; readonly port: number };
  readonly key: Uint8Array | undefined;
  readonly arbiter: string;
  /** What each disk of the guest is here, by id; likewise cards. */
  readonly disks: ReadonlyMap<string, string>;
  readonly nets: ReadonlyMap<string, string>;
  readonly serial: string;
  readonly onPeerLoss: 'wait' | 'takeover';
  readonly name: string | undefined;
  readonly control: string | undefined;
  /** Deadline of silence, and how the guest is protected once it runs here. */
  readonly settings: ProtectionSettings;
  /** Who is to be its standby then, in the order in which they are tried. */
  readonly peers: readonly PeerAddress[];
  readonly logLevel: LogLevel;
  readonly logFile: string | undefined;
}

/** `id=SPEC`, repeated. */
function byId(option: string, typed: readonly string[]): Map<string, string> {
  const found = new Map<string, string>();
  for (const text of typed) {
    const equals = text.indexOf('=');
    const id = text.slice(0, equals);
    if (equals < 1 || equals === text.length - 1)
      throw badOption(option, text, 'is not of the form id=WHERE');
    if (found.has(id)) throw badOption(option, text, `names '${id}' twice`);
    found.set(id, text.slice(equals + 1));
  }
  return found;
}

/** Checks the options. @throws VmmError with one clear sentence */
export function parseStandbyOptions(line: Readonly<Record<string, unknown>>): StandbyOptions {
  const text = (key: string): string | undefined =>
    typeof line[key] === 'string' ? line[key] : undefined;
  const choice = <const T extends string>(
    option: string,
    key: string,
    values: readonly [T, ...T[]],
  ): T => {
    const value = text(key) ?? values[0];
    const found = values.find((candidate) => candidate === value);
    if (found === undefined) throw badOption(option, value, `is none of ${values.join(', ')}`);
    return found;
  };
  const listen = text('listen');
  const incoming = text('incoming');
  if (listen !== undefined && incoming !== undefined) {
    throw badOption('--incoming', incoming, 'is another spelling of --listen; give one of them');
  }
  const logLevel = choice<LogLevel>('--log-level', 'logLevel', ['warn', ...LOG_LEVELS]);
  const arbiter = wholeArbiter(text('ftArbiter') ?? 'none');
  const ftPeer = text('ftPeer');
  const peers = ftPeer === undefined ? [] : parsePeers('--ft-peer', ftPeer);
  const key = keyOf(text('ftKey'));
  // Not only at the takeover.
  for (const { host } of peers) requireKey({ host, key }, 'the peer');
  return {
    listen: parseEndpoint('--listen', listen ?? incoming ?? '', '127.0.0.1'),
    key,
    arbiter,
    disks: byId('--disk', (line.disk as readonly string[] | undefined) ?? []),
    nets: byId('--net', (line.net as readonly string[] | undefined) ?? []),
    serial: text('serial') ?? 'stdio',
    onPeerLoss: choice('--on-peer-loss', 'onPeerLoss', ['wait', 'takeover']),
    name: text('name'),
    control: text('control'),
    settings: parseSettings((option) =>
      text(option.replace(/-([a-z])/g, (_, c: string) => c.toUpperCase())),
    ),
    peers,
    logLevel,
    logFile: text('logFile'),
  };
}
