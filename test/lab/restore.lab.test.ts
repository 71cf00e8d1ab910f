// An unmodified Debian kernel under load, saved by `tsvmm save` and continued by a new process: its shells and loops
// go on, memory is as it was, and its clocks neither leap nor go back. SeaBIOS, too, comes up on this kind of KVM.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { GuestConsole } from './guest-console.ts';
import { image } from './images.ts';
import { repositoryRoot } from './tools.ts';

const cli = join(repositoryRoot(), 'dist/src/cli/main.js');
/** Every character on the console is an exit, so the kernel's log stays off it. */
const append = 'console=ttyS0 panic=-1 quiet';
const bootMs = 120_000;
const scratch = mkdtempSync(join(tmpdir(), 'tsvmm-restore-'));
const socket = join(scratch, 'control.sock');
const file = join(scratch, 'state');

const guests: GuestConsole[] = [];
afterEach(async () => {
  for (const guest of guests.splice(0)) await guest.kill();
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

function run(cpus: number, ...more: string[]): GuestConsole {
  const { kernel, initrd } = image('shell');
  const args = [cli, 'run', '--kernel', kernel, '--initrd', initrd, '--append', append];
  args.push('--memory', '192M', '--cpus', String(cpus), '--control', socket, ...more);
  const guest = new GuestConsole(process.execPath, args);
  guests.push(guest);
  return guest;
}

/** Copies data round memory and checks it; counts rounds, and keeps what went wrong. Leaves some time to the console. */
const load = [
  'mkdir -p /tmp/load; cd /tmp/load; dd if=/dev/urandom of=a bs=64k count=4 2>/dev/null',
  'sum=$(md5sum <a); i=0',
  '(while :; do cp a b; cat b >c; [ "$(md5sum <c)" = "$sum" ] || echo $i >>wrong',
  'i=$((i+1)); echo $i >count; usleep 20000; done) & cd /root',
].join('; ');
/** A timer that fires every tenth of a second. */
const ticks = '(n=0; while :; do usleep 100000; n=$((n+1)); echo $n >/tmp/ticks; done) &';

/** What the kernel says when time or memory went wrong; some of it also in any start on a slow CPU. */
const complaints = 'dmesg | grep -E "stall|lockup|unstable|BUG:|Oops|Call Trace"; true';

async function number(guest: GuestConsole, command: string): Promise<number> {
  return Number.parseFloat((await guest.command(command)).trim());
}

describe('the Debian cloud kernel under load', () => {
  for (const cpus of [1, 2]) {
    it(`goes on in a new process, with ${cpus} processors`, async () => {
      const first = run(cpus);
      await first.expect(/guest# /, bootMs);
      await first.command(load);
      await first.command(`${ticks} true`);
      await new Promise((resolve) => setTimeout(resolve, 3000));
      const before = {
        count: await number(first, 'cat /tmp/load/count'),
        ticks: await number(first, 'cat /tmp/ticks'),
        complaints: await first.command(complaints),
        uptime: await number(first, 'cat /proc/uptime'),
        date: await number(first, 'date +%s'),
        wall: performance.now(),
      };
      const saved = spawnSync(process.execPath, [cli, 'save', file, '--control', socket], {
        encoding: 'utf8',
        timeout: 120_000,
      });
      expect(saved).toMatchObject({ status: 0, stderr: '' });
      expect(await first.ended()).toBe(0);

      const second = run(cpus, '--restore', file);
      second.type('\n');
      await second.expect(/guest# /, bootMs);
      const uptime = await number(second, 'cat /proc/uptime');
      // Clocks go on by what has passed outside, however long that was here; read last before, first after.
      const date = await number(second, 'date +%s');
      const passed = (performance.now() - before.wall) / 1000;
      expect(uptime).toBeGreaterThanOrEqual(before.uptime);
      expect(uptime).toBeLessThan(before.uptime + passed + 30);
      expect(date).toBeGreaterThanOrEqual(before.date);
      expect(date).toBeLessThan(before.date + passed + 30);
      await new Promise((resolve) => setTimeout(resolve, 3000));
      expect(await number(second, 'cat /tmp/load/count')).toBeGreaterThan(before.count);
      expect(await number(second, 'cat /tmp/ticks')).toBeGreaterThan(before.ticks);
      expect(await second.command('cat /tmp/load/wrong 2>/dev/null; true')).toBe('');
      expect((await second.command('nproc')).trim()).toBe(String(cpus));
      expect(await second.command(complaints)).toBe(before.complaints);
      second.type('poweroff -f\n');
      expect(await second.ended()).toBe(0);
    });
  }
});

describe('SeaBIOS', () => {
  it('comes up to its banner and finds nothing to boot', async () => {
    const args = [cli, 'run', '--memory', '64M', '--control', socket];
    const guest = new GuestConsole(process.execPath, args);
    guests.push(guest);
    await guest.expect(/SeaBIOS \(version/, bootMs);
    await guest.expect(/No bootable device/, bootMs);
  });
});
