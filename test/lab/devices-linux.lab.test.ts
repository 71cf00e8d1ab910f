// Debian's own virtio_blk, virtio_net and e1000 drivers on tsvmm's devices: what they show, file systems that outlast a
// reboot, both networks under load, and what happens when a cable, an interface, room on a disk or an NBD server goes
// away and comes back. One guest serves several tests, since a start costs more than most of them.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, existsSync, openSync, rmSync, truncateSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { GuestConsole } from './guest-console.ts';
import type { GuestImage } from './guest-image.ts';
import { type ImageName, image } from './images.ts';
import { findProgram, LabError, repositoryRoot } from './tools.ts';

const cli = join(repositoryRoot(), 'dist/src/cli/main.js');
const append = 'console=ttyS0 panic=-1 quiet net.ifnames=0';
const bootMs = 120_000;
const scratch = '/scratch/devices';

function sh(script: string): string {
  return execFileSync('sh', ['-ec', script], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  }).trim();
}

/** The guest, or undefined with the reason printed. */
function imageOrSkip(name: ImageName): GuestImage | undefined {
  try {
    return image(name);
  } catch (error) {
    if (!(error instanceof LabError)) throw error;
    process.stdout.write(`skipped: tests with the guest \`${name}\`: ${error.message}\n`);
    return undefined;
  }
}

function makeFile(name: string, megabytes: number): string {
  const path = join(scratch, name);
  closeSync(openSync(path, 'w'));
  truncateSync(path, megabytes * 2 ** 20);
  return path;
}

function start({ kernel, initrd }: GuestImage, ...more: string[]): GuestConsole {
  const args = [cli, 'run', '--kernel', kernel, '--initrd', initrd, '--append', append, ...more];
  return new GuestConsole(process.execPath, args);
}

/** Reads a connection to its end. (busybox's nc leaves as soon as the other side has no more to say.) */
function md5From(host: string, port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const sum = createHash('md5');
    const socket = connect({ host, port });
    socket.on('data', (bytes) => sum.update(bytes));
    socket.on('end', () => resolve(sum.digest('hex')));
    socket.on('error', reject);
    socket.setTimeout(60_000, () => socket.destroy(new Error('nothing more came for a minute')));
  });
}

