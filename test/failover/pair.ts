/**
 * A primary and a standby as two processes on loopback, with a proxy for the link between them and a switch for their guest's card:
 * the ground of every failover scenario and test on /dev/kvm. No root needed.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { askControl } from '../../src/monitor/control-server.ts';
import { EtcdCluster } from './etcd-cluster.ts';
import { CuttingProxy } from './proxy.ts';
import { Switch } from './switch.ts';

/** The checkout, from the source as from dist. */
const ROOT = [resolve(import.meta.dirname, '../../..'), resolve(import.meta.dirname, '../..')].find(
  (folder) => existsSync(join(folder, 'package.json')),
)!;
/** The command line as a script. */
export const CLI = join(ROOT, 'dist/src/cli/main.js');

/** Path of one of the project's guests. */
export function guestPath(name: string): string {
  return join(ROOT, `dist/firmware/${name}.elf`);
}

/** In the lab everything takes longer. */
export const SLOW = process.env.TSVMM_LAB === '1' ? 8 : 1;

/** With an etcd arbiter: how long it waits for an owner that is silent. */
export const LEASE_MS = 3000 * SLOW;

/** Until the guest is protected, at most. */
export const PROTECT_TIMEOUT_MS = 60_000 * SLOW;
/** Until anything else happens, at most. */
export const SETTLE_TIMEOUT_MS = 30_000 * SLOW;

/** Waits. */
export const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

/** Waits until `test` holds. @throws Error when it does not in time */
export async function until(
  what: string,
  timeoutMs: number,
  test: () => boolean | Promise<boolean>,
): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!(await test())) {
    if (performance.now() > end) throw new Error(`waited ${timeoutMs} ms in vain until ${what}`);
    await sleep(20);
  }
}

/** One tsvmm process with its log. */
export class Process {
  readonly child: ChildProcess;
  readonly name: string;
  readonly logPath: string;
  /** Exit status or signal, once it has ended. */
  outcome: number | string | undefined;

  constructor(name: string, folder: string, args: readonly string[]) {
    this.name = name;
    this.logPath = join(folder, `${name}.log`);
    const log = openSync(this.logPath, 'a');
    const logging = ['--log-level', 'info', '--log-file', this.logPath];
    this.child = spawn(process.execPath, [CLI, ...args, ...logging], {
      stdio: ['ignore', log, log],
    });
    closeSync(log);
    this.child.on('exit', (code, signal) => {
      this.outcome = code ?? signal ?? 'no status';
    });
  }

  get ended(): boolean {
    return this.outcome !== undefined;
  }

  /** What it has logged and printed. */
  get log(): string {
    return readFileSync(this.logPath, 'utf8');
  }

  signal(name: NodeJS.Signals): void {
    if (!this.ended) this.child.kill(name);
  }

  /** Waits until the log holds something. */
  async said(what: RegExp, timeoutMs = SETTLE_TIMEOUT_MS): Promise<void> {
    await until(`the ${this.name} says ${what}`, timeoutMs, () => {
      if (what.test(this.log)) return true;
      if (this.ended) throw new Error(`the ${this.name} ended (${this.outcome}):\n${this.log}`);
      return false;
    });
  }

  /** Waits for its own end and returns how it ended. */
  async exit(timeoutMs = SETTLE_TIMEOUT_MS): Promise<number | string> {
    await until(`the ${this.name} has ended`, timeoutMs, () => this.ended);
    return this.outcome!;
  }

  async end(): Promise<void> {
    this.signal('SIGCONT');
    this.signal('SIGKILL');
    await this.exit(10_000);
  }
}

