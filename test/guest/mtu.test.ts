// A TAP interface's MTU reaches the guest, and frames of that size pass both ways: on this machine's KVM, in a network namespace.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cliPath, scratchFolder } from './cli.ts';
import { guestPath, until } from './machine-guest.ts';

if (!existsSync(cliPath)) throw new Error(`${cliPath} is missing: run npm run build:ts first`);

const scratch = scratchFolder('mtu');
const NS = `tsvmm-mtu-${process.pid}`;
const HOST_IP = '10.0.2.1';
const GUEST_IP = '10.0.2.15';

const ip = (...args: string[]): boolean => spawnSync('ip', args, { stdio: 'ignore' }).status === 0;
const usable = process.getuid?.() === 0 && existsSync('/dev/net/tun') && ip('netns', 'add', NS);
if (!usable) process.stdout.write('skipped: namespaces and TAP interfaces need root\n');

/** Sends UDP datagrams of `size` bytes to the guest's echo until one comes back whole, then one that ends it. */
const PROBE = `
const [size] = process.argv.slice(1).map(Number);
const socket = require('node:dgram').createSocket('udp4');
const data = Buffer.alloc(size, (i) => i).map((_, i) => i % 251);
let tries = 0;
socket.on('message', (reply) => {
  process.stdout.write(reply.equals(data) ? 'whole' : 'damaged');
  socket.send('end', 9, '${GUEST_IP}', () => process.exit());
});
setInterval(() => {
  if (++tries > 100) process.exit(1);
  socket.send(data, 7, '${GUEST_IP}');
}, 100);
`;

describe.skipIf(!usable)('the MTU of a TAP interface', { timeout: 60_000 }, () => {
  beforeAll(() => {
    for (const command of [
      `-n ${NS} tuntap add dev tap0 mode tap`,
      `-n ${NS} addr add ${HOST_IP}/24 dev tap0`,
      `-n ${NS} link set tap0 up`,
    ]) {
      execFileSync('ip', command.split(' '));
    }
  });
  afterAll(() => {
    ip('netns', 'del', NS);
    scratch.remove();
  });

  it.each([
    [9000, 8900, 9014],
    [1280, 1200, 1294],
    [65521, 8900, 9014],
  ])('%i reaches the guest, and datagrams of %i bytes pass', async (mtu, size, frameMax) => {
    expect(ip('-n', NS, 'link', 'set', 'tap0', 'mtu', String(mtu))).toBe(true);
    const capture = join(scratch.path, `${mtu}.pcap`);
    const guest = spawn(
      'ip',
      [
        ...[
          'netns',
          'exec',
          NS,
          process.execPath,
          cliPath,
          'run',
          '--memory',
          '32M',
          '--no-reboot',
        ],
        ...['--kernel', guestPath('net'), '--append', 'mode=echo offloads exit=0'],
        ...['--net', `tap=tap0,pcap=${capture}`],
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    let text = '';
    guest.stdout.setEncoding('utf8').on('data', (piece: string) => {
      text += piece;
    });
    const ended = new Promise((resolve) => guest.once('exit', resolve));
    try {
      await until(() => text.includes('net: ready'), 'the guest to be ready', 30_000);
      expect(text).toContain(`net: frames of up to ${frameMax} bytes`);
      const probe = ['netns', 'exec', NS, process.execPath, '-e', PROBE, String(size)];
      expect(execFileSync('ip', probe, { encoding: 'utf8', timeout: 30_000 })).toBe('whole');
      expect(await ended).toBe(1);
      // In one frame each way: the datagram with its headers, as Wireshark would show it.
      expect(lengthsOf(capture).filter((bytes) => bytes === size + 42).length).toBeGreaterThan(1);
    } finally {
      guest.kill('SIGKILL');
      await ended;
    }
  });
});

/** Lengths of the frames in a capture file (little-endian, 16-byte record headers behind 24 bytes). */
function lengthsOf(path: string): number[] {
  const file = readFileSync(path);
  const lengths: number[] = [];
  for (let at = 24; at + 16 <= file.length; at += 16 + file.readUInt32LE(at + 8)) {
    lengths.push(file.readUInt32LE(at + 12));
  }
  return lengths;
}
