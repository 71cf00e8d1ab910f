// The return of a lost host over its old image, end to end: a takeover, the return with what differs, a loss of the survivor, and back.
// On /dev/kvm, two processes on loopback.
import { closeSync, openSync, readFileSync, statSync, utimesSync, writeSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { Prng } from '../../src/base/prng.ts';
import { DemoClient } from '../failover/client.ts';
import {
  otherSide,
  Pair,
  type PairOptions,
  SETTLE_TIMEOUT_MS,
  type Side,
  sleep,
  until,
} from '../failover/pair.ts';
import { verify } from '../failover/verify.ts';

const MIB = 2 ** 20;
const DISK_BYTES = 128 * MIB;
const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const clean of cleanups.splice(0).reverse()) await clean();
});

interface Ground {
  readonly pair: Pair;
  readonly client: DemoClient;
  readonly random: Prng;
}

/** A guest that is protected, with a disk full of data. */
async function begin(seed: number, options: PairOptions = {}): Promise<Ground> {
  const pair = new Pair({ disks: 'replicate', diskBytes: DISK_BYTES, roundTrip: true, ...options });
  let client: DemoClient | undefined;
  const send = pair.net.plug('client', (frame) => client?.receive(frame));
  client = new DemoClient(send);
  cleanups.push(async () => {
    client?.stop();
    await pair.end();
    pair.close(process.env.TSVMM_KEEP !== undefined);
  });
  const random = new Prng(seed);
  const data = new Uint8Array(100 * MIB);
  random.fill(data);
  pair.fillDisk(data, 16 * MIB);
  await pair.startStandby();
  pair.startPrimary();
  client.start();
  await pair.protected();
  await answers(client, 30);
  return { pair, client, random };
}

async function answers(client: DemoClient, count = 20): Promise<void> {
  const before = client.replies.length;
  await until('the guest answers', SETTLE_TIMEOUT_MS, () => client.replies.length > before + count);
}

/** The host that runs the guest is killed; the other one takes over. @returns the survivor */
async function kill({ pair, client }: Ground, side: Side): Promise<Side> {
  const survivor = otherSide(side);
  pair.host(side).signal('SIGKILL');
  await until('the standby takes over', SETTLE_TIMEOUT_MS, () => pair.tookOver(survivor));
  await pair.host(side).exit();
  await answers(client);
  return survivor;
}

const RETURNED = /the disks of the host that was lost: what differs/;
const WHOLE = /the disks are copied whole/;

/** Both images when the guest stands still and everything has been applied. */
async function imagesAtRest(pair: Pair, here: Side): Promise<[Buffer, Buffer]> {
  await pair.ask(here, 'pause');
  await sleep(300);
  // What was written behind the last checkpoint goes with the next one: there is one a second at least.
  const begun = Number((await pair.figures(here))?.epochs);
  await until('every write is acknowledged', SETTLE_TIMEOUT_MS, async () => {
    await sleep(100);
    return Number((await pair.figures(here))?.ackedEpochs) >= begun + 2;
  });
  await sleep(300);
  return [readFileSync(pair.disk), readFileSync(pair.standbyDisk)];
}

