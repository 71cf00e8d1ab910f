/** The options of `tsvmm standby`. */
import { keyOf, parseEndpoint } from './ft-options.ts';
import type { StatusMode } from './ft-status.ts';
import { badOption, parseDurationNs } from './options.ts';
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
  readonly timeoutNs: number;
  readonly name: string | undefined;
  readonly control: string | undefined;
  readonly status: StatusMode;
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
  const arbiter = text('ftArbiter') ?? 'none';
  return {
    listen: parseEndpoint('--listen', listen ?? incoming ?? '', '127.0.0.1'),
    key: keyOf(text('ftKey')),
    arbiter,
    disks: byId('--disk', (line.disk as readonly string[] | undefined) ?? []),
    nets: byId('--net', (line.net as readonly string[] | undefined) ?? []),
    serial: text('serial') ?? 'stdio',
    onPeerLoss: choice('--on-peer-loss', 'onPeerLoss', ['wait', 'takeover']),
    timeoutNs: parseDurationNs('--ft-timeout', text('ftTimeout') ?? '3s'),
    name: text('name'),
    control: text('control'),
    status: choice('--ft-status', 'ftStatus', ['off', 'line', 'json']),
    logLevel,
    logFile: text('logFile'),
  };
}
