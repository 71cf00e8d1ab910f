/**
 * Disks and networks under drivers on this machine's KVM: the project's guests with virtio-blk and both network cards, a
 * boot sector that SeaBIOS loads through its own virtio-blk driver, and iPXE's option ROMs.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { DemoClient } from '../failover/client.ts';
import { Switch } from '../failover/switch.ts';
import { cleanUp, cliPath, scratchFolder, start, tsvmm } from './cli.ts';
import { guestPath, until } from './machine-guest.ts';

if (!existsSync(cliPath)) throw new Error(`${cliPath} is missing: run npm run build:ts first`);

const scratch = scratchFolder('devices-boot');
afterEach(cleanUp);
afterAll(() => scratch.remove());

const slowMs = 120_000;

function diskOf(name: string, bytes: number, content: Uint8Array = new Uint8Array(0)): string {
  const path = join(scratch.path, name);
  writeFileSync(path, content);
  truncateSync(path, bytes);
  return path;
}

function guestArgs(guest: string, append: string, ...more: string[]): string[] {
  const machine = ['--memory', '32M', '--no-reboot'];
  return ['run', '--kernel', guestPath(guest), '--append', append, ...machine, ...more];
}

/** A frame of the net guest's own type with a number in it. */
function numbered(number: bigint): Uint8Array {
  const frame = new Uint8Array(60).fill(0xff, 0, 6);
  frame.set([2, 0, 0, 0, 0, 9], 6);
  const view = new DataView(frame.buffer);
  view.setUint16(12, 0x88b5);
  view.setBigUint64(14, number, true);
  return frame;
}

describe('virtio-blk under a guest', () => {
  it.each([
    'op=verify size=4K depth=1 count=50',
    'op=verify size=512 depth=32 count=300',
    'op=verify size=64K depth=4 count=60 wait=poll',
    'op=write size=4K depth=8 count=200 flush=10',
    'op=read size=16K depth=8 count=200 order=seq',
  ])(
    '%s',
    async (options) => {
      for (const cache of ['none', 'writeback']) {
        const disk = diskOf('blk.img', 2 ** 24);
        const { ending, stdout } = await tsvmm(
          guestArgs('blk', `${options} exit=0`, '--disk', `${disk},cache=${cache}`),
        );
        expect(ending, stdout).toBe(1);
        expect(stdout).toMatch(/blk: 32768 sectors, writable, cache, ready/);
        expect(stdout).toMatch(
          options.includes('verify') ? /bytes verified\n/ : /bench: blk .*iops=\d/,
        );
      }
    },
    slowMs,
  );
});

describe.each(['virtio', 'e1000'])('%s under a guest', (model) => {
  async function withNet(
    append: string,
    use: (net: Switch, says: (pattern: RegExp) => Promise<void>) => Promise<void>,
    deliver: (frame: Uint8Array, net: Switch) => void = () => {},
  ): Promise<{ ending: number | string; stdout: string }> {
    const net = new Switch();
    const path = join(scratch.path, 'net.sock');
    await net.listen(path);
    net.plug('watch', (frame) => deliver(frame, net));
    try {
      const cli = start(
        guestArgs('net', `${append} exit=0`, '--net', `stream=${path},model=${model}`),
      );
      await use(net, (pattern) => cli.says(pattern, 60_000));
      return { ending: await cli.ended, stdout: cli.stdout };
    } finally {
      net.close();
    }
  }

  it(
    'sends every frame once and in order',
    async () => {
      const seen: bigint[] = [];
      const { ending, stdout } = await withNet(
        'mode=tx size=200 count=400 batch=16',
        async () => {},
        (frame) => seen.push(new DataView(frame.buffer, frame.byteOffset).getBigUint64(14, true)),
      );
      expect(ending, stdout).toBe(1);
      await until(() => seen.length >= 400, 'all frames to arrive');
      expect(seen).toEqual(Array.from({ length: 400 }, (_, i) => BigInt(i)));
    },
    slowMs,
  );

  it(
    'takes frames at the pace of the guest',
    async () => {
      const { ending, stdout } = await withNet('mode=rx idle=20000', async (net, says) => {
        await says(/net: ready/);
        const send = net.plug('source', () => {});
        for (let i = 0n; i < 300n; i++) send(numbered(i));
        send(numbered(2n ** 64n - 1n));
      });
      expect(ending, stdout).toBe(1);
      expect(stdout).toMatch(/ frames=300 .* missing=0 /);
    },
    slowMs,
  );

  it(
    'answers a client, and journals on a disk',
    async () => {
      const net = new Switch();
      const path = join(scratch.path, 'demo.sock');
      await net.listen(path);
      const disk = diskOf('journal.img', 2 ** 20);
      const cli = start(
        guestArgs(
          'demo',
          'period=100 quiet',
          '--net',
          `stream=${path},model=${model}`,
          '--disk',
          disk,
        ),
      );
      let client: DemoClient | undefined;
      const send = net.plug('client', (frame) => client?.receive(frame));
      client = new DemoClient(send);
      client.start();
      await until(() => client.replies.length >= 40, 'replies', 60_000);
      client.finish();
      await until(() => client.unanswered === 0, 'the last replies', 60_000);
      client.stop();
      net.close();
      cli.kill('SIGHUP');
      await cli.ended;
      expect(client.oddities).toEqual([]);
      const journal = readFileSync(disk);
      for (const { number, count, sequence, ok } of client.replies) {
        expect(ok).toBe(true);
        const record = new DataView(journal.buffer, journal.byteOffset + (sequence % 2048) * 512);
        expect(record.getUint32(0, true)).toBe(0x4c4e524a);
        expect(Number(record.getBigUint64(16, true))).toBe(number);
        expect(Number(record.getBigUint64(24, true))).toBe(count);
      }
    },
    slowMs,
  );
});

