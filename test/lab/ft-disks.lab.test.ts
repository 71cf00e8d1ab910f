// Replication of a stock Linux guest between two hosts (two-hosts.ts) that have each a disk of their own. Host A's process is
// killed with -9 while fio and sqlite3 work; what the guest has told a client must be on host B's disks.
import { readFileSync, rmSync, statSync } from 'node:fs';
import { afterEach, expect, it } from 'vitest';
import { askControl } from '../../src/monitor/control-server.ts';
import { findProgram } from './tools.ts';
import { CLIENT_ADDRESS, controlOf, sh, TwoHosts } from './two-hosts.ts';

const MIB = 2 ** 20;
/** The copies of two disks by host: one with a file system, one that fio writes as it is. */
const disks = {
  a: ['/scratch/a-ext4.img', '/scratch/a-raw.img'],
  b: ['/scratch/b-ext4.img', '/scratch/b-raw.img'],
} as const;

const programs = ['fio', 'sqlite3', 'debugfs'].filter((name) => findProgram(name) === undefined);
if (programs.length > 0) {
  process.stdout.write(`skipped: replicated disks in the lab need ${programs.join(', ')}\n`);
}

let hosts: TwoHosts | undefined;
const scratch = ['/scratch/content', '/scratch/db', '/scratch/fsck'];
afterEach(async () => {
  await hosts?.close();
  for (const path of [...disks.a, ...disks.b, ...scratch])
    rmSync(path, { recursive: true, force: true });
});

/** What `tsvmm status --json` of host A says of replication. */
async function figures(): Promise<Record<string, unknown>> {
  const status = await askControl(controlOf('a'), { command: 'status' });
  return status.replication as Record<string, unknown>;
}

/** The checksums of a host's disks. */
const sums = (paths: readonly string[]): string[] =>
  paths.map((path) => sh(`sha256sum ${path}`).split(/\s+/)[0]!);

it.skipIf(programs.length > 0)(
  'two hosts without shared storage keep every acknowledged commit',
  { timeout: 600_000 },
  async () => {
    hosts = new TwoHosts();
    // 10 % of the file system is data.
    sh(`mkdir /scratch/content; dd if=/dev/urandom of=/scratch/content/blob bs=1M count=13 2>/dev/null
    truncate -s 128M ${disks.a[0]}; mkfs.ext4 -q -F -d /scratch/content ${disks.a[0]}
    truncate -s 8M ${disks.a[1]}`);
    const allocated = statSync(disks.a[0]).blocks * 512;
    const primary = await hosts.boot({
      image: 'fio',
      cpus: 2,
      model: 'virtio',
      memory: '512M',
      disks: disks.a.map((path) => `${path},ft=replicate`),
    });
    await primary.command('mkdir -p /mnt; mount -t ext4 /dev/vda /mnt');
    const pair = await hosts.protect(
      primary,
      disks.b.map((path, i) => `disk${i}=${path},ft=replicate`),
      '/tmp/ft-b.pcap',
    );
    const copied = primary.stderr.match(/copying disks[^"\n]*/g)?.at(-1) ?? '';
    const [, amount, unit] = /([\d.]+) (KiB|MiB) sent/.exec(copied) ?? [];
    const sent = Number(amount) * (unit === 'MiB' ? MIB : 1024);
    process.stdout.write(
      `lab: 128 MiB with ${(allocated / MIB).toFixed(1)} MiB of data: ${copied}\n`,
    );
    expect(sent).toBeGreaterThan(13 * MIB);
    expect(sent).toBeLessThan(1.1 * allocated + 2 * MIB);

    // The guest stands still, and everything before is applied.
    await primary.command('cp /mnt/blob /mnt/copy; sync');
    await askControl(controlOf('a'), { command: 'pause' });
    const begun = Number((await figures()).epochs);
    await hosts.until(
      'every write is acknowledged',
      60_000,
      async () => Number((await figures()).ackedEpochs) >= begun + 2,
    );
    expect(sums(disks.b)).toEqual(sums(disks.a));
    await askControl(controlOf('a'), { command: 'resume' });

    hosts.inClient('tail -f /dev/null | busybox nc -l -p 9001', '/tmp/acks');
    await primary.command('sqlite3 /mnt/db "create table t(i integer primary key, x)"');
    const fio =
      'fio --name=v --filename=/dev/vdb --rw=randwrite --bs=4k --size=3M --iodepth=8 --rate=,128k --ioengine=libaio --direct=1 --fsync=32 --verify=crc32c --verify_fatal=1 --thread';
    primary.type(`(${fio} >/tmp/fio.log 2>&1; echo 'fio'-ended-$?) &\n`);
    primary.type(
      `(i=0; while [ $i -lt 400 ]; do i=$((i+1)); sqlite3 /mnt/db "insert into t values($i, hex(randomblob(2000)))" && echo $i; done) | nc ${CLIENT_ADDRESS} 9001 &\n`,
    );
    const acks = (): number[] =>
      readFileSync('/tmp/acks', 'utf8').split('\n').slice(0, -1).map(Number);
    await hosts.until('some commits are acknowledged', 90_000, () => acks().length > 5);
    await new Promise((done) => setTimeout(done, Math.random() * 5000));
    const before = acks().length;
    await hosts.killPrimary(pair);
    expect(primary.text).not.toContain('fio-ended');
    const { standby } = pair;
    await hosts.until('more is acknowledged', 90_000, () => acks().length > before + 10);
    const [, status] = await standby.expect(/fio-ended-(\d+)/, 180_000);
    standby.type('\n');
    await standby.command('kill %2 2>/dev/null; sleep 1; umount /mnt', 60_000).catch(() => '');
    const report = await standby.command('cat /tmp/fio.log');
    expect(report).toMatch(/err= 0/);
    expect(status).toBe('0');
    standby.type('poweroff -f\n');
    expect(await standby.ended(120_000)).toBe(0);

    sh(`e2fsck -p ${disks.b[0]} || true; e2fsck -fn ${disks.b[0]}`);
    sh(`debugfs -R 'dump db /scratch/db' ${disks.b[0]} 2>/dev/null`);
    expect(sh(`sqlite3 /scratch/db 'pragma integrity_check'`).trim()).toBe('ok');
    const kept = new Set(sh(`sqlite3 /scratch/db 'select i from t'`).split('\n').map(Number));
    expect(acks().filter((i) => !kept.has(i))).toEqual([]);
    process.stdout.write(
      `lab: ${acks().length} acknowledged commits, ${before} of them before the kill; fio verified\n`,
    );
  },
);
