// Debian's kernels, taken apart in the cache: `apt-get download` and `dpkg -x`, nothing is installed.
// One directory per package version, made under another name and renamed, so that a half-made one is
// never seen. A link per flavour names the version in use; it is what the lab and hosts without a
// package list go by. Called by the lab's machine (flavour generic) and by the guest images.
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
} from 'node:fs';
import { join } from 'node:path';
import { cacheDirectory, insideLab, LabError, run, tool } from './tools.ts';

/**
 * `cloud` is the kernel of Debian's cloud images: virtio, no e1000, no 9p. `generic` is Debian's
 * ordinary kernel: drivers for everything.
 */
export type KernelFlavour = 'generic' | 'cloud';

const metapackage: Record<KernelFlavour, string> = {
  generic: 'linux-image-amd64',
  cloud: 'linux-image-cloud-amd64',
};

/** An unpacked Debian kernel. */
export interface Kernel {
  readonly flavour: KernelFlavour;
  /** As `uname -r` says it, e.g. "6.1.0-56-cloud-amd64". */
  readonly release: string;
  /** Name and version of the package: the key of everything derived from it. */
  readonly id: string;
  /** The bzImage, unmodified. */
  readonly vmlinuz: string;
  /** The directory that holds `lib/modules/RELEASE`, as modprobe's `-d` wants it. */
  readonly root: string;
  /** `lib/modules/RELEASE`, with modules.dep made. */
  readonly modules: string;
}

/** How long a looked-up version is used before the package lists are asked again. */
const lookupLifetimeMs = 24 * 3600 * 1000;

/** The newest kernel of a flavour, downloaded on first use. */
export function kernel(flavour: KernelFlavour): Kernel {
  const packages = join(cacheDirectory(), 'kernels');
  const link = join(packages, flavour);
  const linked = readLink(link);
  if (linked !== undefined && existsSync(join(packages, linked))) {
    const age = Date.now() - lstatSync(link).mtimeMs;
    if (insideLab() || age < lookupLifetimeMs) return describe(flavour, linked, packages);
  }
  const candidate = lookUp(flavour);
  if (candidate === undefined) {
    if (linked !== undefined) return describe(flavour, linked, packages);
    throw new LabError(
      `the package lists know no ${metapackage[flavour]}: run apt-get update (the lab needs Debian's kernels)`,
    );
  }
  const id = `${candidate.name}_${candidate.version}`.replaceAll(/[^\w.+~-]/g, '_');
  mkdirSync(packages, { recursive: true });
  if (!existsSync(join(packages, id))) {
    download(candidate.name, candidate.version, join(packages, id), packages);
  }
  const fresh = `${link}.${process.pid}`;
  rmSync(fresh, { force: true });
  symlinkSync(id, fresh);
  renameSync(fresh, link);
  return describe(flavour, id, packages);
}

/**
 * The modules named, each after those it depends on, as paths relative to `kernel.modules`. What is
 * built into the kernel is left out.
 */
export function modulesInOrder(from: Kernel, names: readonly string[]): string[] {
  const ordered: string[] = [];
  for (const name of names) {
    const lines = run(tool('modprobe'), ['-d', from.root, '-S', from.release, '-D', name]);
    for (const line of lines.split('\n')) {
      const path = /^insmod (\S+)/.exec(line)?.[1];
      if (path === undefined) continue;
      const relative = path.slice(path.indexOf(`/${from.release}/`) + from.release.length + 2);
      if (!ordered.includes(relative)) ordered.push(relative);
    }
  }
  return ordered;
}

function describe(flavour: KernelFlavour, id: string, packages: string): Kernel {
  const directory = join(packages, id);
  // Debian 13 moved /lib to /usr/lib inside packages.
  const root = existsSync(join(directory, 'lib/modules')) ? directory : join(directory, 'usr');
  const release = readdirSync(join(root, 'lib/modules'))[0];
  return {
    flavour,
    release,
    id,
    vmlinuz: join(directory, 'boot', `vmlinuz-${release}`),
    root,
    modules: join(root, 'lib/modules', release),
  };
}

function readLink(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}

/** The real package behind the flavour's metapackage, and its newest version. */
function lookUp(flavour: KernelFlavour): { name: string; version: string } | undefined {
  try {
    const depends = run('apt-cache', ['depends', metapackage[flavour]]);
    const name = /Depends: (linux-image-\S+)/.exec(depends)?.[1];
    if (name === undefined) return undefined;
    const version = /Candidate: (\S+)/.exec(run('apt-cache', ['policy', name]))?.[1];
    return version === undefined || version === '(none)' ? undefined : { name, version };
  } catch {
    return undefined;
  }
}

function download(name: string, version: string, target: string, packages: string): void {
  process.stderr.write(`lab: downloading ${name} ${version}\n`);
  const work = mkdtempSync(join(packages, '.new-'));
  try {
    const args = ['-q', '-o', 'APT::Sandbox::User=', 'download', `${name}=${version}`];
    run(tool('apt-get'), args, { cwd: work });
    const deb = readdirSync(work).find((file) => file.endsWith('.deb'));
    if (deb === undefined) throw new LabError(`apt-get download ${name} left no package`);
    const tree = join(work, 'tree');
    run(tool('dpkg'), ['-x', join(work, deb), tree]);
    const root = existsSync(join(tree, 'lib/modules')) ? tree : join(tree, 'usr');
    for (const release of readdirSync(join(root, 'lib/modules'))) {
      run(tool('depmod'), ['-b', root, release]);
    }
    try {
      renameSync(tree, target);
    } catch (error) {
      // Another lab unpacked the same version meanwhile.
      if (!existsSync(target)) throw error;
    }
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}
