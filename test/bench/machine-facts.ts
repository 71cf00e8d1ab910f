/** What a reader has to know about the machine to read the figures. */

import { execFileSync } from 'node:child_process';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, release, totalmem } from 'node:os';
import { join } from 'node:path';
import type { Qemu } from './measure.ts';

/** Facts about this machine and this run. */
export interface MachineFacts {
  readonly cpu: string;
  readonly cpus: number;
  readonly memoryMib: number;
  readonly kernel: string;
  readonly node: string;
  readonly qemu: string;
  readonly virtualized: boolean;
  readonly commit: string;
  readonly startedAt: string;
  /** One-minute load average at the start and the end: with more than idle, figures are noise. */
  readonly loadAtStart: number;
  loadAtEnd?: number;
}

/** Looks at the machine. */
export function machineFacts(qemu: Qemu | undefined): MachineFacts {
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cpus: availableParallelism(),
    memoryMib: Math.round(totalmem() / 2 ** 20),
    kernel: release(),
    node: process.version,
    qemu: qemu?.version ?? 'none',
    virtualized: /^flags\s*:.*\bhypervisor\b/m.test(readFileSync('/proc/cpuinfo', 'utf8')),
    commit: textOf('git', ['rev-parse', '--short', 'HEAD']) ?? 'unknown',
    startedAt: new Date().toISOString(),
    loadAtStart: loadavg()[0]!,
  };
}

/** The one-minute load average. */
export function loadNow(): number {
  return loadavg()[0]!;
}

/** Why /dev/kvm cannot be used, or undefined. */
export function kvmMissing(): string | undefined {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    return `needs /dev/kvm (${error instanceof Error ? error.message : String(error)})`;
  }
}

/** The first installed QEMU. */
export function findQemu(): Qemu | undefined {
  const path = process.env.TSVMM_BENCH_QEMU ?? 'qemu-system-x86_64';
  const version = textOf(path, ['--version'])?.split('\n')[0];
  if (version === undefined) return undefined;
  const folders = textOf(path, ['-L', 'help'])?.split('\n') ?? [];
  return { path, version, qboot: folders.some((folder) => existsSync(join(folder, 'qboot.rom'))) };
}

function textOf(command: string, args: readonly string[]): string | undefined {
  try {
    return execFileSync(command, args, {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  } catch {
    return undefined;
  }
}
