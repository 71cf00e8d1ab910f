// Replication of stock Linux guests between two hosts that are network namespaces: `host-a` and `host-b` with a bridge, a TAP and
// an uplink each, `client` behind the same switch, and a link of their own between the hosts. One disk on the scratch file system
// is shared. Host A's process is killed with -9 in the middle of everything.
import { execFileSync, spawn } from 'node:child_process';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { GuestConsole } from './guest-console.ts';
import { type ImageName, image } from './images.ts';
import { repositoryRoot } from './tools.ts';

const cli = join(repositoryRoot(), 'dist/src/cli/main.js');
const disk = '/scratch/ft-disk.img';
const lock = '/scratch/ft-lock';
const key = '/tmp/ft-key';
const capture = '/tmp/ft-b.pcap';
const hosts = ['a', 'b'] as const;
/** Sizes of the downloads; `npm run soak -- --lab --download MIB` asks for larger ones. */
const downloadMib = Number(process.env.TSVMM_LAB_DOWNLOAD_MIB ?? 0);
const virtioMib = downloadMib || 8;
const e1000Mib = downloadMib || 2;
/** The lab carries at least this much for a protected guest, mostly several times of it. */
const downloadMs = (mib: number): number => 150_000 + mib * 6000;

const sh = (script: string): string =>
  execFileSync('sh', ['-ec', script], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

/** The switch, the two hosts, the client and the disk. */
function build(): void {
  demolish();
  sh(`ip link add ftswitch type bridge
    ip link set ftswitch up
    ip netns add client
    ip link add upc type veth peer name eth0 netns client
    ip link set upc master ftswitch up
    ip -n client addr add 10.9.0.1/24 dev eth0
    ip -n client link set eth0 up`);
  for (const host of hosts) {
    sh(`ip netns add host-${host}
      ip -n host-${host} link set lo up
      ip link add up${host} type veth peer name uplink netns host-${host}
      ip link set up${host} master ftswitch up
      ip -n host-${host} link add br0 type bridge
      ip -n host-${host} link set br0 up
      ip -n host-${host} link set uplink master br0 up
      ip -n host-${host} tuntap add dev tap0 mode tap
      ip -n host-${host} link set tap0 master br0 up`);
  }
  sh(`ip -n host-a link add ft0 type veth peer name ft0 netns host-b
    ip -n host-a addr add 10.8.0.1/24 dev ft0
    ip -n host-b addr add 10.8.0.2/24 dev ft0
    ip -n host-a link set ft0 up
    ip -n host-b link set ft0 up
    truncate -s 64M ${disk}
    mkfs.ext4 -q -F ${disk}`);
  writeFileSync(key, 'c0ffee00'.repeat(8), { mode: 0o600 });
}

function demolish(): void {
  sh(`for ns in host-a host-b client; do ip netns del $ns 2>/dev/null || true; done
    ip link del ftswitch 2>/dev/null || true`);
  for (const path of [disk, lock, key]) rmSync(path, { force: true });
}

const guests: GuestConsole[] = [];
afterEach(async () => {
  for (const guest of guests.splice(0)) await guest.kill();
  demolish();
});

function inHost(host: (typeof hosts)[number], args: readonly string[]): GuestConsole {
  const common = ['--ft-key', key, '--ft-arbiter', `lock:${lock}`, '--ft-timeout', '30s'];
  const log = ['--log-level', 'info', '--control', `/tmp/ft-${host}.sock`];
  const command = [process.execPath, cli, ...args, ...common, ...log];
  const guest = new GuestConsole('ip', ['netns', 'exec', `host-${host}`, ...command]);
  guests.push(guest);
  return guest;
}

async function until(what: string, ms: number, test: () => boolean): Promise<void> {
  const end = performance.now() + ms;
  while (!test()) {
    if (performance.now() > end) {
      const said = guests.map((guest) => guest.stderr.slice(-3000)).join('\n---\n');
      throw new Error(`waited ${ms} ms in vain until ${what}\n${said}`);
    }
    await new Promise((done) => setTimeout(done, 50));
  }
}

interface Pair {
  readonly primary: GuestConsole;
  readonly standby: GuestConsole;
}

/** Boots a guest on host A and configures it at its shell. */
async function bootedGuest(
  name: ImageName,
  cpus: number,
  model: 'virtio' | 'e1000',
): Promise<GuestConsole> {
  build();
  const { kernel, initrd } = image(name);
  const primary = inHost('a', [
    ...[
      'run',
      '--kernel',
      kernel,
      '--initrd',
      initrd,
      '--memory',
      downloadMib > 32 ? '640M' : '256M',
      '--cpus',
      String(cpus),
    ],
    ...['--append', 'console=ttyS0 panic=-1 quiet', '--serial', 'stdio', '--disk', disk],
    ...['--net', `tap=tap0,model=${model}`, '--ft-peer', '10.8.0.2:4444', '--ft-interval', '200ms'],
  ]);
  await primary.expect(/guest# /, 150_000);
  await primary.command('ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up');
  await primary.command('mkdir -p /mnt /tmp/www; mount -t ext4 /dev/vda /mnt');
  return primary;
}

/** Starts host B and waits until it protects the guest. */
async function protect(primary: GuestConsole): Promise<Pair> {
  const standby = inHost('b', [
    ...['standby', '--listen', '10.8.0.2:4444', '--disk', `disk0=${disk}`],
    ...['--net', `net0=tap=tap0,pcap=${capture}`, '--serial', 'stdio'],
  ]);
  const begin = performance.now();
  await until('the guest is protected', 150_000, () =>
    primary.stderr.includes('replication: protected'),
  );
  process.stdout.write(`lab: protected after ${Math.round(performance.now() - begin)} ms\n`);
  return { primary, standby };
}

/** A process in the client's namespace with its output in a file. */
function inClient(command: string, output: string): { readonly size: () => number } {
  rmSync(output, { force: true });
  writeFileSync(output, '');
  spawn('ip', ['netns', 'exec', 'client', 'sh', '-c', `${command} >${output} 2>${output}.err`], {
    stdio: 'ignore',
  });
  return { size: () => statSync(output).size };
}

/** Makes a file of `mib` MiB in the guest and serves it. @returns its checksum */
async function serve(guest: GuestConsole, mib: number): Promise<string> {
  await guest.command(`dd if=/dev/urandom of=/tmp/www/file bs=1048576 count=${mib} 2>/dev/null`);
  await guest.command('httpd -p 80 -h /tmp/www');
  return (await guest.command('sha256sum /tmp/www/file', 120_000)).trim().split(/\s+/)[0]!;
}

const sumOf = (path: string): string => sh(`sha256sum ${path}`).split(/\s+/)[0]!;
const download = 'busybox wget -q -O - http://10.9.0.2/file';

/** Kills host A's process and waits for host B. */
async function killPrimary({ primary, standby }: Pair): Promise<void> {
  primary.signal('SIGKILL');
  await until('host B runs the guest', 60_000, () => standby.stderr.includes('runs here now'));
}

/** Lengths of the ARP announcements of the guest's address that the card on host B sent (pcap: 24 bytes, then 16 and the frame each). */
function announcements(): number[] {
  const file = readFileSync(capture);
  const lengths: number[] = [];
  for (let at = 24; at + 16 <= file.length; at += 16 + file.readUInt32LE(at + 8)) {
    const frame = file.subarray(at + 16, at + 16 + file.readUInt32LE(at + 8));
    const text = frame.subarray(0, 42).toString('hex');
    if (/^f{12}.{12}08060001080006040001.{12}0a090002.{12}0a090002$/.test(text)) {
      lengths.push(frame.length);
    }
  }
  return lengths;
}

describe('two hosts', { timeout: 360_000 + downloadMs(downloadMib) }, () => {
  it('keep a download and every acknowledged write (virtio-net, 2 vCPUs)', async () => {
    const primary = await bootedGuest('shell', 2, 'virtio');
    const sum = await serve(primary, virtioMib);
    const pair = await protect(primary);
    // The guest appends a line, makes it durable, and only then tells the client.
    inClient('tail -f /dev/null | busybox nc -l -p 9001', '/tmp/acks');
    pair.primary.type(
      '(i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i >>/mnt/journal; sync /mnt/journal; echo $i; done) | nc 10.9.0.1 9001 &\n',
    );
    const file = inClient(download, '/tmp/file');
    await until(
      'a part is there',
      downloadMs(virtioMib),
      () => file.size() > (virtioMib / 5) * 2 ** 20,
    );
    const acks = (): number[] =>
      readFileSync('/tmp/acks', 'utf8').split('\n').filter(Boolean).map(Number);
    await until('some writes are acknowledged', 60_000, () => acks().length > 5);
    const before = acks().length;
    await killPrimary(pair);
    await until(
      'all of it is there',
      downloadMs(virtioMib),
      () => file.size() >= virtioMib * 2 ** 20,
    );
    expect(sumOf('/tmp/file')).toBe(sum);
    await until('more writes are acknowledged', 60_000, () => acks().length > before + 10);
    const { standby } = pair;
    standby.type('\n');
    await standby.command('kill %1; sleep 1; umount /mnt', 60_000).catch(() => '');
    standby.type('poweroff -f\n');
    expect(await standby.ended(120_000)).toBe(0);
    // The guest's driver was asked to, and did it itself: the host would have padded its frames.
    expect(announcements().filter((bytes) => bytes === 42).length).toBeGreaterThan(0);
    sh(`e2fsck -p ${disk} || true; e2fsck -fn ${disk}`);
    const journal = sh(`debugfs -R 'cat journal' ${disk} 2>/dev/null`).split('\n');
    const last = acks().filter(Number.isInteger).at(-1)!;
    for (let i = 1; i <= last; i++) expect(journal[i - 1]).toBe(`line ${i}`);
    process.stdout.write(`lab: ${last} acknowledged writes, ${before} of them before the kill\n`);
  });

  it('keep a download (e1000, 4 vCPUs), with 10 ms of delay between them', async () => {
    const primary = await bootedGuest('e1000', 4, 'e1000');
    const sum = await serve(primary, e1000Mib);
    const pair = await protect(primary);
    // With one epoch per round trip the delay would add half a minute to this.
    await primary.command('dd if=/tmp/www/file of=/tmp/www/piece bs=65536 count=6 2>/dev/null');
    const timed = async (): Promise<number> => {
      const begin = performance.now();
      const piece = inClient(download.replace('file', 'piece'), '/tmp/piece');
      await until('all of it is there', 120_000, () => piece.size() >= 6 * 65536);
      return performance.now() - begin;
    };
    const near = await timed();
    for (const host of hosts) sh(`tc -n host-${host} qdisc add dev ft0 root netem delay 5ms`);
    const far = await timed();
    process.stdout.write(
      `lab: 384 KiB in ${near.toFixed(0)} ms, with 10 ms of delay ${far.toFixed(0)} ms\n`,
    );
    // Not a time that is judged, only far from one epoch per round trip for every segment.
    expect(far).toBeLessThan(10 * near + 60_000);
    const file = inClient(download, '/tmp/file');
    await until(
      'a part is there',
      downloadMs(e1000Mib),
      () => file.size() > (e1000Mib / 4) * 2 ** 20,
    );
    await killPrimary(pair);
    await until(
      'all of it is there',
      downloadMs(e1000Mib),
      () => file.size() >= e1000Mib * 2 ** 20,
    );
    expect(sumOf('/tmp/file')).toBe(sum);
    pair.standby.type('\n');
    pair.standby.type('poweroff -f\n');
    expect(await pair.standby.ended(120_000)).toBe(0);
    // The host did it for a driver that cannot be asked.
    expect(announcements().filter((bytes) => bytes === 60).length).toBeGreaterThan(0);
  });
});
