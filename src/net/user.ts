/**
 * User-mode networking through passt (https://passt.top): no privileges, no set-up. Starts `passt` on a private socket
 * and speaks the stream protocol with it. passt answers DHCP, and ends the guest's TCP connections itself: what it has
 * acknowledged is lost with this host, so this network does not keep the promises of replication.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import type { FrameBatch, NetBackend, NetHandler, NetInfo } from './backend.ts';
import { openStream, type StreamBackend } from './stream.ts';

export interface UserNetOptions {
  /** The program. Default `passt`, found in PATH. */
  readonly program?: string;
  /** TCP ports of the host that lead to the guest, as passt's `-t` takes them (`2222:22`). */
  readonly tcpForward?: readonly string[];
  /** UDP ports, as `-u` takes them. */
  readonly udpForward?: readonly string[];
  /** How long passt may take to start. Default 5000. */
  readonly startMs?: number;
}

/** Address, prefix and gateway that the guest gets; fixed, so that a snapshot fits another host. */
const GUEST_NETWORK = ['-a', '10.0.2.15', '-n', '24', '-g', '10.0.2.2'];

/** Starts passt and connects to it; VmmError NET_PASST* when it is missing or does not start. */
export async function openUserNet(log: Logger, options: UserNetOptions = {}): Promise<UserNet> {
  const dir = mkdtempSync(join(tmpdir(), 'tsvmm-passt-'));
  const socket = join(dir, 'passt.sock');
  const program = options.program ?? 'passt';
  const args = ['--foreground', '--stderr', '--one-off', '--socket', socket, ...GUEST_NETWORK];
  // As root passt would change to "nobody", who cannot reach the socket's folder.
  if (process.getuid?.() === 0) args.push('--runas', '0');
  for (const ports of options.tcpForward ?? []) args.push('-t', ports);
  for (const ports of options.udpForward ?? []) args.push('-u', ports);

  // passt forbids itself all system calls but its own: a preloaded library (a sanitizer) would be its death.
  const { LD_PRELOAD: _preload, ...env } = process.env;
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'], env });
  let complaint = '';
  let failure: Error | undefined;
  child.stderr.setEncoding('utf8');
  child.stderr.on('data', (text: string) => {
    complaint = (complaint + text).slice(-2000);
  });
  child.on('error', (error) => {
    failure = error;
  });
  try {
    const until = performance.now() + (options.startMs ?? 5000);
    while (!existsSync(socket)) {
      if (failure !== undefined || child.exitCode !== null || performance.now() > until) {
        throw startError(program, failure, complaint);
      }
      await sleep(10);
    }
    const stream = await openStream(log, { address: { path: socket } });
    return new UserNet(stream, child, dir, log);
  } catch (error) {
    child.kill('SIGKILL');
    rmSync(dir, { recursive: true, force: true });
    throw error;
  }
}

function startError(program: string, failure: Error | undefined, complaint: string): VmmError {
  if (failure !== undefined && 'code' in failure && failure.code === 'ENOENT') {
    return new VmmError('NET_PASST_MISSING', `${program} is not installed`, {
      hint: 'Install the package passt, or use a TAP interface (--net tap=tap0).',
      cause: failure,
    });
  }
  const last = complaint.trim().split('\n').at(-1) ?? '';
  return new VmmError('NET_PASST', `${program} did not start: ${failure?.message ?? last}`, {
    hint: 'Run it by hand to see more: passt --foreground --stderr',
    cause: failure,
  });
}

export class UserNet implements NetBackend {
  readonly info: NetInfo;
  readonly #stream: StreamBackend;
  readonly #child: ChildProcess;
  readonly #dir: string;
  readonly #onExit = () => this.#child.kill('SIGKILL');
  #closed = false;

  constructor(stream: StreamBackend, child: ChildProcess, dir: string, log: Logger) {
    this.#stream = stream;
    this.#child = child;
    this.#dir = dir;
    this.info = { ...stream.info, name: 'user (passt)' };
    process.once('exit', this.#onExit);
    child.once('exit', (code, signal) => {
      process.off('exit', this.#onExit);
      if (!this.#closed)
        log.error(`passt ended (${signal ?? code}); the guest has no network any more`);
    });
  }

  get linkUp(): boolean {
    return this.#stream.linkUp;
  }
  setHandler(handler: NetHandler): void {
    this.#stream.setHandler(handler);
  }
  send(batch: FrameBatch, from: number): number {
    return this.#stream.send(batch, from);
  }
  receive(batch: FrameBatch, maxFrames: number): number {
    return this.#stream.receive(batch, maxFrames);
  }
  setReceiveEnabled(enabled: boolean): void {
    this.#stream.setReceiveEnabled(enabled);
  }
  setReceiveOffloads(): void {}

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#stream.close();
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      const gone = new Promise((resolve) => this.#child.once('exit', resolve));
      this.#child.kill('SIGTERM');
      const late = setTimeout(() => this.#child.kill('SIGKILL'), 1000);
      await gone;
      clearTimeout(late);
    }
    rmSync(this.#dir, { recursive: true, force: true });
  }
}
