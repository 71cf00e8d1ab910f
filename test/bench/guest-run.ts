/**
 * Runs one of the project's bench guests under tsvmm or QEMU and reads its `bench:` lines. Both boot the same ELF file, so one
 * driver code measures both.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import type { Qemu } from './measure.ts';

/** The checkout, from the source as from dist. */
export const ROOT = [
  resolve(import.meta.dirname, '../../..'),
  resolve(import.meta.dirname, '../..'),
].find((folder) => existsSync(join(folder, 'package.json')))!;
/** The compiled command line. */
export const CLI = join(ROOT, 'dist/cli/main.cjs');
/** Longest time for one run of a guest. */
const RUN_TIMEOUT_MS = 60_000;

/** Path of one of the project's guests. */
export function guestPath(name: string): string {
  return join(ROOT, 'dist/firmware', `${name}.elf`);
}

/** A program with its arguments. */
export type Command = readonly string[];

/** A guest and what it is given. */
export interface GuestSpec {
  readonly guest: string;
  readonly append?: string;
  readonly cpus?: number;
  readonly memory?: string;
}

/** tsvmm's command for a guest; its serial port is standard output. */
export function tsvmmCommand(spec: GuestSpec, more: Command = []): Command {
  return [
    ...[process.execPath, CLI, 'run', '--no-reboot', '--kernel', guestPath(spec.guest)],
    ...(spec.append === undefined ? [] : ['--append', spec.append]),
    ...['--memory', spec.memory ?? '256M', '--cpus', String(spec.cpus ?? 1), ...more],
  ];
}

/** QEMU's command for the same. Its machine `pc` starts with qboot where QEMU has it: on a slow KVM SeaBIOS takes seconds. */
export function qemuCommand(
  qemu: Qemu,
  spec: GuestSpec,
  more: Command = [],
  machine = 'pc',
): Command {
  return [
    ...[qemu.path, '-M', machine, '-accel', 'kvm', '-cpu', 'qemu64', '-nodefaults', '-display'],
    ...['none', '-no-reboot', '-serial', 'stdio', '-device'],
    ...['isa-debug-exit,iobase=0xf4,iosize=0x04', '-m', spec.memory ?? '256M'],
    ...['-smp', String(spec.cpus ?? 1), '-kernel', guestPath(spec.guest)],
    ...(spec.append === undefined ? [] : ['-append', spec.append]),
    ...(machine === 'pc' && qemu.qboot ? ['-bios', 'qboot.rom'] : []),
    ...more,
  ];
}

/** A command as it is typed in the checkout. */
export function commandText(command: Command): string {
  return command
    .map((word) => {
      if (word === process.execPath) return 'node';
      const local = word.replaceAll(`${ROOT}/`, '');
      return /^[\w@%+=:,./-]+$/.test(local) ? local : `'${local}'`;
    })
    .join(' ');
}

/** A file's path from the checkout, for remarks. */
export function localPath(path: string): string {
  return relative(ROOT, path);
}

const running = new Set<ChildProcess>();

/** Remembers a child that {@link endAll} is to end. */
export function track<T extends ChildProcess>(child: T): T {
  running.add(child);
  child.on('exit', () => running.delete(child));
  return child;
}

const undo = new Set<() => void>();

/** Remembers what {@link endAll} has to undo besides. @returns how to forget it again */
export function undoAtEnd(action: () => void): () => void {
  undo.add(action);
  return () => undo.delete(action);
}

/** Ends what still runs, when the benchmark itself is told to end. */
export function endAll(): void {
  for (const child of running) child.kill('SIGKILL');
  for (const action of undo) {
    try {
      action();
    } catch {
      // The others still have to be undone.
    }
  }
}

/** Starts a command with its output piped. */
export function launch([program, ...args]: Command): ChildProcess {
  const child = spawn(program!, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NO_COLOR: '1' },
  });
  return track(child);
}

/** Runs a command to its end. @returns what it printed. @throws Error when it takes too long or fails */
export function finish(command: Command, timeoutMs = RUN_TIMEOUT_MS): Promise<string> {
  return new Promise((resolved, rejected) => {
    const child = launch(command);
    let out = '';
    let err = '';
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      out += text;
    });
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      err += text;
    });
    const timer = setTimeout(() => child.kill('SIGKILL'), timeoutMs);
    child.on('error', rejected);
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      if (code === 0) resolved(out);
      else rejected(new Error(`ended with ${code ?? signal}: ${lastLines(out)} ${lastLines(err)}`));
    });
  });
}

function lastLines(text: string): string {
  return text.trim().slice(-300).replaceAll('\n', ' | ');
}

/** The fields of one `bench:` line. */
export type BenchLine = ReadonlyMap<string, string>;

/** Reads the lines `bench: NAME key=value ...` out of a guest's output. */
export function benchLines(output: string, name: string): BenchLine[] {
  const lines: BenchLine[] = [];
  for (const [, found, rest] of output.matchAll(/bench: (\S+) ([^\r\n]*)/g)) {
    if (found !== name) continue;
    lines.push(
      new Map(
        rest!
          .trim()
          .split(' ')
          .map((word) => word.split('=', 2) as [string, string]),
      ),
    );
  }
  return lines;
}

/** A number of a line. @throws Error when it is not there */
export function field(line: BenchLine | undefined, key: string): number {
  const value = Number(line?.get(key) ?? Number.NaN);
  if (!Number.isFinite(value)) throw new Error(`the guest printed no ${key}`);
  return value;
}
