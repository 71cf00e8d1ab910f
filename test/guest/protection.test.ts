// Protection that comes back: guests that get a standby while they run, several peers, hosts that return, links that are cut between
// hosts that live. On /dev/kvm, processes on loopback.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterEach, describe, expect, it } from 'vitest';
import { Prng } from '../../src/base/prng.ts';
import { askControl } from '../../src/monitor/control-server.ts';
import { DemoClient } from '../failover/client.ts';
import { etcdMissing } from '../failover/etcd-cluster.ts';
import { CLI, Pair, type PairOptions, SETTLE_TIMEOUT_MS, sleep, until } from '../failover/pair.ts';
import { DISKS_OF, PARTITIONS, runPartition } from '../failover/partition.ts';
import { runRoundTrip } from '../failover/round-trip.ts';
import { verify } from '../failover/verify.ts';

const noEtcd = etcdMissing();
const open: { pair: Pair; client: DemoClient }[] = [];
afterEach(async () => {
  for (const { pair, client } of open.splice(0)) {
    client.stop();
    await pair.end();
    pair.close();
  }
});

/** A guest that runs, with a client, and a host b where a standby can be started. */
async function start(options: PairOptions): Promise<{ pair: Pair; client: DemoClient }> {
  const pair = new Pair(options);
  const client = new DemoClient(pair.net.plug('client', (frame) => client.receive(frame)));
  open.push({ pair, client });
  await pair.startStandby();
  pair.startPrimary();
  client.start();
  return { pair, client };
}

async function answers(client: DemoClient, count = 10): Promise<void> {
  const wanted = client.replies.length + count;
  await until('the guest answers', SETTLE_TIMEOUT_MS, () => client.replies.length > wanted);
}

/** Asks the guest on host a to be protected. */
function protect(pair: Pair, fields: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
  return askControl(pair.path('a.sock'), {
    command: 'protect',
    'ft-peer': `127.0.0.1:${pair.proxy.port}`,
    'ft-arbiter': pair.arbiter,
    ...fields,
  });
}

/** Types a command in a folder. @returns what it prints; throws where it fails */
function typeIn(folder: string, args: readonly string[]): Promise<{ stdout: string }> {
  return promisify(execFile)(process.execPath, [CLI, ...args], { cwd: folder });
}

/** Port 1: nobody is there. */
const NOBODY = '127.0.0.1:1';

async function survivesKill(pair: Pair, client: DemoClient): Promise<void> {
  await answers(client);
  pair.primary.signal('SIGKILL');
  await until('the standby has taken over', SETTLE_TIMEOUT_MS, () => pair.tookOver());
  await answers(client);
  expect(verify(client.replies, pair.disk)).toMatchObject({ lost: 0, complaints: [] });
}