async function until(what: string, check: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + 120_000;
  while (!(await check())) {
    if (Date.now() > end) throw new Error(`it did not come to pass: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

beforeAll(() => sh(`rm -rf ${scratch}; mkdir -p ${scratch}`));
afterAll(() => sh(`umount ${scratch}/small 2>/dev/null || true; rm -rf ${scratch}`));

const tools = imageOrSkip('devices');
describe.skipIf(tools === undefined)('two disks and two network cards with stock drivers', () => {
  let guest: GuestConsole;
  // Cards are named in the order in which their drivers are loaded: e1000 comes first in the image.
  const cards = [
    {
      name: 'eth1',
      tap: 'devtap0',
      mac: '52:54:00:aa:00:01',
      net: '10.81.0',
      driver: 'virtio_net',
    },
    { name: 'eth0', tap: 'devtap1', mac: '52:54:00:aa:00:02', net: '10.82.0', driver: 'e1000' },
  ] as const;

  const makeTap = ({ tap, net }: (typeof cards)[number]): string =>
    sh(
      `ip tuntap add dev ${tap} mode tap; ip addr add ${net}.1/24 dev ${tap}; ip link set ${tap} up`,
    );
  const addresses = async (): Promise<void> => {
    for (const { name, net } of cards) {
      await guest.command(`ip addr add ${net}.2/24 dev ${name}; ip link set ${name} up`);
    }
  };
  const carrier = async (name: string): Promise<string> =>
    (await guest.command(`cat /sys/class/net/${name}/carrier`)).trim();

  beforeAll(async () => {
    for (const card of cards) makeTap(card);
    const data = makeFile('data.img', 48);
    const fixed = makeFile('fixed.img', 3);
    guest = start(
      tools!,
      ...['--memory', '256M', '--cpus', '2'],
      ...['--disk', `${data},cache=none,serial=ALPHA-1`],
      ...['--disk', `${fixed},readonly,serial=BETA-2`],
      ...cards.flatMap(({ tap, mac, driver }) => [
        '--net',
        `tap=${tap},mac=${mac},model=${driver === 'e1000' ? 'e1000' : 'virtio'}`,
      ]),
    );
    await guest.expect(/guest# /, bootMs);
    await addresses();
  });
  afterAll(async () => {
    await guest?.kill();
    for (const { tap } of cards) sh(`ip link del ${tap} 2>/dev/null || true`);
  });

  it('shows what was configured', async () => {
    const disks = await guest.command(
      'for d in vda vdb; do cat /sys/block/$d/size /sys/block/$d/ro /sys/block/$d/serial; echo; done',
    );
    expect(disks.split(/\s+/).filter(Boolean)).toEqual(
      [48 * 2048, 0, 'ALPHA-1', 3 * 2048, 1, 'BETA-2'].map(String),
    );
    for (const { name, mac, driver } of cards) {
      const about = await guest.command(
        `cat /sys/class/net/${name}/address /sys/class/net/${name}/mtu; ethtool -i ${name}; ethtool ${name}`,
      );
      expect(about).toContain(`${mac}\n1500\n`);
      expect(about).toContain(`driver: ${driver}\n`);
      expect(about).toContain('Link detected: yes');
    }
    expect(await guest.command('! dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>&1')).toMatch(
      /not permitted|Read-only/,
    );
  });

  it('moves data both ways over both cards', async () => {
    await guest.command('iperf3 -s -D');
    for (const { net, driver } of cards) {
      for (const way of ['-i0', '-R']) {
        // A guest that stands still must not hold the tests' only thread.
        const report = sh(`timeout 40 iperf3 -c ${net}.2 -t 5 ${way} -J`);
        const { end } = JSON.parse(report) as {
          end: { sum_received: { bytes: number; bits_per_second: number } };
        };
        const rate = (end.sum_received.bits_per_second / 8e6).toFixed(2);
        process.stdout.write(
          `${driver} ${way === '-R' ? 'from' : 'to'} the guest: ${rate} MB/s (iperf3, 5 s)\n`,
        );
        expect(end.sum_received.bytes).toBeGreaterThan(0);
      }
    }
    // Intact, which iperf3 does not look at.
    sh(`dd if=/dev/urandom of=${scratch}/blob bs=64k count=16 2>/dev/null`);
    const sum = sh(`md5sum <${scratch}/blob`);
    for (const { net } of cards) {
      const receiver = guest.command('nc -l -p 5000 | tee /tmp/blob | md5sum');
      await until('the listener', () => {
        try {
          sh(`timeout 40 busybox nc ${net}.2 5000 <${scratch}/blob`);
          return true;
        } catch {
          return false;
        }
      });
      expect((await receiver).trim()).toBe(sum);
      const sender = guest.command('nc -l -p 5001 </tmp/blob');
      let back = '';
      await until('the sender', async () => {
        try {
          back = await md5From(`${net}.2`, 5001);
          return true;
        } catch {
          return false;
        }
      });
      await sender;
      expect(`${back}  -`).toBe(sum);
    }
  });

  it('sees the cable go and come, and the interface removed and back', async () => {
    for (const card of cards) {
      const { name, tap, net } = card;
      sh(`ip link set ${tap} down`);
      await until(`${name} without carrier`, async () => (await carrier(name)) === '0');
      sh(`ip link set ${tap} up`);
      await until(`${name} with carrier`, async () => (await carrier(name)) === '1');
      sh(`ip link del ${tap}`);
      await until(`${name} without an interface`, async () => (await carrier(name)) === '0');
      makeTap(card);
      await until(`${name} attached again`, async () => (await carrier(name)) === '1');
      expect(await guest.command(`ping -c 2 -W 20 ${net}.1`)).toMatch(
        / 0% packet loss|[12] packets received/,
      );
    }
  });

  it('keeps a file system over a reboot', async () => {
    await guest.command('mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt', 180_000);
    await guest.command(
      'dd if=/dev/urandom of=/mnt/a bs=64k count=100 && cp /bin/busybox /mnt/b',
      180_000,
    );
    const sums = await guest.command('md5sum /mnt/a /mnt/b');
    await guest.command('umount /mnt && e2fsck -fn /dev/vda', 180_000);
    guest.type('reboot -f\n');
    await guest.expect(/Restarting system/);
    await guest.expect(/guest# /, bootMs);
    await guest.command('e2fsck -fn /dev/vda && mount /dev/vda /mnt', 180_000);
    expect(await guest.command('md5sum /mnt/a /mnt/b')).toBe(sums);
    await guest.command('umount /mnt');
    guest.type('poweroff -f\n');
    expect(await guest.ended()).toBe(0);
    expect(sh(`e2fsck -fn ${scratch}/data.img 2>&1`)).toContain('data.img: ');
  });
});

const fio = imageOrSkip('fio');
const nbdServer = findProgram('qemu-nbd');
if (nbdServer === undefined) process.stdout.write('skipped: disks over NBD need qemu-utils\n');

describe.skipIf(fio === undefined || nbdServer === undefined)(
  'disks that are written at random, and fail',
  () => {
    let guest: GuestConsole;
    let server: ChildProcess | undefined;
    const socket = join(scratch, 'nbd.sock');
    const control = join(scratch, 'control.sock');
    const small = join(scratch, 'small');
    const tsvmm = (command: string): string =>
      sh(`${process.execPath} ${cli} ${command} --control ${control}`);

    async function serve(): Promise<void> {
      rmSync(socket, { force: true });
      const args = ['-f', 'raw', '-t', '-k', socket, join(scratch, 'nbd.img')];
      server = spawn(nbdServer!, args, { stdio: 'inherit' });
      await until('qemu-nbd listens', () => existsSync(socket));
    }

    beforeAll(async () => {
      makeFile('raw.img', 32);
      makeFile('nbd.img', 32);
      makeFile('gone.img', 8);
      sh(`mkdir -p ${small}; mount -t tmpfs -o size=4m tmpfs ${small}`);
      for (const name of ['report.img', 'pause.img']) makeFile(`small/${name}`, 16);
      await serve();
      guest = start(
        fio!,
        ...['--memory', '640M', '--cpus', '2', '--control', control],
        ...['--disk', `${scratch}/raw.img,cache=none`],
        ...['--disk', `nbd+unix:///?socket=${socket}`],
        ...['--disk', `${scratch}/gone.img,cache=writeback`],
        ...['--disk', `${small}/report.img,cache=writeback`],
        ...['--disk', `${small}/pause.img,cache=writeback,on-enospc=pause`],
      );
      await guest.expect(/guest# /, bootMs);
    });
    afterAll(async () => {
      await guest?.kill();
      server?.kill('SIGKILL');
    });

    it.each([
      ['a raw file with direct I/O', 'vda'],
      ['an NBD export', 'vdb'],
    ])('fio verifies what it wrote to %s', async (_name, disk) => {
      const job = `fio --name=v --filename=/dev/${disk} --rw=randwrite --bs=4k --size=3M --iodepth=16`;
      const report = await guest.command(
        `${job} --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --fsync=64 --thread`,
        300_000,
      );
      process.stdout.write(`${disk}:${/ {2}write: .*/.exec(report)?.[0] ?? ''}\n`);
      expect(report).toMatch(/err= 0/);
    });

    it('waits for an NBD server that was killed, and loses nothing', async () => {
      await guest.command('dd if=/dev/urandom of=/tmp/blob bs=64k count=64');
      server?.kill('SIGKILL');
      const written = guest.command('dd if=/tmp/blob of=/dev/vdb bs=64k conv=fsync', 180_000);
      await new Promise((resolve) => setTimeout(resolve, 3000));
      await serve();
      await written;
      await guest.command('echo 3 >/proc/sys/vm/drop_caches');
      const sums = await guest.command(
        'md5sum </tmp/blob; dd if=/dev/vdb bs=64k count=64 2>/dev/null | md5sum',
      );
      const [wanted, found] = sums.trim().split('\n');
      expect(found).toBe(wanted);
    });

    it('keeps a removed file, and reports reads beyond the end of a cut one', async () => {
      truncateSync(join(scratch, 'gone.img'), 1 << 20);
      await guest.command('dd if=/dev/vdc of=/dev/null bs=64k count=1 iflag=direct');
      expect(
        await guest.command(
          '! dd if=/dev/vdc of=/dev/null bs=64k count=1 skip=64 iflag=direct 2>&1',
        ),
      ).toContain('Input/output error');
      rmSync(join(scratch, 'gone.img'));
      await guest.command('dd if=/tmp/blob of=/dev/vdc bs=64k count=8 oflag=direct && sync');
      expect(
        await guest.command('dd if=/dev/vdc bs=64k count=8 iflag=direct 2>/dev/null | md5sum'),
      ).toBe(await guest.command('dd if=/tmp/blob bs=64k count=8 2>/dev/null | md5sum'));
    });

    it('reports a full disk to the guest', async () => {
      const text = await guest.command(
        '! dd if=/dev/zero of=/dev/vdd bs=64k count=128 oflag=direct 2>&1',
      );
      expect(text).toMatch(/No space left|Input\/output error/);
    });

    it('pauses at a full disk, and the write goes on after room was made', async () => {
      const written = guest.command(
        'dd if=/tmp/blob of=/dev/vde bs=64k oflag=direct 2>&1; md5sum </tmp/blob',
        180_000,
      );
      await until('the guest is paused', () => /pause\.img is full/.test(guest.stderr));
      expect(tsvmm('status')).toMatch(/paused/);
      sh(`mount -o remount,size=64m ${small}`);
      tsvmm('resume');
      const wanted = (await written).trim().split('\n').at(-1);
      expect(wanted).toMatch(/^[0-9a-f]{32} {2}-$/);
      expect(sh(`head -c ${64 * 65536} ${small}/pause.img | md5sum`)).toBe(wanted);
    });
  },
);
