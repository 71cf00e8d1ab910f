// Disks that each host has for itself: failovers, equality of both images, the size of a first copy, a standby without room. On
// /dev/kvm, two processes on loopback.
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { Prng } from '../../src/base/prng.ts';
import { IMAGE } from '../../src/ft/disk/replica-record.ts';
import { DemoClient } from '../failover/client.ts';
import { Pair, type PairOptions, SETTLE_TIMEOUT_MS, sleep, until } from '../failover/pair.ts';
import { runScenario, type ScenarioOptions } from '../failover/scenario.ts';
import { verify } from '../failover/verify.ts';

const MIB = 2 ** 20;
const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const clean of cleanups.splice(0).reverse()) await clean();
});

function make(options: PairOptions): { pair: Pair; client: DemoClient } {
  const pair = new Pair({ disks: 'replicate', ...options });
  let client: DemoClient | undefined;
  const send = pair.net.plug('client', (frame) => client?.receive(frame));
  client = new DemoClient(send);
  cleanups.push(async () => {
    client?.stop();
    await pair.end();
    pair.close();
  });
  return { pair, client };
}

async function answers(client: DemoClient, count = 20): Promise<void> {
  const before = client.replies.length;
  await until('the guest answers', SETTLE_TIMEOUT_MS, () => client.replies.length > before + count);
}

/** Both images when the guest stands still and everything has been applied. */
async function imagesAtRest(pair: Pair): Promise<[Buffer, Buffer]> {
  await pair.ask('a', 'pause');
  await sleep(300);
  // What was written behind the last checkpoint goes with the next one: there is one a second at least.
  const begun = Number((await pair.figures())?.epochs);
  await until('every write is acknowledged', SETTLE_TIMEOUT_MS, async () => {
    await sleep(100);
    return Number((await pair.figures())?.ackedEpochs) >= begun + 2;
  });
  await sleep(300);
  return [readFileSync(pair.disk), readFileSync(pair.standbyDisk)];
}

describe('failover with replicated disks', { timeout: 120_000 }, () => {
  const cases: [string, Omit<ScenarioOptions, 'random'>][] = [
    ['kill, adaptive', { fault: 'kill', policy: 'adaptive' }],
    ['kill within a transaction, kemari', { fault: 'kill-commit', policy: 'kemari' }],
    ['kill around a flush, periodic', { fault: 'kill-flush', policy: 'periodic' }],
    ['kill during the first copy', { fault: 'kill-early' }],
    ['a killed standby, and a new one', { fault: 'kill-standby' }],
    ['a link cut at a byte', { fault: 'cut' }],
    ['a planned switch-over', { fault: 'switchover' }],
  ];
  for (const [i, [name, options]] of cases.entries()) {
    it(`loses nothing: ${name}`, async () => {
      const said: string[] = [];
      const result = await runScenario({
        ...options,
        disks: 'replicate',
        random: new Prng(2000 + i),
        say: (line) => said.push(line),
      });
      const { lost, complaints, verified } = result;
      expect({ lost, complaints, verified }, said.join('\n')).toEqual({
        lost: 0,
        complaints: [],
        verified: true,
      });
    });
  }
});