describe('a guest that runs', { timeout: 120_000 }, () => {
  for (const model of ['virtio', 'e1000'] as const) {
    it(`is protected while it runs, and survives its host (${model})`, async () => {
      const { pair, client } = await start({ unprotected: true, model, cpus: 2 });
      await answers(client);
      expect(await pair.phase()).toBeUndefined();
      const peer = `127.0.0.1:${pair.proxy.port}`;
      // As it is typed, from the folder where the arbiter's file is.
      const typed = ['protect', '--control', 'a.sock', '--peer', peer, '--arbiter', 'lock:lock'];
      const { stdout } = await typeIn(pair.folder, typed);
      expect(stdout).toBe(`peer: ${peer}\n`);
      expect(await pair.phase()).toBe('protected');
      await expect(protect(pair)).rejects.toThrow(/protected already/);
      await survivesKill(pair, client);
    });
  }

  it('runs on when the standby cannot serve it, and hears why', async () => {
    const parts: string[] = [];
    const { pair, client } = await start({ unprotected: true, standbyParts: parts });
    await answers(client);
    await expect(protect(pair)).rejects.toThrow(
      /no standby protects this guest \(127.*disk 'disk0' has no counterpart on the standby/,
    );
    await answers(client);
    await expect(protect(pair, { 'ft-arbiter': 'none' })).rejects.toThrow(/arbiter is lock:/);
    await expect(protect(pair, { 'ft-timeout': '9s' })).rejects.toThrow(/are fixed/);
    // A standby that has what the guest needs takes the place of the other; nobody has to ask again.
    pair.standby.signal('SIGTERM');
    await pair.standby.exit();
    parts.push('--disk', `disk0=${pair.disk}`, '--net', `net0=stream=${pair.path('net-b')}`);
    await pair.startStandby();
    await pair.protected();
    await survivesKill(pair, client);
  });

  it('runs on when its standby holds the state of another guest', async () => {
    const { pair, client } = await start({ arbiter: 'none' });
    await pair.protected();
    pair.primary.signal('SIGKILL');
    await pair.primary.exit();
    pair.startPrimary();
    await pair.primary.said(/holds the complete state of another guest/);
    await answers(client);
    expect(await pair.phase()).toBe('alone');
  });

  it('refuses requests that make no sense, in one sentence each', async () => {
    const { pair, client } = await start({ unprotected: true });
    await answers(client);
    for (const [fields, sentence] of [
      [{ 'ft-peer': undefined }, /needs --peer/],
      [{ 'ft-peer': 'a:b:c' }, /is no HOST/],
      [{ 'ft-peer': '10.9.9.9:1' }, /needs a key/],
      [{ 'ft-key': '/nowhere/key' }, /cannot be read/],
      [{ 'ft-arbiter': 'oracle' }, /is neither none nor lock/],
      [{ 'ft-policy': 'fast' }, /is none of adaptive, kemari, periodic/],
    ] as const) {
      await expect(protect(pair, fields)).rejects.toThrow(sentence);
    }
    await answers(client);
    expect(await pair.phase()).toBeUndefined();
    await protect(pair);
    await survivesKill(pair, client);
  });

  it('changes its policy while it is protected', async () => {
    const { pair, client } = await start({});
    await pair.protected();
    const set = (settings: Record<string, string>): Promise<unknown> =>
      askControl(pair.path('a.sock'), { command: 'set', settings });
    for (const policy of ['kemari', 'periodic', 'adaptive']) {
      const settings = { 'ft-policy': policy, 'ft-interval': '7ms', 'ft-max-downtime': '50ms' };
      expect(await set(settings)).toMatchObject(settings);
      await answers(client);
      const now = { phase: 'protected', policy, intervalMs: 7, maxDowntimeMs: 50 };
      expect(await pair.figures()).toMatchObject(now);
    }
    await expect(set({ 'ft-interval': '0ms' })).rejects.toThrow(/is not between/);
    await expect(set({ 'ft-timeout': '1s' })).rejects.toThrow(/cannot be set/);
    expect(await pair.figures()).toMatchObject({ policy: 'adaptive', intervalMs: 7 });
    await survivesKill(pair, client);
  });
});

describe('several peers', { timeout: 120_000 }, () => {
  it('the second is used when the first is missing', async () => {
    const { pair, client } = await start({ unprotected: true });
    await answers(client);
    const peers = `${NOBODY},127.0.0.1:${pair.proxy.port}`;
    expect(await protect(pair, { 'ft-peer': peers })).toMatchObject({
      peer: `127.0.0.1:${pair.proxy.port}`,
    });
    expect(pair.primary.log).toMatch(/standby 127.0.0.1:1: cannot be reached: .*; next is/);
    await survivesKill(pair, client);
  });

  it('the next is tried when the one that protected is lost', async () => {
    const { pair, client } = await start({ unprotected: true });
    await pair.startThird();
    await answers(client);
    const ports = [pair.proxy.port, pair.thirdPort];
    await protect(pair, { 'ft-peer': ports.map((port) => `127.0.0.1:${port}`).join() });
    await answers(client);
    pair.standby.signal('SIGKILL');
    await until('the next one protects', SETTLE_TIMEOUT_MS, async () => {
      const figures = await pair.figures();
      return figures?.phase === 'protected' && figures.peer === `127.0.0.1:${ports[1]}`;
    });
    await answers(client);
    pair.primary.signal('SIGKILL');
    await until('the third host has it', SETTLE_TIMEOUT_MS, () => pair.thirdTookOver());
    await answers(client);
    expect(verify(client.replies, pair.disk)).toMatchObject({ lost: 0, complaints: [] });
  });

  it('the next is used when the first refuses, and the first when it can, once the next is lost', async () => {
    const standbyParts: string[] = [];
    const primaryArgs: string[] = [];
    const pair = new Pair({ standbyParts, primaryArgs });
    const client = new DemoClient(pair.net.plug('client', (frame) => client.receive(frame)));
    open.push({ pair, client });
    await pair.startStandby();
    await pair.startThird();
    const third = `127.0.0.1:${pair.thirdPort}`;
    primaryArgs.push('--ft-peer', `127.0.0.1:${pair.proxy.port},${third}`);
    pair.startPrimary();
    client.start();
    await pair.protected();
    expect((await pair.figures())?.peer).toBe(third);
    expect(pair.primary.log).toMatch(/disk 'disk0' has no counterpart on the standby.*; next is/);
    await answers(client);
    // The first is started again as it should have been.
    pair.standby.signal('SIGTERM');
    await pair.standby.exit();
    standbyParts.push('--disk', `disk0=${pair.disk}`, '--net', `net0=stream=${pair.path('net-b')}`);
    await pair.startStandby();
    expect((await pair.figures())?.peer).toBe(third);
    pair.third.signal('SIGKILL');
    await until('the first protects', SETTLE_TIMEOUT_MS, async () => {
      const figures = await pair.figures();
      return figures?.phase === 'protected' && figures.peer !== third;
    });
    await survivesKill(pair, client);
  });

  it('any of them tells an old primary that it is over', async () => {
    const standbyArgs: string[] = [];
    const primaryArgs = ['--ft-on-peer-loss', 'continue'];
    const pair = new Pair({ arbiter: 'none', diskless: true, standbyArgs, primaryArgs });
    const client = new DemoClient(pair.net.plug('client', (frame) => client.receive(frame)));
    open.push({ pair, client });
    await pair.startThird();
    standbyArgs.push('--ft-peer', `127.0.0.1:${pair.thirdPort}`);
    await pair.startStandby();
    primaryArgs.push('--ft-peer', `127.0.0.1:${pair.proxy.port},127.0.0.1:${pair.thirdPort}`);
    pair.startPrimary();
    await pair.protected();
    // An operator who is wrong: the old primary lives and has gone on alone. It cannot reach the survivor itself, but the third
    // host can be reached by both.
    pair.proxy.setDown(true);
    await until('the takeover is taken', SETTLE_TIMEOUT_MS, async () => {
      await pair.ask('b', 'takeover');
      return pair.tookOver();
    });
    expect(await pair.primary.exit()).toBe(1);
    expect(pair.primary.log).toMatch(/generation 2 of this guest runs on another host/);
    await pair.protected('b');
  });

  it('does not fill the log while nobody is there', async () => {
    const { pair, client } = await start({
      unprotected: true,
      primaryArgs: ['--ft-peer', `${NOBODY},127.0.0.1:2`],
    });
    await answers(client);
    await sleep(3000);
    expect(pair.primary.log.match(/cannot be reached/g)?.length).toBe(2);
  });
});

describe('hosts that return', { timeout: 120_000 }, () => {
  const cases = [
    { policy: 'adaptive', model: 'virtio', late: true, rounds: 3 },
    { policy: 'kemari', model: 'e1000', late: false, rounds: 3 },
    { policy: 'periodic', arbiter: 'etcd', disks: 'replicate', late: true, rounds: 2 },
  ] as const;
  for (const [i, options] of cases.entries()) {
    const etcd = 'arbiter' in options;
    const name = `${options.policy}, ${etcd ? 'etcd, replicated disks' : options.model}`;
    it.skipIf(etcd && noEtcd !== undefined)(`take the guest back and forth: ${name}`, async () => {
      const result = await runRoundTrip({ ...options, random: new Prng(2000 + i) });
      expect(result).toMatchObject({ lost: 0, complaints: [], verified: true });
      expect(result.backMs.length).toBe(options.rounds - 1);
    });
  }

  it('cannot start the guest anew while the survivor runs it', async () => {
    const { pair, client } = await start({ roundTrip: true });
    await pair.protected();
    await survivesKill(pair, client);
    pair.startPrimary();
    expect(await pair.primary.exit()).toBe(1);
    expect(pair.primary.log).toMatch(/is running already/);
    await answers(client);
  });
});

describe('a link that is cut between hosts that live', { timeout: 240_000 }, () => {
  const seed = Date.now() % 1e6;
  const cases = PARTITIONS.flatMap((kind) => DISKS_OF(kind).map((disks) => ({ kind, disks })));
  // One more where one side has to stop because a time is over.
  cases.push({ kind: 'etcd-lost', disks: 'replicate' });
  for (const [i, { kind, disks }] of cases.entries()) {
    it.skipIf(kind.startsWith('etcd') && noEtcd !== undefined)(
      `lets exactly one side go on, and takes the other back: ${kind}, ${disks} (${i + 1})`,
      async () => {
        const said = [`seed ${seed + i}`];
        const result = await runPartition({
          kind,
          disks,
          random: new Prng(seed + i),
          say: (line) => said.push(line),
        }).catch((error: unknown) => {
          throw new Error(`${said.join('\n')}\n${String(error)}`);
        });
        expect(result, said.join('\n')).toMatchObject({ lost: 0, complaints: [], verified: true });
      },
    );
  }
});
