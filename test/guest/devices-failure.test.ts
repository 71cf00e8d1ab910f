// What docs/devices.md says about disks and networks that fail, seen from guests on this machine's KVM; and the networks and servers
// that a host without set-up has: passt, qemu-nbd on TCP.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { openNbd } from '../../src/block/nbd.ts';
import { parseNbdUrl } from '../../src/block/nbd-url.ts';
import { DemoClient } from '../failover/client.ts';
import { Switch } from '../failover/switch.ts';
import { FakeNbdServer } from '../support/nbd-server.ts';
import { type Cli, cleanUp, cliPath, scratchFolder, start, tsvmm } from './cli.ts';
import { guestPath, makeMachineWithDisks, plain, sleep, until } from './machine-guest.ts';

if (!existsSync(cliPath)) throw new Error(`${cliPath} is missing: run npm run build:ts first`);

const scratch = scratchFolder('devices-failure');
afterEach(cleanUp);
afterAll(() => scratch.remove());

const DISK_BYTES = 2 ** 22;

function guestArgs(guest: string, append: string, ...more: string[]): string[] {
  const boot = ['--kernel', guestPath(guest), '--append', append];
  return ['run', ...boot, '--memory', '32M', '--no-reboot', ...more];
}

function has(program: string): boolean {
  const found = spawnSync(program, ['--version'], { stdio: 'ignore' }).status === 0;
  if (!found) process.stdout.write(`skipped: ${program} is not installed\n`);
  return found;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

describe('an NBD server that goes away', { timeout: 60_000 }, () => {
  /** A guest whose disk's requests fail after a second instead of a minute. */
  async function guest(append: string, server: FakeNbdServer, socket: string) {
    await server.listen(socket);
    const url = `nbd+unix:///?socket=${socket}`;
    const made = await makeMachineWithDisks('blk', { append }, async ({ memory, log }) => [
      {
        id: 'disk0',
        serial: undefined,
        backend: await openNbd(memory, log, {
          name: url,
          address: parseNbdUrl(url),
          failAfterMs: 1000,
          retryMs: 20,
        }),
      },
    ]);
    made.machine.boot();
    made.machine.start();
    await until(() => made.console.text.includes('ready'), 'the guest to be ready');
    return made;
  }

  it('and comes back in time costs the guest nothing', async () => {
    const server = new FakeNbdServer({ sizeBytes: DISK_BYTES });
    const socket = join(scratch.path, 'back.sock');
    const { machine, console, disks } = await guest('op=verify depth=8 count=900', server, socket);
    for (let i = 0; i < 3; i++) {
      await sleep(20);
      await server.crash();
      await sleep(300);
      await server.listen(socket);
      const before = server.seen.length;
      await until(() => server.seen.length > before, 'requests again');
    }
    expect(await machine.finished).toEqual({ kind: 'power-off' });
    expect(plain(console.text)).toMatch(/900 requests of 4096 bytes verified/);
    machine.dispose();
    await disks[0]!.backend.close();
    await server.crash();
  });

  it('and stays away fails its requests', async () => {
    const server = new FakeNbdServer({ sizeBytes: DISK_BYTES });
    const socket = join(scratch.path, 'away.sock');
    const { machine, console, disks } = await guest(
      'op=read depth=8 count=1000000',
      server,
      socket,
    );
    await server.crash();
    const from = performance.now();
    expect(await machine.finished).toEqual({ kind: 'debug-exit', status: 3 });
    expect(performance.now() - from).toBeGreaterThan(800);
    expect(plain(console.text)).toMatch(/FAIL: request \d+: status 1\n/);
    machine.dispose();
    await disks[0]!.backend.close();
  });
});

describe('a disk', { timeout: 120_000 }, () => {
  it('that another machine uses is refused, with its process named', async () => {
    const disk = join(scratch.path, 'used.img');
    writeFileSync(disk, '');
    truncateSync(disk, DISK_BYTES);
    const first = start(guestArgs('demo', 'period=100', '--disk', disk));
    await first.says(/tick 2/);
    const second = await tsvmm(guestArgs('hello', 'say=never', '--disk', disk));
    expect(second.ending).not.toBe(0);
    expect(second.stdout).not.toContain('never');
    expect(second.stderr).toMatch(
      new RegExp(`disk ${disk} is already in use by .*${first.child.pid}`),
    );
    first.kill('SIGHUP');
    await first.ended;
    const third = await tsvmm(guestArgs('hello', 'say=now', '--disk', disk));
    expect(third.stdout).toContain('now');
  });

  it.skipIf(!has('qemu-nbd')).each(['raw', 'qcow2'])(
    'of qemu-nbd on TCP carries what a guest writes (%s)',
    async (format) => {
      const image = join(scratch.path, `nbd.${format}`);
      execFileSync('qemu-img', ['create', '-q', '-f', format, image, '8M']);
      const port = await freePort();
      const server = spawn(
        'qemu-nbd',
        ['--persistent', '--bind=127.0.0.1', `--port=${port}`, `--format=${format}`, image],
        { stdio: 'ignore' },
      );
      try {
        let last = '';
        for (let tries = 0; tries < 50 && !last.includes('verified'); tries++) {
          const append = 'op=verify size=16K depth=8 count=300 flush=20 exit=0';
          const { stdout } = await tsvmm(
            guestArgs('blk', append, '--disk', `nbd://127.0.0.1:${port}/`),
          );
          last = stdout;
          await sleep(100);
        }
        expect(last).toMatch(/300 requests of 16384 bytes verified/);
      } finally {
        server.kill('SIGTERM');
        await new Promise((resolve) => server.once('exit', resolve));
      }
    },
  );
});

describe.each(['virtio', 'e1000'])('the peer of a stream (%s)', { timeout: 120_000 }, (model) => {
  it('can go and come back', async () => {
    const path = join(scratch.path, `stream-${model}.sock`);
    let client: DemoClient | undefined;
    const plug = async (): Promise<Switch> => {
      const net = new Switch();
      await net.listen(path);
      send = net.plug('client', (frame) => client?.receive(frame));
      return net;
    };
    let send: (frame: Uint8Array) => void = () => {};
    let net = await plug();
    const cli = start(
      guestArgs(
        'demo',
        'period=100',
        '--net',
        `stream=${path},model=${model}`,
        '--log-level',
        'info',
      ),
    );
    client = new DemoClient((frame) => send(frame));
    client.start();
    const { replies } = client;
    await until(() => replies.length > 20, 'replies');
    for (let i = 1; i <= 2; i++) {
      net.close();
      await until(() => count(cli, /: disconnected/g) === i, 'the loss of the peer in the log');
      const ticks = count(cli, /tick/g, 'stdout');
      await until(() => count(cli, /tick/g, 'stdout') > ticks + 3, 'the guest to go on');
      const before = replies.length;
      net = await plug();
      await until(() => replies.length > before + 20, 'replies again', 20_000);
      expect(count(cli, /: connected/g)).toBe(i + 1);
    }
    client.finish();
    await until(() => client.unanswered === 0, 'the last replies');
    client.stop();
    net.close();
    expect(client.oddities).toEqual([]);
    cli.kill('SIGHUP');
    await cli.ended;
  });
});

function count(cli: Cli, what: RegExp, where: 'stdout' | 'stderr' = 'stderr'): number {
  return cli[where].match(what)?.length ?? 0;
}

/** Sends numbered requests to the demo guest behind `port` until one is answered. @returns whether one was */
async function request(port: number): Promise<boolean> {
  const socket = createSocket('udp4');
  let answered = false;
  socket.on('message', (reply) => {
    answered ||= reply.length === 48 && reply.readUInt32LE(0) === 0x7076736d;
  });
  socket.on('error', () => {});
  for (let i = 1; i <= 50 && !answered; i++) {
    const datagram = Buffer.alloc(8);
    datagram.writeBigUInt64LE(BigInt(i));
    socket.send(datagram, port, '127.0.0.1');
    await sleep(100);
  }
  socket.close();
  return answered;
}

describe.skipIf(!has('passt'))('a user network', { timeout: 60_000 }, () => {
  it.each(['virtio', 'e1000'])('leads ports of the host to the guest (%s)', async (model) => {
    const port = await freePort();
    const cli = start(
      guestArgs('demo', 'period=100', '--net', `user,model=${model},udp=${port}:7777`),
    );
    await cli.says(/tick 2/);
    expect(await request(port)).toBe(true);
    cli.kill('SIGHUP');
    await cli.ended;
  });

  it('goes down when passt ends, and the guest goes on', async () => {
    const port = await freePort();
    const cli = start(
      guestArgs('demo', 'period=100', '--net', `user,udp=${port}:7777`, '--log-level', 'info'),
    );
    await cli.says(/tick 2/);
    expect(await request(port)).toBe(true);
    const { pid } = cli.child;
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ');
    const passt = children.map(Number).filter((child) => {
      return readFileSync(`/proc/${child}/comm`, 'utf8').startsWith('passt');
    });
    expect(passt).toHaveLength(1);
    process.kill(passt[0]!, 'SIGKILL');
    await until(() => /passt ended \(SIGKILL\)/.test(cli.stderr), 'word of it in the log');
    expect(cli.stderr).toMatch(/disconnected/);
    const ticks = count(cli, /tick/g, 'stdout');
    await until(() => count(cli, /tick/g, 'stdout') > ticks + 5, 'the guest to go on');
    cli.kill('SIGHUP');
    await cli.ended;
  });
});