/** How the two are started. */
export interface PairOptions {
  readonly policy?: 'adaptive' | 'kemari' | 'periodic';
  readonly model?: 'virtio' | 'e1000';
  readonly cpus?: number;
  readonly memory?: string;
  /** A guest of the project and its command line. Default: the demo guest. */
  readonly guest?: string;
  readonly append?: string;
  /** `replicate`: each side has an image of its own. Default: both name one image. */
  readonly disks?: 'shared' | 'replicate' | undefined;
  /** Size of the disk, bytes. */
  readonly diskBytes?: number;
  /** No disk and no card: guests that only compute and print. */
  readonly bare?: boolean;
  /** A card and no disk. */
  readonly diskless?: boolean;
  /** Default: both use one lock file. `etcd`: a cluster of one member, of this pair's own. */
  readonly arbiter?: 'lock' | 'none' | 'etcd';
  readonly primaryArgs?: readonly string[];
  readonly standbyArgs?: readonly string[];
  /** What stands in the place of the standby's arguments for its disk and card. */
  readonly standbyParts?: readonly string[];
  /** Each side names the other as its standby for the time when it runs the guest. */
  readonly roundTrip?: boolean;
  /** The guest starts without a peer; it is protected later. */
  readonly unprotected?: boolean;
  /** Silence after which a peer counts as lost, milliseconds. Default 3 s. */
  readonly timeoutMs?: number;
  /** With an etcd arbiter. Default {@link LEASE_MS}. */
  readonly leaseMs?: number;
  readonly say?: (line: string) => void;
}

/** One of the two hosts. */
export type Side = 'a' | 'b';

/** The other host. */
export const otherSide = (side: Side): Side => (side === 'a' ? 'b' : 'a');

const STANDING_BY = /standing by on 127\.0\.0\.1:(\d+)/;
const RUNS_HERE = /runs here now/;

/** Where a standby listens. */
function portOf(standby: Process): number {
  return Number(STANDING_BY.exec(standby.log)![1]);
}

const DISK_BYTES = 16 * 2 ** 20;

/** See the module's head. */
export class Pair {
  readonly folder = mkdtempSync(join(tmpdir(), 'tsvmm-failover-'));
  readonly net = new Switch();
  /** Once a standby was started, with `arbiter: 'etcd'`. */
  etcd: EtcdCluster | undefined;
  readonly #options: PairOptions;
  /** What stands in the place of the standby's arguments for its disk and card. */
  standbyParts: readonly string[] | undefined;
  /** Added to the disk of each host. */
  diskArgs: Readonly<Record<Side, string>> = { a: '', b: '' };
  readonly #processes: Process[] = [];
  #standbyCount = 0;
  #third: Process | undefined;
  /** The way to each host, as the other one sees it. */
  readonly #proxies: Partial<Record<Side, CuttingProxy>> = {};
  /** The way of each host to etcd. */
  readonly #etcdProxies: Partial<Record<Side, CuttingProxy>> = {};
  readonly #hosts: Partial<Record<Side, Process>> = {};

