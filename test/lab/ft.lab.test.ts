// Replication of stock Linux guests between two hosts (two-hosts.ts) that share one disk on the scratch file system. Host A's
// process is killed with -9 in the middle of everything.
import { readFileSync, rmSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import type { GuestConsole } from './guest-console.ts';
import type { ImageName } from './images.ts';
import { CLIENT_ADDRESS, GUEST_ADDRESS, type ProtectedGuest, sh, TwoHosts } from './two-hosts.ts';

const disk = '/scratch/ft-disk.img';
const capture = '/tmp/ft-b.pcap';
/** Sizes of the downloads; `npm run soak -- --lab --download MIB` asks for larger ones. */
const downloadMib = Number(process.env.TSVMM_LAB_DOWNLOAD_MIB ?? 0);
const virtioMib = downloadMib || 8;
const e1000Mib = downloadMib || 2;
/** The lab carries at least this much for a protected guest, mostly several times of it. */
const downloadMs = (mib: number): number => 150_000 + mib * 6000;

let hosts: TwoHosts;
afterEach(async () => {
  await hosts.close();
  rmSync(disk, { force: true });
});

/** Boots a guest on host A, with its disk mounted. */
async function bootedGuest(
  image: ImageName,
  cpus: number,
  model: 'virtio' | 'e1000',
): Promise<GuestConsole> {
  hosts = new TwoHosts();
  sh(`truncate -s 64M ${disk}; mkfs.ext4 -q -F ${disk}`);
  const memory = downloadMib > 32 ? '640M' : '256M';
  const primary = await hosts.boot({ image, cpus, model, memory, disks: [disk] });
  await primary.command('mkdir -p /mnt /tmp/www; mount -t ext4 /dev/vda /mnt');
  return primary;
}

const protect = (primary: GuestConsole): Promise<ProtectedGuest> =>
  hosts.protect(primary, [`disk0=${disk}`], capture);

/** Makes a file of `mib` MiB in the guest and serves it. @returns its checksum */
async function serve(guest: GuestConsole, mib: number): Promise<string> {
  await guest.command(`dd if=/dev/urandom of=/tmp/www/file bs=1048576 count=${mib} 2>/dev/null`);
  await guest.command('httpd -p 80 -h /tmp/www');
  return (await guest.command('sha256sum /tmp/www/file', 120_000)).trim().split(/\s+/)[0]!;
}

const sumOf = (path: string): string => sh(`sha256sum ${path}`).split(/\s+/)[0]!;
const download = `busybox wget -q -O - http://${GUEST_ADDRESS}/file`;

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
    hosts.inClient('tail -f /dev/null | busybox nc -l -p 9001', '/tmp/acks');
    pair.primary.type(
      `(i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i >>/mnt/journal; sync /mnt/journal; echo $i; done) | nc ${CLIENT_ADDRESS} 9001 &\n`,
    );
    const file = hosts.inClient(download, '/tmp/file');
    await hosts.until(
      'a part is there',
      downloadMs(virtioMib),
      () => file.size() > (virtioMib / 5) * 2 ** 20,
    );
    const acks = (): number[] =>
      readFileSync('/tmp/acks', 'utf8').split('\n').filter(Boolean).map(Number);
    await hosts.until('some writes are acknowledged', 60_000, () => acks().length > 5);
    const before = acks().length;
    await hosts.killPrimary(pair);
    await hosts.until(
      'all of it is there',
      downloadMs(virtioMib),
      () => file.size() >= virtioMib * 2 ** 20,
    );
    expect(sumOf('/tmp/file')).toBe(sum);
    await hosts.until('more writes are acknowledged', 60_000, () => acks().length > before + 10);
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
      const piece = hosts.inClient(download.replace('file', 'piece'), '/tmp/piece');
      await hosts.until('all of it is there', 120_000, () => piece.size() >= 6 * 65536);
      return performance.now() - begin;
    };
    const near = await timed();
    hosts.delayLink(5);
    const far = await timed();
    process.stdout.write(
      `lab: 384 KiB in ${near.toFixed(0)} ms, with 10 ms of delay ${far.toFixed(0)} ms\n`,
    );
    // Not a time that is judged, only far from one epoch per round trip for every segment.
    expect(far).toBeLessThan(10 * near + 60_000);
    const file = hosts.inClient(download, '/tmp/file');
    await hosts.until(
      'a part is there',
      downloadMs(e1000Mib),
      () => file.size() > (e1000Mib / 4) * 2 ** 20,
    );
    await hosts.killPrimary(pair);
    await hosts.until(
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
