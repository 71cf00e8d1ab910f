// `npm run lab -- [options] COMMAND...`: runs one command of this checkout on a machine with a
// hardware-style /dev/kvm (docs/testing.md). Compiled TypeScript run from dist, as the CLI is, so that
// types and lint rules hold here too and Node 20, which cannot run TypeScript, starts it fast.
// Exit status: the command's own; 124 out of time, 125 the lab failed, 130 interrupted.
import { realpathSync } from 'node:fs';
import { resolve } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { runInLab } from './machine.ts';
import { insideLab, LabError } from './tools.ts';

interface Flags {
  timeout: number;
  cpus: number;
  memory: number;
  out?: string;
  tscReliable: boolean;
  stdin: boolean;
  verbose: boolean;
}

function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError('It must be a number above 0.');
  return value;
}

function mebibytes(text: string): number {
  const match = /^(\d+)([MG]?)$/.exec(text);
  const value = Number(match?.[1] ?? 0) * (match?.[2] === 'G' ? 1024 : 1);
  if (value < 512) throw new InvalidArgumentError('It must be at least 512M, e.g. 4096M or 4G.');
  return value;
}

const program = new Command('npm run lab --')
  .description('Run a command of this checkout in a machine with a hardware-style /dev/kvm.')
  .argument('<command...>', 'program and arguments, run in the current directory')
  .option('--timeout <seconds>', 'end the lab after this time', positive, 900)
  .option('--cpus <n>', 'virtual CPUs of the lab', positive, 2)
  .option('--memory <size>', 'memory of the lab', mebibytes, 4096)
  .option('--out <directory>', 'make this directory writable from inside, at the same path')
  .option('--tsc-reliable', "make the TSC the lab kernel's clock source", false)
  .option('--stdin', 'pass standard input on to the command', false)
  .option('--verbose', "show the lab kernel's console and QEMU's messages", false)
  .passThroughOptions()
  .showHelpAfterError();

async function main(): Promise<number> {
  program.parse();
  const flags = program.opts<Flags>();
  if (insideLab()) throw new LabError('this is already the lab: run the command as it is');
  const interrupted = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => interrupted.abort());
  }
  return runInLab({
    command: program.args,
    cwd: realpathSync(process.cwd()),
    cpus: flags.cpus,
    memoryMib: flags.memory,
    timeoutSeconds: flags.timeout,
    tscReliable: flags.tscReliable,
    verbose: flags.verbose,
    ...(flags.out === undefined ? {} : { outDirectory: resolve(flags.out) }),
    ...(flags.stdin ? { stdin: process.stdin } : {}),
    stdout: process.stdout,
    stderr: process.stderr,
    signal: interrupted.signal,
  });
}

try {
  process.exitCode = await main();
} catch (error) {
  if (!(error instanceof LabError)) throw error;
  process.stderr.write(`lab: ${error.message}\n`);
  process.exitCode = error.exitCode;
}
if (process.stdin.readable) process.stdin.destroy();
