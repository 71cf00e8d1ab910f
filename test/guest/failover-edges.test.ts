// What a pair of hosts does at the edges: ends, resets, refusals, strangers, operators. On /dev/kvm, two processes on loopback.
import { randomBytes } from 'node:crypto';
import { statSync, truncateSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { Prng } from '../../src/base/prng.ts';
import { askControl } from '../../src/monitor/control-server.ts';
import { DemoClient } from '../failover/client.ts';
import { Pair, type PairOptions, SETTLE_TIMEOUT_MS, sleep, until } from '../failover/pair.ts';
import { verify } from '../failover/verify.ts';

const open: { pair: Pair; client: DemoClient | undefined }[] = [];
afterEach(async () => {
  for (const { pair, client } of open.splice(0)) {
    client?.stop();
    await pair.end();
    pair.close();
  }
});

function make(options: PairOptions = {}): Pair {
  const pair = new Pair(options);
  open.push({ pair, client: undefined });
  return pair;
}

async function start(options: PairOptions = {}): Promise<Pair> {
  const pair = make(options);
  await pair.startStandby();
  pair.startPrimary();
  return pair;
}

function client(pair: Pair): DemoClient {
  let made: DemoClient | undefined;
  const send = pair.net.plug('client', (frame) => made?.receive(frame));
  made = new DemoClient(send);
  open.find((entry) => entry.pair === pair)!.client = made;
  made.start();
  return made;
}

async function answers(who: DemoClient, count = 10): Promise<void> {
  const before = who.replies.length;
  await until('the guest answers', SETTLE_TIMEOUT_MS, () => who.replies.length > before + count);
}

const taken = (pair: Pair): Promise<void> =>
  until('the standby has taken over', SETTLE_TIMEOUT_MS, () => pair.tookOver());

describe('the end of a protected guest', { timeout: 120_000 }, () => {
  it('ends both sides with status 0 when the guest switches itself off', async () => {
    const pair = await start({ append: 'period=50 ticks=60' });
    await pair.protected();
    expect([await pair.primary.exit(), await pair.standby.exit()]).toEqual([0, 0]);
    expect(pair.tookOver()).toBe(false);
  });

  it('ends both sides when an operator ends the guest', async () => {
    const pair = await start();
    await pair.protected();
    await pair.ask('a', 'quit');
    expect([await pair.primary.exit(), await pair.standby.exit()]).toEqual([0, 0]);
    expect(pair.tookOver()).toBe(false);
  });

  it('ends both sides when an operator saves the guest', async () => {
    const pair = await start();
    await pair.protected();
    const file = pair.path('saved');
    await askControl(pair.path('a.sock'), { command: 'save', file });
    expect([await pair.primary.exit(), await pair.standby.exit()]).toEqual([0, 0]);
    expect(pair.tookOver()).toBe(false);
    expect(statSync(file).size).toBeGreaterThan(0);
  });

  it('hands the guest over at SIGTERM', async () => {
    const pair = await start({ cpus: 2 });
    const who = client(pair);
    await pair.protected();
    await answers(who);
    pair.primary.signal('SIGTERM');
    expect(await pair.primary.exit()).toBe(0);
    await taken(pair);
    await answers(who);
    expect(verify(who.replies, pair.disk)).toMatchObject({ lost: 0, complaints: [] });
    // On the survivor the first SIGTERM is the power button again, which the demo guest obeys or not; quit ends it.
    await pair.ask('b', 'quit');
    expect(await pair.standby.exit()).toBe(0);
  });

  it('leaves the guest alone when the standby is ended', async () => {
    const pair = await start();
    const who = client(pair);
    await pair.protected();
    pair.standby.signal('SIGTERM');
    expect(await pair.standby.exit()).toBe(0);
    await until('alone', SETTLE_TIMEOUT_MS, async () => (await pair.phase()) === 'alone');
    await answers(who);
  });
});

describe('resets', { timeout: 120_000 }, () => {
  for (const model of ['virtio', 'e1000'] as const) {
    it(`stay inside the stream, and the survivor can reboot (${model})`, async () => {
      const pair = await start({ model });
      const who = client(pair);
      await pair.protected();
      await answers(who);
      const boots = (): number => new Set(who.replies.map((reply) => reply.bootId)).size;
      await pair.ask('a', 'reset');
      await until('it has rebooted', SETTLE_TIMEOUT_MS, () => boots() === 2);
      await answers(who);
      expect(await pair.phase()).toBe('protected');
      pair.primary.signal('SIGKILL');
      await taken(pair);
      await answers(who);
      expect(boots()).toBe(2);
      await pair.ask('b', 'reset');
      await until('it has rebooted', SETTLE_TIMEOUT_MS, () => boots() === 3);
      await answers(who);
      expect(verify(who.replies, pair.disk)).toMatchObject({ lost: 0, complaints: [] });
    });
  }

  it('survive a kill right behind them', async () => {
    const pair = await start();
    const who = client(pair);
    await pair.protected();
    await answers(who);
    await pair.ask('a', 'reset');
    await sleep(new Prng(Date.now() % 1e6).below(60));
    pair.primary.signal('SIGKILL');
    await taken(pair);
    await answers(who);
    expect(verify(who.replies, pair.disk)).toMatchObject({ lost: 0, complaints: [] });
  });
});

describe('operators', { timeout: 120_000 }, () => {
  it('pause a protected guest, and checkpoints do not let it go on', async () => {
    const pair = await start();
    const who = client(pair);
    await pair.protected();
    await answers(who);
    await pair.ask('a', 'pause');
    await sleep(500);
    const before = who.replies.length;
    await sleep(700);
    expect(who.replies.length).toBe(before);
    expect(await pair.phase()).toBe('protected');
    await pair.ask('a', 'resume');
    await answers(who);
  });

  it('order the takeover where there is no arbiter', async () => {
    const pair = await start({ arbiter: 'none' });
    const who = client(pair);
    await pair.protected();
    await answers(who);
    pair.primary.signal('SIGKILL');
    await sleep(1000);
    expect(pair.tookOver()).toBe(false);
    expect(await pair.ask('b', 'takeover')).toBeDefined();
    await taken(pair);
    await answers(who);
    expect(verify(who.replies, pair.disk)).toMatchObject({ lost: 0, complaints: [] });
  });

  it('order it too early: an old primary that comes back stops itself', async () => {
    const pair = await start({ arbiter: 'none', bare: true });
    await pair.protected();
    pair.primary.signal('SIGSTOP');
    await until('the takeover is taken', SETTLE_TIMEOUT_MS, async () => {
      await pair.ask('b', 'takeover');
      return pair.tookOver();
    });
    pair.primary.signal('SIGCONT');
    expect(await pair.primary.exit()).toBe(1);
    expect(pair.primary.log).toMatch(/generation 2 of this guest runs/);
  });

  it('cannot let both sides go on without an arbiter', async () => {
    const pair = await start({
      arbiter: 'none',
      primaryArgs: ['--ft-on-peer-loss', 'continue'],
      standbyArgs: ['--on-peer-loss', 'takeover'],
    });
    await pair.primary.said(/refuses this guest/);
    expect(await pair.phase()).not.toBe('protected');
    await sleep(200);
    pair.primary.signal('SIGKILL');
    await sleep(500);
    expect(pair.tookOver()).toBe(false);
  });
});

describe('what does not fit', { timeout: 120_000 }, () => {
  it('is refused at once, said on both sides, and tried again with a better standby', async () => {
    const parts: string[] = [];
    const pair = make({ standbyParts: parts });
    await pair.startStandby();
    pair.startPrimary();
    const who = client(pair);
    await pair.primary.said(/refuses this guest: .*disk 'disk0' has no counterpart/);
    await pair.standby.said(/disk 'disk0' has no counterpart/);
    await answers(who);
    // Another size.
    pair.standby.signal('SIGTERM');
    await pair.standby.exit();
    const small = pair.path('small.img');
    writeFileSync(small, '');
    truncateSync(small, 2 ** 20);
    const net = ['--net', `net0=stream=${pair.path('net-b')}`];
    parts.push('--disk', `disk0=${small}`, ...net);
    await pair.startStandby();
    await pair.primary.said(/refuses this guest: .*1048576 bytes here and 16777216/);
    // The right one.
    pair.standby.signal('SIGTERM');
    await pair.standby.exit();
    parts.splice(0, parts.length, '--disk', `disk0=${pair.disk}`, ...net);
    await pair.startStandby();
    await pair.protected();
    await answers(who);
  });

  it('a wrong key: nothing is protected, the guest runs on', async () => {
    const pair = make();
    for (const side of ['a', 'b']) {
      writeFileSync(pair.path(`key-${side}`), randomBytes(32).toString('hex'), { mode: 0o600 });
    }
    const other = new Pair({
      primaryArgs: ['--ft-key', pair.path('key-a')],
      standbyArgs: ['--ft-key', pair.path('key-b')],
    });
    open.push({ pair: other, client: undefined });
    await other.startStandby();
    other.startPrimary();
    const who = client(other);
    await answers(who);
    await other.primary.said(/cannot be reached/);
    await other.standby.said(/was turned away/);
    expect(await other.phase()).not.toBe('protected');
  });

  it('the right key protects', async () => {
    const pair = make();
    const key = pair.path('key');
    writeFileSync(key, randomBytes(32).toString('hex'), { mode: 0o600 });
    const args = { primaryArgs: ['--ft-key', key], standbyArgs: ['--ft-key', key] };
    const keyed = await start(args);
    const who = client(keyed);
    await keyed.protected();
    await answers(who);
    keyed.primary.signal('SIGKILL');
    await taken(keyed);
    await answers(who);
    expect(verify(who.replies, keyed.disk)).toMatchObject({ lost: 0, complaints: [] });
  });

  it('a peer that is no standby', async () => {
    const pair = make();
    await pair.startStandby();
    const other = createServer((socket) => {
      socket.on('error', () => {});
      socket.end('HTTP/1.1 400 Bad Request\r\n\r\n');
    });
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
    const address = other.address();
    pair.proxy.port = typeof address === 'object' && address !== null ? address.port : 0;
    pair.startPrimary();
    const who = client(pair);
    await pair.primary.said(/it is no tsvmm standby/);
    await answers(who);
    other.close();
  });

  it('garbage at the port of a standby: it keeps protecting', async () => {
    const pair = await start();
    const who = client(pair);
    await pair.protected();
    const port = Number(/standing by on 127\.0\.0\.1:(\d+)/.exec(pair.standby.log)![1]);
    const random = new Prng(42);
    const greeting = Buffer.from('TSVMMINT');
    for (let i = 0; i < 200; i++) {
      const socket = connect(port, '127.0.0.1');
      socket.on('error', () => {});
      const bytes = randomBytes(random.between(1, 5000));
      // A part of them gets as far as the introduction is read, or stays silent.
      const kind = random.below(8);
      if (kind === 0) greeting.copy(bytes);
      else if (kind === 1) bytes.set(greeting.subarray(0, Math.min(4, bytes.length)));
      if (kind !== 2) socket.write(bytes);
      setTimeout(() => socket.destroy(), random.below(300));
      await sleep(10);
    }
    await until(
      'it is protected (again)',
      SETTLE_TIMEOUT_MS,
      async () => (await pair.phase()) === 'protected',
    );
    await answers(who);
    expect(pair.standby.ended).toBe(false);
    expect(pair.tookOver()).toBe(false);
    pair.primary.signal('SIGKILL');
    await taken(pair);
    await answers(who);
    expect(verify(who.replies, pair.disk)).toMatchObject({ lost: 0, complaints: [] });
  });
});
