/** `--disk` and `--net`: from what was typed to open backends. */
import { existsSync, readFileSync } from 'node:fs';
import { crc32c } from '../base/crc32c.ts';
import type { Logger } from '../base/log.ts';
import { type DiskSpec, openDisk } from '../block/open.ts';
import { STORAGE_CHOICES, type StorageChoice } from '../ft/disk/storage.ts';
import type { NativeIo } from '../kvm/native-io.ts';
import type { MachineConfig } from '../machine/config.ts';
import type { Machine } from '../machine/machine.ts';
import type { DiskPart, NetPart } from '../machine/pci-devices.ts';
import type { NetSpec } from '../net/open.ts';
import { openNet } from '../net/open.ts';
import { badOption, parseSpec, type Spec } from './options.ts';

/** What a `--disk` option says. */
export interface DiskOption extends DiskSpec {
  readonly id: string;
  readonly serial: string | undefined;
  /** Whether both hosts share it, each has a copy, or the standby tells. */
  readonly ft: StorageChoice;
  /** An image that both hosts have: a first copy carries only what differs from it. */
  readonly base: string | undefined;
}

/** What a `--net` option says. */
export interface NetOption {
  readonly id: string;
  readonly spec: NetSpec;
  readonly model: 'virtio' | 'e1000';
  readonly mac: Uint8Array;
  readonly pcap: string | undefined;
  /** The operator accepts that connections of this card do not survive a takeover. */
  readonly ftUnsafe: boolean;
}

const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,30}$/;

function idOf(
  option: string,
  typed: string,
  spec: Spec,
  fallback: string,
  taken: Set<string>,
): string {
  const id = spec.values.get('id') ?? fallback;
  if (!ID.test(id)) {
    throw badOption(
      option,
      typed,
      `id '${id}' must be up to 31 letters, digits, dots, dashes and underscores`,
    );
  }
  if (taken.has(id)) throw badOption(option, typed, `id '${id}' is used twice`);
  taken.add(id);
  return id;
}

function choice<const T extends string>(
  option: string,
  typed: string,
  spec: Spec,
  key: string,
  values: readonly T[],
): T {
  const value = spec.values.get(key);
  if (value === undefined) return values[0]!;
  if (!(values as readonly string[]).includes(value)) {
    throw badOption(option, typed, `${key} is one of ${values.join(', ')}`);
  }
  return value as T;
}

/** Reads all `--disk` options. */
export function parseDisks(typed: readonly string[]): DiskOption[] {
  const taken = new Set<string>();
  return typed.map((text, i) => {
    const keys = ['id', 'readonly', 'cache', 'serial', 'on-enospc', 'ft', 'base'];
    const spec = parseSpec('--disk', text, keys);
    if (spec.main === '') throw badOption('--disk', text, 'names no file');
    const serial = spec.values.get('serial');
    if (serial !== undefined && !/^[\x20-\x7e]{1,20}$/.test(serial)) {
      throw badOption('--disk', text, 'serial must be 1 to 20 ASCII characters');
    }
    const readonly = spec.values.get('readonly');
    if (readonly !== undefined && !['', 'on', 'off'].includes(readonly)) {
      throw badOption('--disk', text, 'readonly takes on or off, or nothing');
    }
    return {
      id: idOf('--disk', text, spec, `disk${i}`, taken),
      source: spec.main,
      readonly: readonly !== undefined && readonly !== 'off',
      cache: choice('--disk', text, spec, 'cache', ['none', 'writeback']),
      whenFull: choice('--disk', text, spec, 'on-enospc', ['report', 'pause']),
      serial,
      ft: choice('--disk', text, spec, 'ft', STORAGE_CHOICES),
      base: spec.values.get('base'),
    };
  });
}

function parseMac(typed: string, value: string): Uint8Array {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(value)) {
    throw badOption(
      '--net',
      typed,
      `'${value}' is no MAC address; write it like 52:54:00:12:34:56`,
    );
  }
  const mac = Uint8Array.from(value.split(':'), (byte) => Number.parseInt(byte, 16));
  if ((mac[0]! & 1) !== 0) throw badOption('--net', typed, `${value} is a group address`);
  if (mac.every((byte) => byte === 0))
    throw badOption('--net', typed, `${value} is no station's address`);
  return mac;
}

/** A locally administered address that depends only on the guest's name and the card's number. */
function defaultMac(guest: string, index: number): Uint8Array {
  const sum = crc32c(new TextEncoder().encode(`${guest}/${index}`));
  return Uint8Array.of(0x52, 0x54, 0x00, sum >>> 16, sum >>> 8, sum);
}

/** Port forwarding of passt: lists and ranges of ports, each with the guest's own behind a colon where it differs. */
const FORWARD =
  /^\d{1,5}(-\d{1,5})?(:\d{1,5}(-\d{1,5})?)?(,\d{1,5}(-\d{1,5})?(:\d{1,5}(-\d{1,5})?)?)*$/;

function forwards(typed: string, spec: Spec, kind: NetSpec['kind']): Partial<NetSpec> {
  const found: { tcpForward?: string[]; udpForward?: string[] } = {};
  for (const key of ['tcp', 'udp'] as const) {
    const ports = spec.values.get(key);
    if (ports === undefined) continue;
    if (kind !== 'user') throw badOption('--net', typed, `${key}= is for the backend user`);
    if (!FORWARD.test(ports)) {
      throw badOption('--net', typed, `${key}=${ports}: write ports like 2222:22 or 8000-8010`);
    }
    found[`${key}Forward`] = [ports];
  }
  return found;
}

