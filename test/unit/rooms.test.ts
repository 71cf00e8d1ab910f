/**
 * The rooms of the house: who may import whom, and which of the host's globals are banned in the rooms that must be
 * deterministic. docs/architecture.md says why; this list is the rule.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';

const ROOT = resolve(import.meta.dirname, '../..');

/** What each room may import besides itself; `node` stands for node:* modules, `#native` for the addon. */
const RULES: Readonly<Record<string, readonly string[]>> = {
  'src/base': [],
  'src/memory': ['src/base', 'bitset'],
  'src/snapshot': ['src/base'],
  'src/bus': ['src/base', 'src/snapshot'],
  'src/pci': ['src/base', 'src/bus', 'src/snapshot'],
  'src/virtio': ['src/base', 'src/bus', 'src/memory', 'src/pci', 'src/snapshot'],
  'src/block': ['src/base', 'src/memory', 'node'],
  'src/net': ['src/base', 'src/memory', 'node'],
  'src/console': ['src/base', 'src/memory', 'node'],
  'src/ft/wire': ['src/base'],
  'src/ft/core': ['src/base', 'src/ft/wire'],
  'src/ft/disk': ['src/base', 'src/block', 'src/ft/core', 'src/ft/wire', 'src/memory', 'node'],
  'src/ft/shell': [
    'src/base',
    'src/block',
    'src/bus',
    'src/console',
    'src/ft/core',
    'src/ft/disk',
    'src/ft/wire',
    'src/kvm',
    'src/memory',
    'src/net',
    'src/snapshot',
    'bitset',
    'node',
  ],
  'src/kvm': ['src/base', 'src/snapshot', '#native', 'node'],
  'src/machine': [
    'src/base',
    'src/block',
    'src/bus',
    'src/console',
    'src/ft/core',
    'src/ft/disk',
    'src/ft/shell',
    'src/ft/wire',
    'src/kvm',
    'src/memory',
    'src/net',
    'src/pci',
    'src/snapshot',
    'src/virtio',
    'devices',
    'node',
  ],
  'src/monitor': ['src/base', 'src/machine', 'node', 'prom-client', 'valibot', 'ws'],
  // The command line is the outermost room: it composes backends, machines and monitors.
  'src/cli': [
    'src/base',
    'src/block',
    'src/console',
    'src/ft/core',
    'src/ft/disk',
    'src/ft/shell',
    'src/ft/wire',
    'src/kvm',
    'src/machine',
    'src/memory',
    'src/monitor',
    'src/net',
    'src/snapshot',
    'commander',
    'node',
    'picocolors',
    'pino',
    'smol-toml',
    'valibot',
  ],
  devices: ['src/base', 'src/bus', 'src/memory', 'src/pci', 'src/snapshot', 'src/virtio'],
};

/** Devices see backends only as interfaces, and what both sides keep of a request: these modules and no other of their rooms. */
const BACKEND_INTERFACES = [
  'src/block/backend.ts',
  'src/block/kept-requests.ts',
  'src/net/backend.ts',
  'src/console/backend.ts',
];

/** Rooms whose behaviour depends on nothing but their inputs. */
const PURE = ['devices', 'src/virtio', 'src/pci', 'src/ft/core', 'src/ft/wire'];
const BANNED =
  /(?<![#.])\b(Date|performance|process|setTimeout|setInterval|setImmediate|queueMicrotask|Promise)\b(?!['"])|\bMath\.random\b|\basync\b|\bawait\b|^(?:export )?let /m;

function sources(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)));
}

function roomOf(path: string): string | undefined {
  return Object.keys(RULES)
    .filter((room) => path === room || path.startsWith(`${room}/`))
    .sort((a, b) => b.length - a.length)[0];
}

/** Comments and strings out, so that prose may say "process". */
function codeOf(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/\/\/.*$/gm, '');
}

function importsOf(text: string): string[] {
  return [...codeOf(text).matchAll(/(?:\bfrom|\bimport)\s*\(?\s*'([^']+)'/g)].map(
    (match) => match[1]!,
  );
}

/** Why an import is against the rules, or undefined. */
function complaint(path: string, specifier: string): string | undefined {
  const room = roomOf(path);
  if (room === undefined) return `${path} is in no known room`;
  const allowed = RULES[room]!;
  if (specifier.startsWith('.')) {
    const target = relative(ROOT, resolve(ROOT, dirname(path), specifier));
    if (!target.endsWith('.ts')) return `${path} imports ${specifier} without its .ts ending`;
    if (room === 'devices') {
      const own = path.split('/')[1];
      if (target.startsWith('devices/') && target.split('/')[1] !== own) {
        return `${path} imports another device, ${target}`;
      }
      if (BACKEND_INTERFACES.includes(target)) return undefined;
    }
    const targetRoom = roomOf(target);
    if (targetRoom === room || (targetRoom !== undefined && allowed.includes(targetRoom)))
      return undefined;
    return `${path} (${room}) imports ${target}`;
  }
  const name = specifier.startsWith('node:') ? 'node' : specifier;
  return allowed.includes(name) ? undefined : `${path} (${room}) imports ${specifier}`;
}

const files = [...sources('src'), ...sources('devices')].filter(
  (path) => !path.endsWith('.test.ts'),
);

describe('rooms', () => {
  it('import only what the plan of the house allows', () => {
    expect(files.length).toBeGreaterThan(20);
    const complaints = files.flatMap((path) =>
      importsOf(readFileSync(join(ROOT, path), 'utf8')).flatMap(
        (name) => complaint(path, name) ?? [],
      ),
    );
    expect(complaints).toEqual([]);
  });

  it('keep clocks, randomness, promises and module state out of the pure ones', () => {
    const complaints = files
      .filter((path) => PURE.some((room) => path.startsWith(`${room}/`)))
      .flatMap((path) => {
        const match = BANNED.exec(
          codeOf(readFileSync(join(ROOT, path), 'utf8')).replace(/'[^'\n]*'/g, "''"),
        );
        return match === null ? [] : [`${path} uses ${match[0]}`];
      });
    expect(complaints).toEqual([]);
  });

  it('would notice a breach', () => {
    expect(complaint('devices/e1000/a.ts', '../virtio-net/b.ts')).toMatch(/another device/);
    expect(complaint('devices/e1000/a.ts', 'node:fs')).toMatch(/imports node:fs/);
    expect(complaint('devices/e1000/a.ts', '../../src/block/file.ts')).toMatch(/src\/block/);
    expect(complaint('devices/e1000/a.ts', '../../src/net/backend.ts')).toBeUndefined();
    expect(complaint('src/ft/core/a.ts', '../shell/b.ts')).toMatch(/shell/);
    expect(complaint('src/base/a.ts', '../bus/b.ts')).toMatch(/bus/);
    expect(BANNED.test('const t = Date.now()')).toBe(true);
    expect(BANNED.test('let counter = 0;')).toBe(true);
  });

  it('have files of one concept each: at most 800 lines', () => {
    const long = files.filter(
      (path) => readFileSync(join(ROOT, path), 'utf8').split('\n').length > 801,
    );
    expect(long).toEqual([]);
  });
});
