// An unmodified Debian kernel on tsvmm: to a shell, with one to four processors, and out again. QEMU's
// machine, run here on the same kernel, says which warnings belong to the kernel or to the lab.
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { GuestConsole } from './guest-console.ts';
import { type ImageName, image } from './images.ts';
import { repositoryRoot } from './tools.ts';

const cli = join(repositoryRoot(), 'dist/src/cli/main.js');
/** Every character on the console is an exit, so the kernel's log stays off it but for one test. */
const append = 'console=ttyS0 panic=-1 quiet';
const verbose = 'console=ttyS0 earlyprintk=ttyS0 panic=-1';
/** A boot takes 6 s when the host has nothing else to do. */
const bootMs = 120_000;

const guests: GuestConsole[] = [];
afterEach(async () => {
  for (const guest of guests.splice(0)) await guest.kill();
});

/** Starts tsvmm on a named guest. */
function tsvmm(name: ImageName, cpus: number, commandLine = append): GuestConsole {
  const { kernel, initrd } = image(name);
  const args = [cli, 'run', '--kernel', kernel, '--initrd', initrd, '--append', commandLine];
  args.push('--memory', '256M', '--cpus', String(cpus), '--serial', 'stdio');
  const guest = new GuestConsole(process.execPath, args);
  guests.push(guest);
  return guest;
}

/** Starts QEMU's ordinary machine on the same guest, with no devices but those of the board. */
function qemu(name: ImageName, cpus: number): GuestConsole {
  const { kernel, initrd } = image(name);
  const args = ['-M', 'pc', '-accel', 'kvm', '-cpu', 'host', '-m', '256', '-smp', String(cpus)];
  args.push('-nodefaults', '-display', 'none', '-no-reboot', '-serial', 'stdio');
  args.push('-kernel', kernel, '-initrd', initrd, '-append', append);
  const guest = new GuestConsole('qemu-system-x86_64', args);
  guests.push(guest);
  return guest;
}

async function shell(guest: GuestConsole): Promise<void> {
  await guest.expect(/guest# /, bootMs);
}

/** Messages of the guest's kernel of level warning and above, with what varies between runs blanked. */
async function warnings(guest: GuestConsole): Promise<Set<string>> {
  const log = await guest.command("dmesg -r | grep '^<[0-4]>' || true");
  const found = new Set<string>();
  for (const line of log.split('\n')) {
    const [, level, text] = /^<(\d+)>\[\s*[\d.]+\] (.*)$/.exec(line) ?? [];
    // A dump's bytes of code hold addresses, which address randomisation changes.
    if (level === undefined || text.startsWith('Code: ')) continue;
    found.add(text.replaceAll(/0x[0-9a-f]+|[0-9a-f]{8,}|\d+(\.\d+)?/g, '#').trim());
  }
  return found;
}

describe('the Debian cloud kernel', () => {
  for (const cpus of [1, 2, 4]) {
    it(`boots to a shell with ${cpus} processors and powers off`, async () => {
      const guest = tsvmm('shell', cpus);
      await shell(guest);
      expect((await guest.command('nproc')).trim()).toBe(String(cpus));
      const interrupts = await guest.command('cat /proc/interrupts');
      expect(interrupts.split('\n')[0].match(/CPU\d+/g)).toHaveLength(cpus);
      const timer = interrupts.split('\n').find((line) => line.includes('LOC:')) ?? '';
      const counts = timer.match(/\d+/g)?.map(Number) ?? [];
      expect(counts).toHaveLength(cpus);
      for (const count of counts) expect(count).toBeGreaterThan(0);
      const source = '/sys/devices/system/clocksource/clocksource0/current_clocksource';
      expect((await guest.command(`cat ${source}`)).trim()).toBe('kvm-clock');
      guest.type('poweroff -f\n');
      expect(await guest.ended()).toBe(0);
    });
  }

  it('writes its log to the console from the first line on', async () => {
    const guest = tsvmm('shell', 1, verbose);
    await guest.expect(/\[ {4}0\.000000\] Linux version 6\.\d/, bootMs);
    await guest.expect(/Run \/init as init process/, bootMs);
    await shell(guest);
  });

  it('reboots when it is told to', async () => {
    const guest = tsvmm('shell', 2);
    await shell(guest);
    const first = await guest.command('cat /proc/sys/kernel/random/boot_id');
    guest.type('reboot -f\n');
    await guest.expect(/Restarting system/);
    await shell(guest);
    expect(await guest.command('cat /proc/sys/kernel/random/boot_id')).not.toBe(first);
    expect((await guest.command('nproc')).trim()).toBe('2');
    guest.type('poweroff -f\n');
    expect(await guest.ended()).toBe(0);
  });

  it('powers off at the power button, which SIGTERM presses', async () => {
    const guest = tsvmm('shell', 1);
    await shell(guest);
    guest.signal('SIGTERM');
    await guest.expect(/power button/);
    expect(await guest.ended()).toBe(0);
  });

  it("warns of nothing that it does not warn of on QEMU's machine too", async () => {
    const reference = qemu('shell', 2);
    await shell(reference);
    const known = await warnings(reference);
    await reference.kill();
    const guest = tsvmm('shell', 2);
    await shell(guest);
    const own = await warnings(guest);
    expect([...own].filter((text) => !known.has(text))).toEqual([]);
  });
});

describe("Debian's ordinary kernel", () => {
  it('boots to a shell', async () => {
    const guest = tsvmm('e1000', 1);
    await shell(guest);
    expect((await guest.command('uname -r')).trim()).toBe(image('e1000').release);
    guest.type('poweroff -f\n');
    expect(await guest.ended()).toBe(0);
  });
});
