// Builds an initial RAM file system (newc cpio, not compressed: software CPUs unpack slowly) from
// busybox, kernel modules, programs with their shared libraries, and small texts. Files are kept by
// the hash of what went in. Called for the lab's own start and for the guests booted in it.
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { type Kernel, modulesInOrder } from './kernels.ts';
import { cacheDirectory, findProgram, LabError, run, tool } from './tools.ts';

/** What an initial RAM file system is made of. */
export interface InitramfsContent {
  readonly kernel: Kernel;
  /** Module names, as for modprobe; loaded by /init in the order of `/modules.list`. */
  readonly modules: readonly string[];
  /** Paths of the host to put at the same path, with the shared libraries each one needs. */
  readonly files: readonly string[];
  /** Texts by path. A text that starts with "#!" becomes executable. */
  readonly texts: Readonly<Record<string, string>>;
}

/** Changes whenever this file builds something else from the same content. */
const builderVersion = 1;

/** Builds (or finds) the file system and returns the path of the cpio file. */
export function initramfs(content: InitramfsContent): string {
  const modules = modulesInOrder(content.kernel, content.modules);
  const files = withLibraries([tool('busybox'), ...content.files]);
  const key = hash([
    builderVersion,
    content.kernel.id,
    modules,
    files.map((file) => [file, statSync(file).size, Math.floor(statSync(file).mtimeMs / 1000)]),
    content.texts,
  ]);
  const directory = join(cacheDirectory(), 'images');
  const target = join(directory, `${key}.cpio`);
  if (existsSync(target)) return target;
  mkdirSync(directory, { recursive: true });
  const work = mkdtempSync(join(directory, '.new-'));
  try {
    const tree = join(work, 'tree');
    for (const name of [
      'bin',
      'dev',
      'etc',
      'lib',
      'mnt',
      'modules',
      'proc',
      'root',
      'sys',
      'tmp',
    ]) {
      mkdirSync(join(tree, name), { recursive: true });
    }
    installBusybox(tree);
    for (const file of files.slice(1)) place(tree, file);
    const list = modules.map((module) => {
      const name = module.slice(module.lastIndexOf('/') + 1);
      copyFileSync(join(content.kernel.modules, module), join(tree, 'modules', name));
      return `${name}\n`;
    });
    writeFileSync(join(tree, 'modules.list'), list.join(''));
    for (const [path, text] of Object.entries(content.texts)) {
      mkdirSync(dirname(join(tree, path)), { recursive: true });
      rmSync(join(tree, path), { force: true }); // It may be a link to busybox.
      writeFileSync(join(tree, path), text);
      if (text.startsWith('#!')) chmodSync(join(tree, path), 0o755);
    }
    const archive = join(work, 'archive.cpio');
    const names = run('find', ['.', '-print0'], { cwd: tree });
    run(tool('cpio'), ['-0', '-o', '-H', 'newc', '-R', '0:0', '--quiet', '-O', archive], {
      cwd: tree,
      input: names,
    });
    renameSync(archive, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return target;
}

/** A short hash of any plain value. */
export function hash(value: unknown): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('hex').slice(0, 24);
}

/** Every applet of busybox as a link in /bin, so that scripts can be written as usual. */
function installBusybox(tree: string): void {
  const busybox = tool('busybox');
  copyFileSync(busybox, join(tree, 'bin/busybox'));
  chmodSync(join(tree, 'bin/busybox'), 0o755);
  for (const applet of run(busybox, ['--list']).split('\n')) {
    if (applet !== '' && applet !== 'busybox') symlinkSync('busybox', join(tree, 'bin', applet));
  }
  symlinkSync('bin', join(tree, 'sbin'));
}

/** Puts a host file at its own path; replaces the link to busybox where it has the same name. */
function place(tree: string, file: string): void {
  const target = join(tree, file);
  mkdirSync(dirname(target), { recursive: true });
  rmSync(target, { force: true });
  copyFileSync(realpathSync(file), target);
  chmodSync(target, statSync(file).mode & 0o755);
}

/** The files and the shared libraries they are linked with, each once, in a stable order. */
function withLibraries(files: readonly string[]): string[] {
  const all = new Set<string>();
  for (const given of files) {
    const file = given.includes('/') ? given : findProgram(given);
    if (file === undefined || !existsSync(file)) {
      throw new LabError(`cannot put ${given} into an initial RAM file system: no such file`);
    }
    all.add(file);
    for (const library of librariesOf(file)) all.add(library);
  }
  return [...all];
}

function librariesOf(file: string): string[] {
  let text: string;
  try {
    text = run('ldd', [file]);
  } catch {
    return []; // Static, or not a program at all.
  }
  return [...text.matchAll(/(?:=> )?(\/\S+) \(0x/g)].map((match) => match[1]);
}
