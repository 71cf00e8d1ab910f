// An old primary that comes back after a takeover: it was only stopped, or cut off, and does not know yet. Whatever it does next,
// nothing of it may reach the outside, and it ends with a sentence that says why. On /dev/kvm, two processes on loopback.
import { readFileSync, statSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { DemoClient } from '../failover/client.ts';
import { Pair, type PairOptions, SETTLE_TIMEOUT_MS, sleep, until } from '../failover/pair.ts';
import { verify } from '../failover/verify.ts';

const open: { pair: Pair; client: DemoClient }[] = [];
afterEach(async () => {
  for (const { pair, client } of open.splice(0)) {
    client.stop();
    await pair.end();
    pair.close();
  }
});

/** A protected pair with a client that asks all the time. */
async function ground(options: PairOptions): Promise<{ pair: Pair; client: DemoClient }> {
  const pair = new Pair(options);
  await pair.startStandby();
  pair.startPrimary();
  let made: DemoClient | undefined;
  const send = pair.net.plug('client', (frame) => made?.receive(frame));
  const client = new DemoClient(send);
  made = client;
  open.push({ pair, client });
  client.start();
  await pair.protected();
  await answered(client);
  return { pair, client };
}

async function answered(client: DemoClient, count = 10): Promise<void> {
  const before = client.replies.length;
  await until('the guest answers', SETTLE_TIMEOUT_MS, () => client.replies.length > before + count);
}

/** What the primary has shown so far: frames, bytes of its console, contents of the disk. */
const shown = (pair: Pair): unknown => ({
  frames: pair.net.framesFrom(pair.path('net-a')),
  console: statSync(pair.path('console-a')).size,
});

const FENCED = /generation 2 of this guest runs on another host; this one has stopped/;

describe('a stopped primary that was taken over', { timeout: 120_000 }, () => {
  const policies: [string, PairOptions][] = [
    ['waits for its peer', {}],
    ['would go on alone', { primaryArgs: ['--ft-on-peer-loss', 'continue'] }],
  ];
  for (const [policy, options] of policies) {
    it(`and that ${policy} shows nothing any more, and ends`, async () => {
      const { pair, client } = await ground({ arbiter: 'none', diskless: true, ...options });
      pair.primary.signal('SIGSTOP');
      await until('the takeover is taken', SETTLE_TIMEOUT_MS, async () => {
        await pair.ask('b', 'takeover');
        return pair.tookOver();
      });
      await answered(client);
      const before = shown(pair);
      pair.primary.signal('SIGCONT');
      expect(await pair.primary.exit()).toBe(1);
      expect(shown(pair)).toEqual(before);
      expect(pair.primary.log).toMatch(FENCED);
      await answered(client);
      expect(client.oddities).toEqual([]);
    });
  }

  it('lets nothing out for an ACK that waited in its socket while it was stopped', async () => {
    const { pair, client } = await ground({ arbiter: 'none', diskless: true });
    pair.proxy.holdAnswers(true);
    await until(
      'an output of the guest is held',
      SETTLE_TIMEOUT_MS,
      async () => Number((await pair.figures())?.heldOutputs ?? 0) > 0,
    );
    // Long enough for the epoch that covers it to be on its way.
    await sleep(200);
    pair.primary.signal('SIGSTOP');
    const before = shown(pair);
    pair.proxy.holdAnswers(false);
    await sleep(4000);
    await until('the takeover is taken', SETTLE_TIMEOUT_MS, async () => {
      await pair.ask('b', 'takeover');
      return pair.tookOver();
    });
    await answered(client);
    pair.primary.signal('SIGCONT');
    expect(await pair.primary.exit()).toBe(1);
    expect(shown(pair)).toEqual(before);
    expect(pair.primary.log).toMatch(FENCED);
  });

  it('keeps the disk until it has learned that it is over, and writes nothing more', async () => {
    const { pair, client } = await ground({ arbiter: 'none' });
    pair.primary.signal('SIGSTOP');
    await until('the takeover is ordered', SETTLE_TIMEOUT_MS, async () => {
      await pair.ask('b', 'takeover');
      return /still locked by another process/.test(pair.standby.log);
    });
    expect(pair.tookOver()).toBe(false);
    const before = shown(pair);
    const disk = readFileSync(pair.disk);
    pair.primary.signal('SIGCONT');
    await until(
      'the primary has ended',
      SETTLE_TIMEOUT_MS,
      () => pair.primary.ended || pair.tookOver(),
    );
    expect(await pair.primary.exit()).toBe(1);
    expect(shown(pair)).toEqual(before);
    expect(pair.primary.log).toMatch(FENCED);
    await until('the guest runs at the standby', SETTLE_TIMEOUT_MS, () => pair.tookOver());
    await answered(client);
    client.finish();
    await until('every request is answered', SETTLE_TIMEOUT_MS, () => client.unanswered === 0);
    expect(verify(client.replies, pair.disk)).toMatchObject({ lost: 0, complaints: [] });
    expect(Buffer.compare(disk, readFileSync(pair.disk))).not.toBe(0);
  });

  it('cannot be taken over while it holds the lock of an arbiter, whoever orders it', async () => {
    const { pair, client } = await ground({});
    pair.primary.signal('SIGSTOP');
    const end = performance.now() + 5000;
    while (performance.now() < end) {
      await pair.ask('b', 'takeover');
      await sleep(100);
    }
    expect(pair.tookOver()).toBe(false);
    expect(pair.standby.log).toMatch(/no takeover: /);
    pair.primary.signal('SIGCONT');
    await answered(client);
    await pair.protected();
    expect(client.oddities).toEqual([]);
  });
});

describe('a primary behind a cut link that was taken over', { timeout: 120_000 }, () => {
  it('shows nothing while it is cut off, and ends when the link is back', async () => {
    const { pair, client } = await ground({ arbiter: 'none', diskless: true });
    pair.proxy.setDown(true);
    await pair.primary.said(/replication: lost/);
    const before = shown(pair);
    await until('the takeover is taken', SETTLE_TIMEOUT_MS, async () => {
      await pair.ask('b', 'takeover');
      return pair.tookOver();
    });
    await answered(client);
    expect(pair.primary.ended).toBe(false);
    expect(shown(pair)).toEqual(before);
    pair.proxy.setDown(false);
    expect(await pair.primary.exit()).toBe(1);
    expect(shown(pair)).toEqual(before);
    expect(pair.primary.log).toMatch(FENCED);
  });
});