function parseBackend(typed: string, main: string): NetSpec {
  const equals = main.indexOf('=');
  const kind = equals < 0 ? main : main.slice(0, equals);
  const value = equals < 0 ? '' : main.slice(equals + 1);
  if (kind === 'tap' && value !== '') return { kind: 'tap', name: value };
  if ((kind === 'stream' || kind === 'stream-listen') && value !== '') {
    const hostPort = /^(.+):(\d+)$/.exec(value);
    const address =
      hostPort !== null && !value.startsWith('/') && Number(hostPort[2]) < 65536
        ? { host: hostPort[1]!, port: Number(hostPort[2]) }
        : { path: value };
    return { kind: 'stream', address, mode: kind === 'stream' ? 'connect' : 'listen' };
  }
  if (equals < 0 && (kind === 'user' || kind === 'none')) return { kind };
  throw badOption(
    '--net',
    typed,
    'starts with tap=IF, stream=SOCKET, stream-listen=SOCKET, user or none',
  );
}

/** Reads all `--net` options. */
export function parseNets(typed: readonly string[], guest: string): NetOption[] {
  const taken = new Set<string>();
  return typed.map((text, i) => {
    const spec = parseSpec('--net', text, ['id', 'model', 'mac', 'pcap', 'ft', 'tcp', 'udp']);
    const mac = spec.values.get('mac');
    const backend = parseBackend(text, spec.main);
    return {
      id: idOf('--net', text, spec, `net${i}`, taken),
      spec: { ...backend, ...forwards(text, spec, backend.kind) } as NetSpec,
      model: choice('--net', text, spec, 'model', ['virtio', 'e1000']),
      mac: mac === undefined ? defaultMac(guest, i) : parseMac(text, mac),
      pcap: spec.values.get('pcap'),
      ftUnsafe: spec.values.has('ft') && choice('--net', text, spec, 'ft', ['unsafe']) === 'unsafe',
    };
  });
}

/** What cannot be shared with a peer is refused. @throws VmmError */
export function checkForReplication(
  disks: readonly DiskOption[],
  nets: readonly NetOption[],
): void {
  for (const { source, cache, readonly, ft } of disks) {
    if (cache === 'writeback' && !readonly && ft !== 'replicate') {
      throw badOption(
        '--disk',
        source,
        'cannot have cache=writeback together with a peer, unless with ft=replicate: what lies in the page cache of a host dies with it',
      );
    }
  }
  for (const { id, spec, ftUnsafe } of nets) {
    if (spec.kind === 'user' && !ftUnsafe) {
      throw badOption(
        '--net',
        `user,id=${id}`,
        "cannot be replicated: the user-mode network keeps the guest's connections in this host (use tap= or stream=, or add ft=unsafe to lose them at a takeover)",
      );
    }
  }
}

/** Where iPXE's option ROMs are installed, by card. */
const ROM_FOLDERS = ['/usr/lib/ipxe/qemu', '/usr/share/qemu', '/usr/share/ipxe/qemu'];
const ROM_FILES = { virtio: 'efi-virtio.rom', e1000: 'efi-e1000.rom' } as const;

function bootRom(
  config: MachineConfig,
  model: NetOption['model'],
  log: Logger,
): Uint8Array | undefined {
  if (config.boot.kind !== 'firmware' || !config.boot.order.includes('net')) return undefined;
  const path = ROM_FOLDERS.map((folder) => `${folder}/${ROM_FILES[model]}`).find((file) =>
    existsSync(file),
  );
  if (path === undefined) {
    log.warn(
      'no iPXE option ROM is installed, so this card cannot boot (Debian: apt install ipxe-qemu)',
    );
    return undefined;
  }
  return readFileSync(path);
}

/** Backends that were opened; `close` gives them back. */
export interface OpenDevices {
  readonly disks: readonly DiskPart[];
  readonly nets: readonly NetPart[];
}

/**
 * Opens everything. What was opened before a failure is closed again.
 * @param closers gets a function for each thing that has to be closed at the end
 * @throws VmmError `DISK_*`, `NBD_*`, `NET_*`
 */
export async function openDevices(
  machine: Machine,
  io: NativeIo,
  disks: readonly DiskOption[],
  nets: readonly NetOption[],
  closers: (() => unknown)[],
): Promise<OpenDevices> {
  const { config, log, memory, ram } = machine;
  const diskParts: DiskPart[] = [];
  for (const option of disks) {
    const { id, serial } = option;
    const onFull = (source: string): void => {
      log.warn(`${source} is full: the guest is paused; make room, then tsvmm resume`);
      setImmediate(() => machine.pause());
    };
    const parts = { native: io, memoryMap: ram.map.native, memory, log, onFull };
    const { backend, resume } = await openDisk(parts, option);
    closers.push(() => backend.close());
    machine.onResume(resume);
    diskParts.push({ id, backend, serial });
  }
  const netParts: NetPart[] = [];
  for (const { id, spec, model, mac, pcap } of nets) {
    const wallNs = (): number => machine.clock.wallNs();
    const backend = await openNet(
      { native: io, log, wallNs, memoryMap: ram.map.native },
      spec,
      pcap,
    );
    closers.push(() => backend.close());
    netParts.push({ id, backend, model, mac, rom: bootRom(config, model, log) });
  }
  return { disks: diskParts, nets: netParts };
}