describe('replicated disks', { timeout: 120_000 }, () => {
  it('are equal on both hosts at a committed epoch', async () => {
    const { pair, client } = make({ policy: 'kemari' });
    const random = new Prng(7);
    const stale = new Uint8Array(16 * MIB);
    random.fill(stale);
    writeFileSync(pair.standbyDisk, stale);
    // Behind an empty stretch, so that the guest's journal ends there; and not a whole number of granules.
    const data = new Uint8Array(3 * MIB + 512);
    random.fill(data);
    pair.fillDisk(data, 8 * MIB);
    await pair.startStandby();
    pair.startPrimary();
    client.start();
    await pair.protected();
    await answers(client, 100);
    const [a, b] = await imagesAtRest(pair);
    expect(a.compare(b)).toBe(0);
    expect(verify(client.replies, pair.standbyDisk)).toMatchObject({ lost: 0, complaints: [] });
  });

  it('send little more than their data, and keep their holes', async () => {
    const { pair } = make({ diskBytes: 1024 * MIB });
    const random = new Prng(8);
    const piece = new Uint8Array(MIB);
    const fd = openSync(pair.disk, 'r+');
    ftruncateSync(fd, 1024 * MIB);
    for (let i = 0; i < 102; i++) {
      random.fill(piece);
      writeSync(fd, piece, 0, piece.length, (10 * i + 4) * MIB);
    }
    closeSync(fd);
    await pair.startStandby();
    pair.startPrimary();
    await pair.protected();
    const line = pair.primary.log.match(/copying disks[^"]*/g)!.at(-1)!;
    const [, sent, unit] = /([\d.]+) (MiB|KiB|GiB) sent/.exec(line)!;
    process.stdout.write(`1 GiB, 102 MiB of data: ${line}\n`);
    expect(unit).toBe('MiB');
    expect(Number(sent)).toBeLessThan(104);
    expect(statSync(pair.standbyDisk).blocks * 512).toBeLessThan(106 * MIB);
    const [a, b] = await imagesAtRest(pair);
    expect(a.compare(b)).toBe(0);
  });

  it('carry only what differs from a base that both hosts prove to have', async () => {
    const { pair } = make({ diskBytes: 64 * MIB });
    const random = new Prng(9);
    const content = new Uint8Array(48 * MIB);
    random.fill(content.subarray(16 * MIB));
    const [baseA, baseB] = [pair.path('base-a.img'), pair.path('base-b.img')];
    writeFileSync(baseA, content);
    writeFileSync(baseB, content);
    // The guest's disk: the base, a changed part, a cleared part, and a part behind the base's end.
    const disk = new Uint8Array(64 * MIB);
    disk.set(content);
    random.fill(disk.subarray(20 * MIB, 21 * MIB));
    disk.fill(0, 30 * MIB, 31 * MIB);
    random.fill(disk.subarray(63 * MIB, 64 * MIB));
    writeFileSync(pair.disk, disk);
    pair.diskArgs = { a: `,base=${baseA}`, b: `,base=${baseB}` };
    await pair.startStandby();
    pair.startPrimary();
    await pair.protected();
    const line = pair.primary.log.match(/copying disks[^"]*/g)!.at(-1)!;
    const sent = /([\d.]+) MiB sent/.exec(line)?.[1];
    expect(Number(sent), line).toBeGreaterThanOrEqual(2);
    expect(Number(sent), line).toBeLessThan(2.5);
    const [a, b] = await imagesAtRest(pair);
    expect(a.compare(b)).toBe(0);
  });

  it('are whole when a standby was killed while it laid their base, and comes back', async () => {
    const { pair, client } = make({ diskBytes: 256 * MIB });
    const random = new Prng(13);
    const content = new Uint8Array(256 * MIB);
    random.fill(content.subarray(16 * MIB));
    const base = pair.path('base.img');
    writeFileSync(base, content);
    random.fill(content.subarray(100 * MIB, 101 * MIB));
    writeFileSync(pair.disk, content);
    pair.diskArgs = { a: `,base=${base}`, b: `,base=${base}` };
    await pair.startStandby();
    pair.startPrimary();
    const laid = (): number => statSync(pair.standbyDisk).blocks * 512;
    await until('the base is being laid', SETTLE_TIMEOUT_MS, () => laid() > 2 * MIB);
    pair.standby.signal('SIGKILL');
    await pair.standby.exit();
    const half = laid();
    expect(half).toBeLessThan(239 * MIB);
    // A mark that says so holds; there are two, written in turn.
    const record = readFileSync(`${pair.standbyDisk}.ft`);
    const marks = [0, 4096].map((at) => [
      record.readUInt32LE(at + 8),
      record.readUInt32LE(at + 16),
    ]);
    expect(marks.sort(([a], [b]) => b! - a!)[0]![1]).toBe(IMAGE.copying);
    client.start();
    await pair.startStandby();
    await pair.protected();
    await answers(client, 30);
    const line = pair.primary.log.match(/copying disks[^"]*/g)!.at(-1)!;
    expect(line).toMatch(/ (1\.\d MiB|[\d.]+ KiB) sent/);
    const [a, b] = await imagesAtRest(pair);
    expect(a.compare(b)).toBe(0);
    process.stdout.write(`base of 256 MiB, ${Math.round(half / MIB)} MiB laid, then ${line}\n`);
  });

  it('are copied whole when the bases differ', async () => {
    const { pair } = make({});
    const random = new Prng(10);
    const content = new Uint8Array(16 * MIB);
    random.fill(content.subarray(8 * MIB));
    writeFileSync(pair.disk, content);
    writeFileSync(pair.path('base-a.img'), content);
    content[9 * MIB]! ^= 1;
    writeFileSync(pair.path('base-b.img'), content);
    pair.diskArgs = {
      a: `,base=${pair.path('base-a.img')}`,
      b: `,base=${pair.path('base-b.img')}`,
    };
    await pair.startStandby();
    pair.startPrimary();
    await pair.protected();
    await pair.standby.said(/do not have the same base image/);
    const [a, b] = await imagesAtRest(pair);
    expect(a.compare(b)).toBe(0);
  });

  it('are brought up to date when a standby that was killed comes back', async () => {
    const { pair, client } = make({ diskBytes: 64 * MIB, policy: 'kemari' });
    const random = new Prng(12);
    const data = new Uint8Array(40 * MIB);
    random.fill(data);
    pair.fillDisk(data, 16 * MIB);
    await pair.startStandby();
    pair.startPrimary();
    client.start();
    await pair.protected();
    await answers(client, 50);
    for (let round = 0; round < 2; round++) {
      // Heartbeats tell what the standby's disk has; without one since the copy all of it would be sent again.
      await sleep(800);
      pair.standby.signal('SIGKILL');
      await until('the guest runs alone', SETTLE_TIMEOUT_MS, async () =>
        ['alone', 'joining'].includes((await pair.phase()) ?? ''),
      );
      await answers(client, 30);
      await pair.startStandby();
      await pair.protected();
      await answers(client, 30);
      const line = pair.primary.log.match(/copying disks[^"]*/g)!.at(-1)!;
      expect(line).toMatch(/ KiB sent/);
    }
    const [a, b] = await imagesAtRest(pair);
    expect(a.compare(b)).toBe(0);
    expect(verify(client.replies, pair.standbyDisk)).toMatchObject({ lost: 0, complaints: [] });
  });

  it('are told from shared ones, and disagreement is refused', async () => {
    const same = make({ disks: 'shared' });
    await same.pair.startStandby();
    same.pair.startPrimary();
    await same.pair.protected();
    const figures = await same.pair.figures();
    expect(figures?.disks).toMatchObject([{ id: 'disk0', storage: 'shared' }]);
    const forced = make({});
    const parts = ['--disk', `disk0=${forced.pair.disk},ft=replicate`];
    const net = ['--net', `net0=stream=${forced.pair.path('net-b')}`];
    const wrong = make({ standbyParts: [...parts, ...net] });
    rmSync(wrong.pair.standbyDisk);
    await wrong.pair.startStandby();
    // The same file under both names.
    rmSync(wrong.pair.disk);
    execFileSync('ln', [forced.pair.disk, wrong.pair.disk]);
    wrong.pair.startPrimary();
    await wrong.pair.primary.said(/both hosts name the same storage/);
  });
});

const root = process.getuid?.() === 0;

describe.runIf(root)('a standby without room', { timeout: 120_000 }, () => {
  it('ends protection with a sentence while the guest runs on, and is back when there is room', async () => {
    const shelf = new Pair({ bare: true });
    const folder = shelf.path('small');
    mkdirSync(folder);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=60m', 'none', folder]);
    cleanups.push(() => {
      execFileSync('umount', ['-l', folder]);
      shelf.close();
    });
    const image = `${folder}/copy.img`;
    const { pair, client } = make({});
    pair.standbyParts = [
      ...['--disk', `disk0=${image},ft=replicate,cache=writeback`],
      ...['--net', `net0=stream=${pair.path('net-b')}`],
    ];
    await pair.startStandby();
    pair.startPrimary();
    client.start();
    await pair.protected();
    await answers(client, 30);
    // Somebody else takes what is left; the guest's journal soon needs a new part of the image.
    const left = openSync(`${folder}/filler`, 'w');
    const piece = new Uint8Array(64 * 1024);
    try {
      for (;;) writeSync(left, piece);
    } catch (error) {
      expect((error as NodeJS.ErrnoException).code).toBe('ENOSPC');
    }
    closeSync(left);
    await pair.primary.said(/refuses this guest: .*no room left for the disk/);
    await until('the guest runs alone', SETTLE_TIMEOUT_MS, async () =>
      ['alone', 'joining'].includes((await pair.phase()) ?? ''),
    );
    expect(pair.tookOver()).toBe(false);
    await answers(client);
    rmSync(`${folder}/filler`);
    await pair.protected();
    await answers(client);
    const [a] = await imagesAtRest(pair);
    expect(a.compare(readFileSync(image))).toBe(0);
  });
});
