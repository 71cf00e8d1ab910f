// What the lab takes from the host: the checkout's root, the cache, and Debian's programs. A program
// that is missing is reported together with all others and with the command that installs them, so a
// newcomer is told once. Called by every other file of the lab.
import { execFileSync, type StdioOptions } from 'node:child_process';
import { accessSync, constants, existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The lab itself failed (not the command in it). `exitCode` is what the launcher ends with. */
export class LabError extends Error {
  readonly exitCode: number;

  constructor(message: string, exitCode = 125) {
    super(message);
    this.name = 'LabError';
    this.exitCode = exitCode;
  }
}

/** Programs the lab runs on the host, and the Debian package of each. */
const packageOf = {
  'qemu-system-x86_64': 'qemu-system-x86',
  'apt-get': 'apt',
  dpkg: 'dpkg',
  busybox: 'busybox-static',
  cpio: 'cpio',
  depmod: 'kmod',
  modprobe: 'kmod',
  'mkfs.ext4': 'e2fsprogs',
  setpriv: 'util-linux',
  ip: 'iproute2',
} as const;

/** A program the lab knows the package of. */
export type Tool = keyof typeof packageOf;

/** The full path of `program`; sbin is searched too, which is not in the PATH of ordinary users. */
export function findProgram(program: string): string | undefined {
  const directories = (process.env.PATH ?? '').split(delimiter);
  for (const directory of [...directories, '/usr/sbin', '/sbin', '/usr/bin', '/bin']) {
    if (directory === '') continue;
    const path = join(directory, program);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // Not in this directory.
    }
  }
  return undefined;
}

/**
 * Why the lab cannot run here, in one sentence with the remedy; undefined when it can. `isThere` tells
 * whether a program can be found (tests pretend).
 */
export function whyNoLab(
  isThere: (program: string) => boolean = (program) => findProgram(program) !== undefined,
): string | undefined {
  const missing = new Set<string>();
  for (const [program, name] of Object.entries(packageOf)) {
    if (!isThere(program)) missing.add(name);
  }
  if (missing.size === 0) return undefined;
  const list = [...missing].sort().join(' ');
  return (
    `the lab needs Debian packages that are not installed: ${list}. ` +
    `Install them with: apt-get update && apt-get install -y --no-install-recommends ${list}`
  );
}

/** The path of a program of the lab; throws a LabError with the remedy when it is missing. */
export function tool(program: Tool): string {
  const path = findProgram(program);
  if (path === undefined) {
    throw new LabError(
      `${program} is not installed: apt-get install -y --no-install-recommends ${packageOf[program]}`,
    );
  }
  return path;
}

/** Runs a program to its end and returns its standard output; throws a LabError with its stderr. */
export function run(
  program: string,
  args: readonly string[],
  options: { cwd?: string; input?: string | Buffer; stdio?: StdioOptions } = {},
): string {
  try {
    return execFileSync(program, args, {
      maxBuffer: 64 << 20,
      stdio: ['pipe', 'pipe', 'pipe'],
      encoding: 'utf8',
      env: { ...process.env, LC_ALL: 'C' },
      ...options,
    });
  } catch (error) {
    const failure = error as { stderr?: string; message: string };
    const reason = (failure.stderr ?? '').trim() || failure.message;
    throw new LabError(`${program} ${args.join(' ')} failed: ${reason}`);
  }
}

/** The root of the checkout, found from this file both in the sources and in dist. */
export function repositoryRoot(): string {
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, 'package.json'))) {
    const parent = dirname(directory);
    if (parent === directory) throw new LabError('cannot find package.json above the lab sources');
    directory = parent;
  }
  return directory;
}

/** Where downloads and built images are kept: outside the tree, shared by all checkouts. */
export function cacheDirectory(): string {
  const base = process.env.XDG_CACHE_HOME || join(homedir(), '.cache');
  return join(base, 'tsvmm-lab');
}

/** Whether this process itself runs inside the lab (the lab sets the variable). */
export function insideLab(): boolean {
  return process.env.TSVMM_LAB === '1';
}
