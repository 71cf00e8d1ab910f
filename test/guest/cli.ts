/** The built command line as a child process, as a person or a script runs it. */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root, until } from './machine-guest.ts';

/** Path of the compiled command line. */
export const cliPath = join(root, 'dist', 'src', 'cli', 'main.js');

/** How a process ended: its status, or the signal's name. */
export type Ending = number | string;

/** One `tsvmm` process. */
export class Cli {
  readonly child: ChildProcess;
  readonly ended: Promise<Ending>;
  stdout = '';
  stderr = '';
  ending: Ending | undefined;

  constructor(args: readonly string[], options: SpawnOptions = {}) {
    this.child = spawn(process.execPath, [cliPath, ...args], {
      stdio: ['pipe', 'pipe', 'pipe'],
      ...options,
      env: { ...process.env, NO_COLOR: '1', ...options.env },
    });
    this.child.stdin?.on('error', () => {}); // It may end while something is typed.
    this.child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text.replaceAll('\r', '');
    });
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text;
    });
    this.ended = new Promise((resolve, reject) => {
      this.child.on('error', reject);
      this.child.on('close', (code, signal) => {
        this.ending = code ?? signal ?? 'nothing';
        resolve(this.ending);
      });
    });
  }

  /** Waits until standard output matches, or the process has ended without. */
  async says(pattern: RegExp, timeoutMs = 30_000): Promise<void> {
    await until(
      () => pattern.test(this.stdout) || this.ending !== undefined,
      `${pattern} on standard output; it has:\n${this.stdout.slice(-500)}\n${this.stderr.slice(-500)}`,
      timeoutMs,
    );
    if (!pattern.test(this.stdout)) {
      throw new Error(
        `it ended with ${this.ending} before ${pattern}: ${this.stdout}${this.stderr}`,
      );
    }
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }
}

const running = new Set<Cli>();

/** Starts the command line; {@link cleanUp} ends what is still running. */
export function start(args: readonly string[], options: SpawnOptions = {}): Cli {
  const cli = new Cli(args, options);
  running.add(cli);
  void cli.ended.finally(() => running.delete(cli));
  return cli;
}

/** A finished command. */
export interface Finished {
  readonly ending: Ending;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line to its end. */
export async function tsvmm(
  args: readonly string[],
  options: SpawnOptions = {},
): Promise<Finished> {
  const cli = start(args, options);
  cli.child.stdin?.end();
  const ending = await cli.ended;
  return { ending, stdout: cli.stdout, stderr: cli.stderr };
}

/** Ends every process that a test left, for `afterEach`. */
export async function cleanUp(): Promise<void> {
  for (const cli of [...running]) {
    cli.kill('SIGKILL');
    await cli.ended;
  }
}

/** A folder for a test file's scratch files, and the function that removes it. */
export function scratchFolder(name: string): { path: string; remove(): void } {
  const path = mkdtempSync(join(tmpdir(), `tsvmm-${name}-`));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}
