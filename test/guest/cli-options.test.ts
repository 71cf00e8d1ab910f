/** Wrong files and hosts, through the built command line: one clear sentence, status 1 or 2, no stack, no terminal left raw. */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { cleanUp, cliPath, scratchFolder, tsvmm } from './cli.ts';
import { guestPath } from './machine-guest.ts';

const scratch = scratchFolder('cli-options');
afterEach(cleanUp);
afterAll(() => scratch.remove());
const garbage = join(scratch.path, 'garbage');
writeFileSync(garbage, Buffer.alloc(4096, 0x5a));
const big = join(scratch.path, 'big');
writeFileSync(big, Buffer.alloc(2 ** 21));
const hello = guestPath('hello');

describe('what cannot be run', () => {
  it.each([
    ['an unknown option', ['--colour', 'red'], /unknown option '--colour'/],
    ['a garbage kernel', ['--kernel', garbage], /neither an ELF file nor a Linux bzImage/],
    ['a program as kernel', ['--kernel', process.execPath], /cannot be booted|does not fit/],
    ['a missing kernel', ['--kernel', '/none'], /there is no such file/],
    ['an initrd that does not fit', ['--kernel', hello, '--memory', '2M', '--initrd', big], /fit/],
    ['a garbage firmware', ['--firmware', big], /the firmware image has 2097152 bytes/],
    ['an unknown CPU flag', ['--kernel', hello, '--cpu', 'host,+see3'], /unknown CPU flag "see3"/],
    ['an unknown CPU', ['--kernel', hello, '--cpu', 'z80'], /unknown CPU model "z80"/],
    ['a CPU flag without sign', ['--kernel', hello, '--cpu', 'host,avx'], /neither \+flag nor/],
    ['an unknown console', ['--kernel', hello, '--serial', 'tty'], /--serial tty: is none of/],
    ['a console nowhere', ['--kernel', hello, '--serial', 'file:/none/x'], /console file/],
    ['a missing disk', ['--kernel', hello, '--disk', '/none/disk'], /\/none\/disk/],
    ['a folder as disk', ['--kernel', hello, '--disk', scratch.path], /./],
    ['a network nowhere', ['--kernel', hello, '--net', 'stream=/none/socket'], /\/none\/socket/],
    ['a log nowhere', ['--kernel', hello, '--log-file', '/none/log'], /--log-file|\/none\/log/],
    ['a control socket nowhere', ['--kernel', hello, '--control', '/proc/x/y'], /control socket/],
    [
      'too long a command line',
      ['--kernel', hello, '--append', 'x'.repeat(70_000)],
      /command line/,
    ],
  ])('%s', async (_name, args, text) => {
    const { ending, stdout, stderr } = await tsvmm(['run', ...args]);
    expect([1, 2], stderr).toContain(ending);
    expect(stdout).toBe('');
    expect(stderr).toMatch(/^(tsvmm|error): [^\n]+\n/);
    expect(stderr).toMatch(text);
    expect(stderr).not.toMatch(/\n\s+at |internal error|invariant|undefined/);
  });

  it('control commands without a guest', async () => {
    for (const args of [
      ['status'],
      ['status', '--name', 'nobody'],
      ['save', 'x', '--control', '/none'],
    ]) {
      const { ending, stderr } = await tsvmm(args);
      expect([1, 2]).toContain(ending);
      expect(stderr).toMatch(/^tsvmm: [^\n]+\n/);
      expect(stderr).not.toMatch(/\n\s+at /);
    }
  });
});

const canHide =
  process.getuid?.() === 0 &&
  spawnSync('unshare', ['-m', 'true'], { stdio: 'ignore' }).status === 0;
if (!canHide) process.stdout.write('skipped: hiding /dev/kvm needs root and mount namespaces\n');

describe.skipIf(!canHide)('a host without KVM', () => {
  /** Runs the command line where /dev has no kvm. */
  function without(...args: string[]) {
    const script =
      'mount -t tmpfs tmpfs /mnt && for n in null zero random urandom tty; do cp -a /dev/$n /mnt/; done && mount --move /mnt /dev && exec "$@"';
    return spawnSync(
      'unshare',
      ['-m', 'sh', '-c', script, 'sh', process.execPath, cliPath, ...args],
      {
        encoding: 'utf8',
        timeout: 30_000,
      },
    );
  }

  it('is told how to get it', () => {
    const run = without('run', '--kernel', hello);
    expect(run.stderr).toMatch(/^tsvmm: [^\n]*\/dev\/kvm[^\n]*\n {2}\S/);
    expect(run.status).toBe(1);
    const check = without('check');
    expect(check.stdout).toMatch(/fatal .*\/dev\/kvm does not exist/);
    expect(check.stdout).toMatch(/-> .*(modprobe|firmware set-up)/);
    expect(check.status).toBe(1);
  });
});
