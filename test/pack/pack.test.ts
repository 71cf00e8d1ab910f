import { spawnSync } from 'node:child_process';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

/** What an installed package must never call. */
const TOOLS = [
  'gcc',
  'g++',
  'cc',
  'c++',
  'clang',
  'clang++',
  'make',
  'python',
  'python3',
  'node-gyp',
  'ld',
];

const dir = mkdtempSync(join(tmpdir(), 'tsvmm-pack-'));
const project = join(dir, 'project');
const bin = join(project, 'node_modules', '.bin', 'tsvmm');
const called = join(dir, 'called');
let env: NodeJS.ProcessEnv;

function run(command: string, args: string[], cwd: string, timeout = 60_000) {
  const result = spawnSync(command, args, {
    cwd,
    env,
    encoding: 'utf8',
    timeout,
    killSignal: 'SIGKILL',
  });
  return { status: result.status, output: `${result.stdout}${result.stderr}` };
}

function canUse(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

beforeAll(() => {
  env = { ...process.env };
  const packed = run(
    process.execPath,
    ['scripts/pack-all.mjs', join(dir, 'tarballs')],
    process.cwd(),
    280_000,
  );
  expect(packed.status, packed.output).toBe(0);

  // First in PATH: stand-ins that fail and leave a trace.
  const stubs = join(dir, 'stubs');
  mkdirSync(stubs);
  for (const tool of TOOLS)
    writeFileSync(join(stubs, tool), `#!/bin/sh\necho "${tool} $*" >> ${called}\nexit 1\n`, {
      mode: 0o755,
    });
  for (const name of Object.keys(env))
    if (/^(npm_|NODE_PATH$|TSVMM_)/i.test(name)) delete env[name];
  env.PATH = `${stubs}:${process.env.PATH}`;

  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{"name":"empty","private":true}\n');
  const tarballs = readdirSync(join(dir, 'tarballs')).map((name) => join(dir, 'tarballs', name));
  expect(tarballs.length).toBe(2);
  const installed = run(
    'npm',
    ['install', '--prefer-offline', '--no-audit', '--no-fund', ...tarballs],
    project,
    200_000,
  );
  expect(installed.status, installed.output).toBe(0);
});

afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe('the published packages', () => {
  it('install without a compiler, and have no install script', () => {
    expect(existsSync(called), 'a build tool was called').toBe(false);
    for (const name of ['tsvmm', 'tsvmm-linux-x64-gnu']) {
      const pkg = JSON.parse(
        readFileSync(join(project, 'node_modules', name, 'package.json'), 'utf8'),
      );
      expect(pkg.scripts ?? {}).toEqual({});
      expect(existsSync(join(project, 'node_modules', name, 'binding.gyp'))).toBe(false);
    }
  });

  it('hold what is needed and nothing of the checkout', () => {
    const root = join(project, 'node_modules', 'tsvmm');
    const files = readdirSync(root, { recursive: true })
      .map(String)
      .filter((name) => statSync(join(root, name)).isFile());
    expect(files).toContain('dist/firmware/demo.elf');
    expect(files).toContain('native/binding.cjs');
    expect(files.filter((name) => /\.test\.|\.cc$|\.gyp$|\.node$|(^|\/)test\//.test(name))).toEqual(
      [],
    );
    const platform = readdirSync(join(project, 'node_modules', 'tsvmm-linux-x64-gnu'));
    expect(platform).toContain('tsvmm.linux-x64-gnu.node');
  });

  it('say their version', () => {
    const { version } = JSON.parse(readFileSync('package.json', 'utf8'));
    const result = run(bin, ['--version'], project);
    expect(result).toEqual({ status: 0, output: `${version}\n` });
  });

  it('load the addon of the platform package', () => {
    const script =
      "const a = require('tsvmm/native/binding.cjs'); console.log(typeof a.BlockIo, typeof a.MemoryMap, Object.keys(require.cache).join())";
    const result = run(process.execPath, ['-e', script], project);
    expect(result.status, result.output).toBe(0);
    expect(result.output).toContain('function function');
    expect(result.output).toContain('tsvmm-linux-x64-gnu');
  });

  it.skipIf(!canUse('/dev/kvm'))('run the demo guest (needs /dev/kvm)', () => {
    const serial = join(dir, 'serial.txt');
    const result = run(
      bin,
      ['run', '--demo', '--append', 'ticks=3 period=10', '--serial', `file:${serial}`],
      project,
    );
    expect(result.status, result.output).toBe(0);
    expect(readFileSync(serial, 'utf8')).toContain('tick 3');
    expect(existsSync(called), 'a build tool was called').toBe(false);
  });
});