/** Prints on COM1, then ends through the debug-exit port with 5. */
const bootSector = `
.code16
.globl _start
_start:
  xor %ax, %ax
  mov %ax, %ds
  mov $text + 0x7c00, %si
next:
  lodsb
  test %al, %al
  jz end
  mov $0x3f8, %dx
  out %al, %dx
  jmp next
end:
  mov $0xf4, %dx
  mov $5, %al
  out %al, %dx
stop:
  hlt
  jmp stop
text: .asciz "\\r\\nthe boot sector runs\\r\\n"
.org 510
.word 0xaa55
`;

function assembled(): Uint8Array {
  const at = (name: string): string => join(scratch.path, name);
  writeFileSync(at('boot.s'), bootSector);
  for (const [program, ...args] of [
    ['gcc', '-m32', '-c', at('boot.s'), '-o', at('boot.o')],
    ['objcopy', '-O', 'binary', '-j', '.text', at('boot.o'), at('boot.bin')],
  ] as const) {
    const { status, stderr } = spawnSync(program, args, { encoding: 'utf8' });
    if (status !== 0) throw new Error(`${program}: ${stderr}`);
  }
  return readFileSync(at('boot.bin'));
}

const bios = existsSync('/usr/share/seabios/bios-256k.bin');
if (!bios) process.stdout.write('skipped: booting by SeaBIOS needs the package seabios\n');
const roms = existsSync('/usr/lib/ipxe/qemu/efi-virtio.rom');
if (!roms) process.stdout.write('skipped: booting by iPXE needs the package ipxe-qemu\n');

describe.skipIf(!bios)('SeaBIOS', () => {
  it('loads a boot sector from a virtio-blk disk', async () => {
    const disk = diskOf('boot.img', 2 ** 20, assembled());
    const machine = ['run', '--memory', '32M', '--no-reboot', '--disk', disk];
    const { ending, stdout } = await tsvmm(machine);
    expect(stdout).toContain('Booting from Hard Disk');
    expect(stdout).toContain('boot sector runs');
    expect(ending).toBe(11);
  }, 240_000);

  // A KVM that emulates ring 0 does not return from interrupts in 32-bit mode, so there they end soon after.
  it.skipIf(!roms).each(['virtio', 'e1000'])(
    "starts iPXE's ROM of %s",
    async (model) => {
      const cli = start([
        'run',
        '--boot',
        'net',
        '--memory',
        '64M',
        '--net',
        `none,model=${model}`,
      ]);
      await cli.says(/iPXE \(PCI .*\) starting execution|Press Ctrl-B to configure iPXE/, 200_000);
      expect(cli.stdout).toMatch(/iPXE \(http:\/\/ipxe\.org\) 00:0\d\.0/);
    },
    240_000,
  );
});
