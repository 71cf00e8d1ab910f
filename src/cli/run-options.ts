/**
 * The options of `tsvmm run`, from the command line and a TOML file, checked and turned into a machine description.
 * Pure but for reading the files that the options name.
 */
import { readFileSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename } from 'node:path';
import { messageOf, VmmError } from '../base/error.ts';
import { shown } from '../base/text.ts';
import {
  type BootDevice,
  type BootSource,
  CPUS_MAX,
  type MachineConfig,
} from '../machine/config.ts';
import { findSeaBios, readImage } from '../machine/firmware-file.ts';
import { MEMORY_MAX_BYTES, MEMORY_MIN_BYTES } from '../machine/layout.ts';
import { wholeArbiter } from './arbiter-paths.ts';
import {
  checkForReplication,
  type DiskOption,
  type NetOption,
  parseDisks,
  parseNets,
} from './device-options.ts';
import { keyOf, parseBlockWords } from './ft-endpoint.ts';
import { type ProtectionSettings, parsePeers, parseSettings } from './ft-settings.ts';
import { badOption, parseCount, parseSize, requireText } from './options.ts';
import type { Peers } from './protect.ts';
import { LOG_LEVELS, type LogLevel } from './report.ts';
import { demoGuestPath } from './version.ts';

/** What `tsvmm run` was asked to do. */
export interface RunOptions {
  readonly machine: MachineConfig;
  /** Whether the operator gave the guest a name of its own. */
  readonly named: boolean;
  readonly serial: string;
  readonly disks: readonly DiskOption[];
  readonly nets: readonly NetOption[];
  readonly reboot: boolean;
  readonly restore: string | undefined;
  readonly control: string | undefined;
  readonly logLevel: LogLevel;
  readonly logFile: string | undefined;
  /** How the guest is protected, from its start or later. */
  readonly settings: ProtectionSettings;
  /** Replication from the start, if a peer was named. */
  readonly ft: FtRunOptions | undefined;
}

/** Who protects the guest from its start. */
export interface FtRunOptions {
  readonly peers: Peers;
  readonly arbiter: string;
}

/** Option names as commander and the TOML file spell them (camel case), with the type that each has. */
const KINDS: Readonly<Record<string, 'text' | 'list' | 'flag'>> = {
  kernel: 'text',
  initrd: 'text',
  append: 'text',
  firmware: 'text',
  demo: 'flag',
  name: 'text',
  memory: 'text',
  cpus: 'text',
  cpu: 'text',
  serial: 'text',
  disk: 'list',
  net: 'list',
  boot: 'text',
  reboot: 'flag',
  restore: 'text',
  control: 'text',
  logLevel: 'text',
  logFile: 'text',
  ftPeer: 'text',
  ftPolicy: 'text',
  ftInterval: 'text',
  ftMaxDowntime: 'text',
  ftTimeout: 'text',
  ftKey: 'text',
  ftArbiter: 'text',
  ftOnPeerLoss: 'text',
  ftStatus: 'text',
  ftCopyLimit: 'text',
};

type Values = Record<string, string | boolean | readonly string[]>;

// As require: see report.ts.
const load = createRequire(import.meta.url);

/** Larger files than this are no configuration. */
const CONFIG_MAX_BYTES = 2 ** 20;

