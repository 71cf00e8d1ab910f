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
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { askControl } from '../../src/monitor/control-server.ts';
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
const SLOW = process.env.TSVMM_LAB === '1' ? 8 : 1;
/** Silence after which a peer counts as lost. */
const TIMEOUT = ['--ft-timeout', `${3 * SLOW}s`];

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
  /** No disk: nothing that two hosts share. */
  readonly diskless?: boolean;
  /** Default: both use one lock file. */
  readonly arbiter?: 'lock' | 'none';
  readonly primaryArgs?: readonly string[];
  readonly standbyArgs?: readonly string[];
  /** What stands in the place of the standby's arguments for its disk and card. */
  readonly standbyParts?: readonly string[];
  readonly say?: (line: string) => void;
}

const DISK_BYTES = 16 * 2 ** 20;

/** See the module's head. */
export class Pair {
  readonly folder = mkdtempSync(join(tmpdir(), 'tsvmm-failover-'));
  readonly net = new Switch();
  readonly #options: PairOptions;
  readonly #processes: Process[] = [];
  #standbyCount = 0;
  #proxy: CuttingProxy | undefined;
  #standby: Process | undefined;
  #primary: Process | undefined;

  constructor(options: PairOptions = {}) {
    this.#options = options;
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

  get arbiter(): string {
    return this.#options.arbiter === 'none' ? 'none' : `lock:${this.path('lock')}`;
  }

  get primary(): Process {
    return this.#primary!;
  }

  get standby(): Process {
    return this.#standby!;
  }

  get proxy(): CuttingProxy {
    return this.#proxy!;
  }

  /** Starts a standby (again) and the proxy in front of it. */
  async startStandby(): Promise<void> {
    const { standbyArgs = [], standbyParts, bare, diskless } = this.#options;
    if (this.#proxy === undefined) await this.net.listen(this.path('net-a'));
    if (this.#proxy === undefined) await this.net.listen(this.path('net-b'));
    const name = this.#standbyCount++ === 0 ? 'standby' : `standby-${this.#standbyCount}`;
    const parts = bare
      ? []
      : [
          ...(diskless ? [] : ['--disk', `disk0=${this.standbyDisk}`]),
          ...['--net', `net0=stream=${this.path('net-b')}`],
        ];
    const standby = new Process(name, this.folder, [
      ...['standby', '--listen', '127.0.0.1:0', ...(standbyParts ?? parts)],
      ...['--serial', `file:${this.path('console-b')}`],
      ...['--ft-arbiter', this.arbiter, '--control', this.path('b.sock')],
      ...TIMEOUT,
      ...standbyArgs,
    ]);
    this.#processes.push(standby);
    this.#standby = standby;
    await standby.said(/standing by on 127\.0\.0\.1:\d+/);
    const port = Number(/standing by on 127\.0\.0\.1:(\d+)/.exec(standby.log)![1]);
    if (this.#proxy === undefined) this.#proxy = await CuttingProxy.start(port);
    else this.#proxy.port = port;
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
      ...(o.bare || o.diskless ? [] : ['--disk', this.disk]),
      ...(o.bare ? [] : ['--net', `stream=${this.path('net-a')},${card}`]),
      ...['--serial', `file:${this.path('console-a')}`],
      ...['--ft-peer', `127.0.0.1:${this.proxy.port}`, '--ft-arbiter', this.arbiter],
      ...['--ft-policy', o.policy ?? 'adaptive', '--control', this.path('a.sock')],
      ...TIMEOUT,
      ...(o.primaryArgs ?? []),
    ]);
    this.#processes.push(primary);
    this.#primary = primary;
  }

  /** What a side answers to a control command; undefined when it answers nothing. */
  async ask(side: 'a' | 'b', command: string): Promise<Record<string, unknown> | undefined> {
    try {
      return await askControl(this.path(`${side}.sock`), { command });
    } catch {
      return undefined;
    }
  }

  /** Figures of the primary's replication. */
  async figures(): Promise<Record<string, unknown> | undefined> {
    return (await this.ask('a', 'status'))?.replication as Record<string, unknown> | undefined;
  }

  async phase(): Promise<string | undefined> {
    return (await this.figures())?.phase as string | undefined;
  }

  /** Waits until the guest is protected. */
  async protected(): Promise<void> {
    await until('the guest is protected', PROTECT_TIMEOUT_MS, async () => {
      if (this.primary.ended) throw new Error(`the primary ended:\n${this.primary.log}`);
      return (await this.phase()) === 'protected';
    });
  }

  /** Whether the standby runs the guest. */
  tookOver(): boolean {
    return /runs here now/.test(this.standby.log);
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
    this.#proxy?.close();
    this.net.close();
    if (!keep) rmSync(this.folder, { recursive: true, force: true });
  }
}