  constructor(options: PairOptions = {}) {
    this.#options = options;
    this.standbyParts = options.standbyParts;
    for (const image of new Set([this.disk, this.standbyDisk])) {
      writeFileSync(image, '');
      truncateSync(image, options.diskBytes ?? DISK_BYTES);
    }
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  get disk(): string {
    return this.path('disk.img');
  }

  /** The standby's image: of its own, or the same. */
  get standbyDisk(): string {
    return this.#options.disks === 'replicate' ? this.path('disk-b.img') : this.disk;
  }

  /** Puts bytes into the guest's disk before it runs. */
  fillDisk(bytes: Uint8Array, offsetBytes: number): void {
    const fd = openSync(this.disk, 'r+');
    writeSync(fd, bytes, 0, bytes.length, offsetBytes);
    closeSync(fd);
  }

  /** The image that a host has. */
  diskOf(side: Side): string {
    return side === 'a' ? this.disk : this.standbyDisk;
  }

  /** The arbiter as both hosts reach it. */
  get arbiter(): string {
    switch (this.#options.arbiter) {
      case 'none':
        return 'none';
      case 'etcd':
        return this.etcd!.arbiter('guest', this.#lease);
      default:
        return `lock:${this.path('lock')}`;
    }
  }

  get #lease(): string {
    return `lease=${this.#options.leaseMs ?? LEASE_MS}ms`;
  }

  /** The arbiter as one host reaches it: etcd on a way that can be cut. */
  arbiterOf(side: Side): string {
    if (this.#options.arbiter !== 'etcd') return this.arbiter;
    return `etcd:http://127.0.0.1:${this.proxyToEtcd(side).port}/guest?${this.#lease}`;
  }

  /** The way of a host to etcd. */
  proxyToEtcd(side: Side): CuttingProxy {
    return this.#etcdProxies[side]!;
  }

  /** The process of a host: the newest. */
  host(side: Side): Process {
    return this.#hosts[side]!;
  }

  /** The process of the host that runs the guest at first. */
  get primary(): Process {
    return this.host('a');
  }

  /** The process of the host that is the standby at first. */
  get standby(): Process {
    return this.host('b');
  }

  /** The way from the first primary to the first standby. */
  get proxy(): CuttingProxy {
    return this.proxyTo('b');
  }

  /** The way to a host. */
  proxyTo(side: Side): CuttingProxy {
    return this.#proxies[side]!;
  }

  get #timeout(): string[] {
    return ['--ft-timeout', `${(this.#options.timeoutMs ?? 3000) * SLOW}ms`];
  }

  async #prepare(): Promise<void> {
    if (this.#proxies.a !== undefined) return;
    if (this.#options.arbiter === 'etcd') this.etcd = await EtcdCluster.start({ members: 1 });
    for (const side of ['a', 'b'] as const) {
      await this.net.listen(this.path(`net-${side}`));
      this.#proxies[side] = await CuttingProxy.start(1);
      if (this.etcd === undefined) continue;
      const { port } = new URL(this.etcd.endpoints[0]!);
      this.#etcdProxies[side] = await CuttingProxy.start(Number(port));
    }
  }

  /** Starts a standby (again), also on the host that ran the guest before. */
  async startStandby(side: Side = 'b'): Promise<void> {
    await this.#prepare();
    const { standbyArgs = [], bare, diskless, roundTrip } = this.#options;
    const { standbyParts } = this;
    const count = ++this.#standbyCount;
    const name = count === 1 ? 'standby' : `standby-${count}`;
    const net = `net0=stream=${this.path(`net-${side}`)}`;
    const disk = diskless ? [] : ['--disk', `disk0=${this.diskOf(side)}${this.diskArgs[side]}`];
    const parts = bare ? [] : [...disk, '--net', net];
    // The same list on both hosts: each finds itself in it, too.
    const peers = ['a', 'b'].map((each) => `127.0.0.1:${this.proxyTo(each as Side).port}`);
    const standby = new Process(name, this.folder, [
      ...['standby', '--listen', '127.0.0.1:0', ...(standbyParts ?? parts)],
      ...['--serial', `file:${this.path(`console-${side}`)}`],
      ...['--ft-arbiter', this.arbiterOf(side), '--control', this.path(`${side}.sock`)],
      ...(roundTrip ? ['--ft-peer', peers.join()] : []),
      ...this.#timeout,
      ...standbyArgs,
    ]);
    this.#processes.push(standby);
    this.#hosts[side] = standby;
    await standby.said(STANDING_BY);
    const port = portOf(standby);
    this.proxyTo(side).port = port;
    this.#options.say?.(`standby listens on port ${port}`);
  }

  /** Starts the primary. */
  startPrimary(): void {
    const o = this.#options;
    const mac = '52:54:00:12:34:56';
    const card = `model=${o.model ?? 'virtio'},mac=${mac}`;
    const append = o.append ?? 'period=50';
    const primary = new Process('primary', this.folder, [
      ...['run', '--kernel', guestPath(o.guest ?? 'demo'), '--append', append],
      ...['--memory', o.memory ?? '64M', '--cpus', String(o.cpus ?? 1)],
      ...(o.bare || o.diskless ? [] : ['--disk', `${this.disk}${this.diskArgs.a}`]),
      ...(o.bare ? [] : ['--net', `stream=${this.path('net-a')},${card}`]),
      ...['--serial', `file:${this.path('console-a')}`],
      ...(o.unprotected ? [] : this.#protection),
      ...['--control', this.path('a.sock')],
      ...(o.primaryArgs ?? []),
    ]);
    this.#processes.push(primary);
    this.#hosts.a = primary;
  }

  get #protection(): string[] {
    return [
      ...['--ft-peer', `127.0.0.1:${this.proxy.port}`, '--ft-arbiter', this.arbiterOf('a')],
      ...['--ft-policy', this.#options.policy ?? 'adaptive', ...this.#timeout],
    ];
  }

  /** Starts a standby on one more host, that looks for no standby of its own. */
  async startThird(): Promise<void> {
    await this.net.listen(this.path('net-c'));
    const third = new Process('third', this.folder, [
      ...['standby', '--listen', '127.0.0.1:0'],
      ...(this.#options.diskless ? [] : ['--disk', `disk0=${this.disk}`]),
      ...['--net', `net0=stream=${this.path('net-c')}`, '--serial', 'null'],
      ...['--ft-arbiter', this.arbiter, ...this.#timeout],
    ]);
    this.#processes.push(third);
    this.#third = third;
    await third.said(STANDING_BY);
  }

  /** The third host's process. */
  get third(): Process {
    return this.#third!;
  }

  /** Where the third host's standby listens. */
  get thirdPort(): number {
    return portOf(this.#third!);
  }

  /** Whether the third host runs the guest. */
  thirdTookOver(): boolean {
    return RUNS_HERE.test(this.#third!.log);
  }

  /** What a side answers to a control command; undefined when it answers nothing. */
  async ask(
    side: Side,
    command: string,
    fields: Readonly<Record<string, unknown>> = {},
  ): Promise<Record<string, unknown> | undefined> {
    try {
      return await askControl(this.path(`${side}.sock`), { command, ...fields });
    } catch {
      return undefined;
    }
  }

  /** Figures of the replication of whoever runs the guest, the first primary if nothing else is said. */
  async figures(side: Side = 'a'): Promise<Record<string, unknown> | undefined> {
    return (await this.ask(side, 'status'))?.replication as Record<string, unknown> | undefined;
  }

  async phase(side: Side = 'a'): Promise<string | undefined> {
    return (await this.figures(side))?.phase as string | undefined;
  }

  /** Waits until the guest that runs on `side` is protected. */
  async protected(side: Side = 'a'): Promise<void> {
    const host = this.host(side);
    await until('the guest is protected', PROTECT_TIMEOUT_MS, async () => {
      if (host.ended) throw new Error(`the ${host.name} ended:\n${host.log}`);
      return (await this.phase(side)) === 'protected';
    });
  }

  /** Whether the standby of that side has taken the guest over. */
  tookOver(side: Side = 'b'): boolean {
    return RUNS_HERE.test(this.host(side).log);
  }

  /** Waits until the host that runs the guest could come back without a whole copy of its disk: some time after `protected`. */
  async activityLogged(side: Side): Promise<void> {
    const path = `${this.diskOf(side)}.ft-act`;
    await until('the activity log holds', SETTLE_TIMEOUT_MS, () => {
      if (!existsSync(path)) return false;
      const bytes = readFileSync(path);
      const blocks = [0, 1, 2, 3].map((i) => bytes.subarray(4096 * i, 4096 * (i + 1)));
      const sound = blocks.filter((block) => block.length === 4096 && block.readUInt32LE(8) > 0);
      sound.sort((a, b) => b.readUInt32LE(8) - a.readUInt32LE(8));
      return sound[0]?.readUInt32LE(20) === 1;
    });
  }

  /** Bytes that a host that runs the guest has sent for the disks of the standby that it took in last. */
  sentForDisks(side: Side): number {
    const line = this.host(side)
      .log.match(/copying disks[^"]*/g)!
      .at(-1)!;
    const [, sent, unit] = /([\d.]+) (B|KiB|MiB|GiB) sent/.exec(line)!;
    return Number(sent) * { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 }[unit!]!;
  }

  /** Kills what still runs. */
  async end(): Promise<void> {
    for (const process of this.#processes) await process.end();
  }

  /** Gives everything back. */
  close(keep = false): void {
    for (const process of this.#processes) {
      process.signal('SIGCONT');
      process.signal('SIGKILL');
    }
    for (const ways of [this.#proxies, this.#etcdProxies]) {
      for (const proxy of Object.values(ways)) proxy.close();
    }
    this.net.close();
    this.etcd?.close();
    if (keep) process.stderr.write(`kept: ${this.folder}\n`);
    else rmSync(this.folder, { recursive: true, force: true });
  }
}