function camelCase(key: string): string {
  return key.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

function kebabCase(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/**
 * Reads a configuration file: the long options as keys, without dashes in front.
 * @throws VmmError `CONFIG_FILE`
 */
async function readConfigFile(path: string): Promise<Values> {
  const { parse } = load('smol-toml') as typeof import('smol-toml');
  let table: Record<string, unknown>;
  try {
    if (statSync(path).size > CONFIG_MAX_BYTES) throw new Error('is larger than 1 MiB');
    table = parse(readFileSync(path, 'utf8'));
  } catch (error) {
    const why = messageOf(error).split('\n')[0]!;
    throw new VmmError('CONFIG_FILE', `--config ${path}: ${why}`, { cause: error });
  }
  const values: Values = {};
  for (const [key, value] of Object.entries(table)) {
    const name = camelCase(key);
    const kind = Object.hasOwn(KINDS, name) ? KINDS[name] : undefined;
    if (kind === undefined) {
      throw new VmmError('CONFIG_FILE', `--config ${path}: there is no option '${shown(key)}'`, {
        hint: 'The keys are the long options of `tsvmm run`, without the dashes in front.',
      });
    }
    const isText = typeof value === 'string' || typeof value === 'number';
    const isList = Array.isArray(value) && value.every((item) => typeof item === 'string');
    if (kind === 'flag' && typeof value === 'boolean') values[name] = value;
    else if (kind === 'text' && isText) values[name] = String(value);
    else if (kind === 'list' && isList) values[name] = value;
    else if (kind === 'list' && typeof value === 'string') values[name] = [value];
    else {
      const want = { flag: 'true or false', text: 'a string', list: 'a list of strings' }[kind];
      throw new VmmError('CONFIG_FILE', `--config ${path}: '${shown(key)}' must be ${want}`);
    }
  }
  return values;
}

function merge(file: Values, line: Readonly<Record<string, unknown>>): Values {
  const merged: Values = { ...file };
  for (const [key, value] of Object.entries(line)) {
    if (value === undefined || key === 'config') continue;
    if (Array.isArray(value)) {
      if (value.length > 0) merged[key] = value as readonly string[];
    } else if (key === 'reboot') {
      // Commander's default for --no-reboot is true; only the given flag overrides the file.
      if (value === false) merged[key] = false;
    } else {
      merged[key] = value as string | boolean;
    }
  }
  return merged;
}

function bootSource(values: Values): BootSource {
  const text = (key: string) => values[key] as string | undefined;
  let kernel = text('kernel');
  if (values.demo === true) {
    if (kernel !== undefined)
      throw badOption('--demo', '', 'already names the kernel; leave out --kernel');
    kernel = demoGuestPath();
  }
  if (kernel !== undefined) {
    for (const other of ['firmware', 'boot']) {
      if (text(other) !== undefined) {
        throw badOption(
          `--${other}`,
          text(other)!,
          'does not go together with --kernel, which boots without firmware',
        );
      }
    }
    const initrd = text('initrd');
    return {
      kind: 'kernel',
      kernel: readImage('--kernel', kernel),
      initrd: initrd === undefined ? undefined : readImage('--initrd', initrd),
      commandLine: text('append') ?? '',
    };
  }
  for (const needs of ['initrd', 'append']) {
    if (text(needs) !== undefined) throw badOption(`--${needs}`, text(needs)!, 'needs a --kernel');
  }
  const order = (text('boot') ?? 'disk').split(',').map((device): BootDevice => {
    if (device !== 'disk' && device !== 'net') {
      throw badOption('--boot', text('boot')!, `'${device}' is neither disk nor net`);
    }
    return device;
  });
  return {
    kind: 'firmware',
    image: readImage('--firmware', text('firmware') ?? findSeaBios()),
    order,
  };
}

/** Disks as `blk` and `blk inc` in front of a peer mean them. */
function copied(disks: readonly DiskOption[], peer: string): readonly DiskOption[] {
  const { copies } = parseBlockWords(peer);
  if (copies === undefined) return disks;
  return disks.map((disk) => {
    if (disk.readonly) return disk;
    if (copies === 'incremental' && disk.base === undefined) {
      throw badOption('--ft-peer', peer, `needs base=IMAGE for disk '${disk.id}'`);
    }
    const base = copies === 'incremental' ? disk.base : undefined;
    return { ...disk, base, ft: disk.ft === 'auto' ? 'replicate' : disk.ft };
  });
}

function ftOptions(text: (key: string) => string | undefined): FtRunOptions | undefined {
  const typed = text('ftPeer');
  const peer = typed && parseBlockWords(typed).peer;
  if (peer === undefined) {
    const stray = Object.keys(KINDS).find((key) => key.startsWith('ft') && text(key) !== undefined);
    if (stray !== undefined) {
      throw badOption(`--${kebabCase(stray)}`, text(stray)!, 'needs --ft-peer');
    }
    return undefined;
  }
  return {
    peers: { addresses: parsePeers('--ft-peer', peer), key: keyOf(text('ftKey')) },
    arbiter: wholeArbiter(text('ftArbiter') ?? 'none'),
  };
}

/**
 * Checks the options.
 * @param line as commander gives them
 * @throws VmmError with one clear sentence for the first thing that is wrong
 */
export async function parseRunOptions(
  line: Readonly<Record<string, unknown>>,
): Promise<RunOptions> {
  const file = typeof line.config === 'string' ? await readConfigFile(line.config) : {};
  const values = merge(file, line);
  for (const [key, value] of Object.entries(values)) {
    for (const text of [value].flat()) {
      if (typeof text === 'string') requireText(`--${kebabCase(key)}`, text);
    }
  }
  const text = (key: string) => values[key] as string | undefined;
  const memoryBytes = parseSize('--memory', text('memory') ?? '256M');
  if (
    memoryBytes % 2 ** 20 !== 0 ||
    memoryBytes < MEMORY_MIN_BYTES ||
    memoryBytes > MEMORY_MAX_BYTES
  ) {
    throw badOption(
      '--memory',
      text('memory') ?? '',
      `is not a whole number of MiB from ${MEMORY_MIN_BYTES / 2 ** 20}M to ${MEMORY_MAX_BYTES / 2 ** 30}G`,
    );
  }
  const logLevel = text('logLevel') ?? 'warn';
  if (!(LOG_LEVELS as readonly string[]).includes(logLevel)) {
    throw badOption('--log-level', logLevel, `is none of ${LOG_LEVELS.join(', ')}`);
  }
  const name = text('name');
  if (name !== undefined && !/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(name)) {
    throw badOption(
      '--name',
      name,
      'must be up to 63 letters, digits, dots, dashes and underscores',
    );
  }
  const boot = bootSource(values);
  const image = boot.kind === 'kernel' ? boot.kernel : boot.image;
  const guest = name ?? basename(image.name);
  const ft = ftOptions(text);
  const settings = parseSettings((option) => text(camelCase(option)));
  const disks = copied(
    parseDisks((values.disk as readonly string[] | undefined) ?? []),
    text('ftPeer') ?? '',
  );
  const nets = parseNets((values.net as readonly string[] | undefined) ?? [], guest);
  if (ft !== undefined) checkForReplication(disks, nets);
  return {
    machine: {
      name: guest,
      memoryBytes,
      cpus: parseCount('--cpus', text('cpus') ?? '1', 1, CPUS_MAX),
      cpu: text('cpu') ?? 'host',
      boot,
    },
    named: name !== undefined,
    serial: text('serial') ?? 'stdio',
    disks,
    nets,
    reboot: values.reboot !== false,
    restore: text('restore'),
    control: text('control'),
    logLevel: logLevel as LogLevel,
    logFile: text('logFile'),
    settings,
    ft,
  };
}