describe('a lost host that comes back over its old image', { timeout: 240_000 }, () => {
  it('gets what differs, and is the next to take over, again and again', async () => {
    const ground = await begin(31, { policy: 'kemari' });
    const { pair, client, random } = ground;
    let here: Side = 'a';
    for (let round = 1; round <= 3; round++) {
      await pair.activityLogged(here);
      await sleep(random.below(1500));
      const survivor = await kill(ground, here);
      await sleep(random.below(1000));
      await pair.startStandby(here);
      await pair.protected(survivor);
      expect(pair.host(survivor).log).toMatch(RETURNED);
      const sent = pair.sentForDisks(survivor);
      process.stdout.write(
        `round ${round}: ${Math.round(sent / 1024)} KiB of ${DISK_BYTES / MIB} MiB sent\n`,
      );
      expect(sent).toBeLessThan(DISK_BYTES / 10);
      await answers(client, 30);
      here = survivor;
    }
    client.finish();
    await until('every request is answered', SETTLE_TIMEOUT_MS, () => client.unanswered === 0);
    const [a, b] = await imagesAtRest(pair, here);
    expect(a.compare(b)).toBe(0);
    for (const image of [pair.disk, pair.standbyDisk]) {
      expect(verify(client.replies, image)).toMatchObject({ lost: 0, complaints: [] });
    }
  });

  it('after a planned switch-over gets what the survivor wrote', async () => {
    const { pair, client } = await begin(32);
    await pair.activityLogged('a');
    await pair.ask('a', 'switchover');
    expect(await pair.host('a').exit()).toBe(0);
    await until('the standby takes over', SETTLE_TIMEOUT_MS, () => pair.tookOver());
    await answers(client);
    await pair.startStandby('a');
    await pair.protected('b');
    expect(pair.host('b').log).toMatch(RETURNED);
    expect(pair.sentForDisks('b')).toBeLessThan(DISK_BYTES / 10);
    const [a, b] = await imagesAtRest(pair, 'b');
    expect(a.compare(b)).toBe(0);
  });

  it('goes on with what differs when its return was cut off', async () => {
    const ground = await begin(33);
    const { pair, client } = ground;
    await pair.activityLogged('a');
    await kill(ground, 'a');
    pair.proxyTo('a').cutAfter(300_000);
    await pair.startStandby('a');
    await until('the link is cut', SETTLE_TIMEOUT_MS, () => pair.proxyTo('a').cuts > 0);
    await pair.protected('b');
    expect(pair.host('b').log.match(new RegExp(RETURNED, 'g'))!.length).toBeGreaterThan(1);
    expect(pair.host('b').log).not.toMatch(WHOLE);
    await answers(client);
    const [a, b] = await imagesAtRest(pair, 'b');
    expect(a.compare(b)).toBe(0);
  });

  const spoilt: [string, (image: string) => void][] = [
    [
      'its log is damaged',
      (image) => {
        const fd = openSync(`${image}.ft-act`, 'r+');
        writeSync(fd, Uint8Array.of(0xff), 0, 1, 70);
        closeSync(fd);
      },
    ],
    [
      'its image was changed later',
      (image) => {
        const fd = openSync(image, 'r+');
        writeSync(fd, Uint8Array.of(1, 2, 3), 0, 3, 110 * MIB);
        closeSync(fd);
        const later = statSync(`${image}.ft-act`).mtimeMs / 1000 + 600;
        utimesSync(image, later, later);
      },
    ],
  ];
  for (const [i, [why, spoil]] of spoilt.entries()) {
    it(`gets everything when ${why}`, async () => {
      const ground = await begin(40 + i);
      const { pair } = ground;
      await pair.activityLogged('a');
      await kill(ground, 'a');
      spoil(pair.disk);
      await pair.startStandby('a');
      await pair.protected('b');
      expect(pair.host('b').log).toMatch(WHOLE);
      expect(pair.host('b').log).not.toMatch(RETURNED);
      const [a, b] = await imagesAtRest(pair, 'b');
      expect(a.compare(b)).toBe(0);
    });
  }

  it('gets everything when the survivor was lost with it, and the guest begins anew', async () => {
    const ground = await begin(50);
    const { pair } = ground;
    await pair.activityLogged('a');
    await kill(ground, 'a');
    pair.host('b').signal('SIGKILL');
    await pair.host('b').exit();
    // Somebody starts the guest again over the old image: what the log says of it is void.
    await pair.startStandby('b');
    pair.startPrimary();
    await pair.protected('a');
    expect(pair.host('a').log).toMatch(WHOLE);
    const [a, b] = await imagesAtRest(pair, 'a');
    expect(a.compare(b)).toBe(0);
  });
});
