// A guest that resets its machine in the midst of reads and writes, again and again: nothing of an earlier life may reach the memory or
// the disk of a later one (firmware/guests/reboot.c looks).
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { Prng } from '../../src/base/prng.ts';
import { Pair, SETTLE_TIMEOUT_MS, sleep, until } from '../failover/pair.ts';
import { FakeNbdServer } from '../support/nbd-server.ts';
import { cleanUp, cliPath, scratchFolder, start, tsvmm } from './cli.ts';
import { guestPath } from './machine-guest.ts';

if (!existsSync(cliPath)) throw new Error(`${cliPath} is missing: run npm run build:ts first`);

const scratch = scratchFolder('disk-reset');
afterEach(cleanUp);
afterAll(() => scratch.remove());

const DISK_BYTES = 2 ** 22;

function guestArgs(append: string, disk: string): string[] {
  const boot = ['--kernel', guestPath('reboot'), '--append', append];
  return ['run', ...boot, '--memory', '32M', '--disk', disk];
}

describe('resets in the midst of disk requests', { timeout: 120_000 }, () => {
  it('of a file', async () => {
    const path = join(scratch.path, 'disk.img');
    for (const cache of ['none', 'writeback']) {
      writeFileSync(path, '');
      truncateSync(path, DISK_BYTES);
      const { ending, stdout } = await tsvmm(
        guestArgs('boots=6 depth=40 size=32K settle=30', `${path},cache=${cache}`),
      );
      expect(stdout).toContain('reboot: 6 resets verified');
      expect(ending).toBe(0);
    }
  });

  it('of a slow server that does them in any order', async () => {
    const server = new FakeNbdServer({ sizeBytes: DISK_BYTES });
    const random = new Prng(5);
    server.delayMs = () => random.below(100);
    const socket = join(scratch.path, 'nbd.sock');
    await server.listen(socket);
    const { ending, stdout } = await tsvmm(
      guestArgs('boots=5 depth=32 settle=150', `nbd+unix:///?socket=${socket}`),
    );
    await server.crash();
    expect(stdout).toContain('reboot: 5 resets verified');
    expect(ending).toBe(0);
  });

  it('of a server that falls silent: the reset gives them up after a while', async () => {
    const server = new FakeNbdServer({ sizeBytes: DISK_BYTES });
    const socket = join(scratch.path, 'silent.sock');
    await server.listen(socket);
    const cli = start(guestArgs('boots=1 depth=8', `nbd+unix:///?socket=${socket}`));
    // The requests behind the second flush are those that the guest resets upon.
    let flushes = 0;
    server.swallow = (type) => {
      if (type === 3 && server.connections === 1) flushes++;
      return flushes >= 2 && type !== 3 && server.connections === 1;
    };
    await cli.says(/reboot: 1 resets verified/, 60_000);
    expect(await cli.ended).toBe(0);
    expect(server.connections).toBe(2);
    expect(cli.stderr).toMatch(/disk 'disk0': the guest's reset waits for 16 requests/);
    await server.crash();
  });

  it.each([
    [1, 'shared', 'kemari'],
    [2, 'shared', 'adaptive'],
    [3, 'replicate', 'adaptive'],
    [4, 'replicate', 'periodic'],
  ] as const)(
    'of a protected guest whose host dies (seed %i, %s disk, %s)',
    async (seed, disks, policy) => {
      const append = 'boots=10 depth=24 settle=300';
      const pair = new Pair({ guest: 'reboot', append, disks, policy });
      try {
        await pair.startStandby();
        pair.startPrimary();
        await pair.protected();
        await sleep(new Prng(seed).below(2000));
        pair.primary.signal('SIGKILL');
        await until('the standby has taken over', SETTLE_TIMEOUT_MS, () => pair.tookOver());
        expect(await pair.standby.exit(60_000), pair.standby.log).toBe(0);
        expect(readFileSync(pair.path('console-b'), 'utf8')).toContain(
          'reboot: 10 resets verified',
        );
      } finally {
        pair.close();
      }
    },
  );
});
