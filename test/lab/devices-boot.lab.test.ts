// Firmware and boot loaders that nobody here wrote: GRUB from a virtio-blk disk to a Debian kernel, and iPXE's own
// drivers of both network cards from DHCP to a program of 1 MiB over HTTP, which prints its checksum.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { grubDisk, networkProgram } from './boot-images.ts';
import { GuestConsole } from './guest-console.ts';
import { LabError, repositoryRoot } from './tools.ts';

const cli = join(repositoryRoot(), 'dist/src/cli/main.js');
const scratch = '/scratch/boot';
const bootMs = 300_000;

function sh(script: string): void {
  execFileSync('sh', ['-ec', script], { stdio: ['ignore', 'pipe', 'pipe'] });
}

function madeOrSkip(what: string, make: () => string): string | undefined {
  try {
    return make();
  } catch (error) {
    if (!(error instanceof LabError)) throw error;
    process.stdout.write(`skipped: ${what}: ${error.message}\n`);
    return undefined;
  }
}

function crc32(bytes: Uint8Array): string {
  let sum = ~0;
  for (const byte of bytes) {
    sum ^= byte;
    for (let i = 0; i < 8; i++) sum = (sum >>> 1) ^ ((sum & 1) * 0xedb88320);
  }
  return (~sum >>> 0).toString(16).padStart(8, '0');
}

const guests: GuestConsole[] = [];
afterEach(async () => {
  for (const guest of guests.splice(0)) await guest.kill();
});
sh(`rm -rf ${scratch}; mkdir -p ${scratch}`);
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const grub = madeOrSkip('booting by GRUB', grubDisk);

it.skipIf(grub === undefined)(
  'GRUB loads a Debian kernel from ext4 on a virtio-blk disk',
  async () => {
    const disk = join(scratch, 'grub.img');
    copyFileSync(grub!, disk);
    const args = [cli, 'run', '--memory', '256M', '--disk', disk];
    const guest = new GuestConsole(process.execPath, args);
    guests.push(guest);
    await guest.expect(/Booting from Hard Disk/, bootMs);
    await guest.expect(/GRUB runs/, bootMs);
    await guest.expect(/guest# /, bootMs);
    expect(await guest.command('cat /proc/cmdline')).toContain('BOOT_IMAGE=');
    guest.type('poweroff -f\n');
    expect(await guest.ended()).toBe(0);
  },
);

const roms = existsSync('/usr/lib/ipxe/qemu/efi-e1000.rom');
if (!roms) process.stdout.write('skipped: booting by iPXE needs the package ipxe-qemu\n');
const program = madeOrSkip('booting by iPXE', networkProgram);

describe.skipIf(!roms || program === undefined)("iPXE's ROM", () => {
  const servers: ChildProcess[] = [];
  const namespace = 'devboot';
  afterAll(() => {
    for (const server of servers) server.kill('SIGKILL');
    sh(`ip netns del ${namespace} 2>/dev/null || true`);
  });

  function serve(...args: string[]): void {
    servers.push(
      spawn('ip', ['netns', 'exec', namespace, 'busybox', ...args], { stdio: 'inherit' }),
    );
  }

  it.each(['virtio', 'e1000'])('of %s gets an address and 1 MiB over HTTP', async (model) => {
    const www = join(scratch, 'www');
    if (servers.length === 0) {
      mkdirSync(www);
      copyFileSync(program!, join(www, 'program'));
      sh(`ip netns add ${namespace}
        ip -n ${namespace} link set lo up
        ip -n ${namespace} tuntap add dev boottap mode tap
        ip -n ${namespace} addr add 10.83.0.1/24 dev boottap
        ip -n ${namespace} link set boottap up`);
      const leases = join(scratch, 'leases');
      writeFileSync(leases, '');
      writeFileSync(
        join(scratch, 'dhcp.conf'),
        `start 10.83.0.10\nend 10.83.0.20\ninterface boottap\nlease_file ${leases}\n` +
          `pidfile ${scratch}/dhcp.pid\nboot_file http://10.83.0.1/program\n` +
          'siaddr 10.83.0.1\nopt subnet 255.255.255.0\nopt router 10.83.0.1\n',
      );
      serve('udhcpd', '-f', join(scratch, 'dhcp.conf'));
      serve('httpd', '-f', '-p', '10.83.0.1:80', '-h', www);
    }
    const run = [cli, 'run', '--memory', '128M', '--boot', 'net'];
    const args = ['netns', 'exec', namespace, process.execPath, ...run];
    const guest = new GuestConsole('ip', [...args, '--net', `tap=boottap,model=${model}`]);
    guests.push(guest);
    const [, sum] = await guest.expect(/program crc32=([0-9a-f]{8}) end/, bootMs);
    expect(sum).toBe(crc32(readFileSync(program!)));
    expect(guest.text).toMatch(/net0: 10\.83\.0\.1\d\/|10\.83\.0\.1\/program\.* ok/);
    expect(await guest.ended()).toBe(13);
  });
});
