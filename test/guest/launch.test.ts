/** How the bundled command takes and keeps compiled code. Node 22 and newer do it by themselves; there only the command is tried. */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import module from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { root } from './machine-guest.ts';

const ownCache = !('enableCompileCache' in module);

let base: string;
let cache: string;
beforeEach(() => {
  base = mkdtempSync(join(tmpdir(), 'tsvmm-launch-'));
  cache = join(base, 'tsvmm');
});
afterEach(() => rmSync(base, { recursive: true }));

function run(args: readonly string[], env: NodeJS.ProcessEnv = {}): string {
  const done = spawnSync(process.execPath, [join(root, 'dist/cli/main.cjs'), ...args], {
    encoding: 'utf8',
    env: { ...process.env, XDG_CACHE_HOME: base, ...env },
  });
  return `${done.status}: ${done.stdout}${done.stderr}`;
}

describe('the bundled command', () => {
  it('runs a guest and tells its version', () => {
    expect(run(['--version'])).toMatch(/^0: \d+\.\d+\.\d+\n$/);
    const guest = ['run', '--kernel', join(root, 'dist/firmware/hello.elf')];
    for (let i = 0; i < 2; i++)
      expect(run(guest)).toContain('0: hello from a tsvmm guest: all is well');
  });

  it('reads a configuration file and writes a log, with compiled code too', () => {
    const config = join(base, 'config.toml');
    const log = join(base, 'log');
    writeFileSync(config, 'memory = "64M"\nlog-level = "debug"\n');
    const guest = ['run', '--config', config, '--kernel', join(root, 'dist/firmware/hello.elf')];
    for (let i = 0; i < 2; i++) {
      expect(run([...guest, '--log-file', log])).toMatch(/^0: hello [^\n]*\n$/);
    }
  });

  it.runIf(ownCache)('keeps its compiled code for the user alone, and takes it', () => {
    run(['--version']);
    expect(statSync(cache).mode & 0o777).toBe(0o700);
    expect(readdirSync(cache)).toContain('commands.cjs');
    const path = join(cache, 'commands.cjs');
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const { mtimeMs } = statSync(path);
    run(['--version']);
    expect(statSync(path).mtimeMs).toBe(mtimeMs);
  });

  it.runIf(ownCache)('makes anew what is cut off, of another build, or none at all', () => {
    const version = run(['--version']);
    const path = join(cache, 'commands.cjs');
    const kept = readFileSync(path);
    const otherBuild = Buffer.from(kept);
    otherBuild[20]! ^= 1;
    for (const damaged of [kept.subarray(0, -1), otherBuild, Buffer.alloc(0), Buffer.alloc(500)]) {
      writeFileSync(path, damaged);
      expect(run(['--version'])).toBe(version);
      expect(readFileSync(path).subarray(0, 128)).toEqual(kept.subarray(0, 128));
    }
  });

  it.runIf(ownCache)('keeps nothing where others can write, nor where it is told not to', () => {
    expect(run(['--version'], { NODE_DISABLE_COMPILE_CACHE: '1' })).toMatch(/^0: /);
    expect(existsSync(cache)).toBe(false);
    mkdirSync(cache);
    chmodSync(cache, 0o777);
    expect(run(['--version'])).toMatch(/^0: /);
    expect(readdirSync(cache)).toEqual([]);
  });
});
