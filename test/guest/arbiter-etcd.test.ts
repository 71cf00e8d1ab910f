/** The etcd arbiter against a real cluster of three members on loopback. */
import { afterEach, describe, expect, it } from 'vitest';
import { MemoryLog } from '../../src/base/log.ts';
import { parseEtcd } from '../../src/cli/etcd-options.ts';
import { EtcdArbiter } from '../../src/ft/shell/etcd-arbiter.ts';
import { EtcdCluster, etcdMissing } from '../failover/etcd-cluster.ts';
import { CuttingProxy } from '../failover/proxy.ts';

const missing = etcdMissing();
const nowNs = (): number => performance.now() * 1e6;
const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));
const LEASE_MS = 3000;

const clusters: EtcdCluster[] = [];
const arbiters: EtcdArbiter[] = [];
let tokens = 0;
afterEach(async () => {
  await Promise.all(arbiters.splice(0).map((arbiter) => arbiter.close()));
  for (const cluster of clusters.splice(0)) cluster.close();
});

async function start(tls = false): Promise<EtcdCluster> {
  const cluster = await EtcdCluster.start({ tls });
  clusters.push(cluster);
  return cluster;
}

function arbiter(value: string, log = new MemoryLog()): EtcdArbiter {
  const made = new EtcdArbiter(parseEtcd(value), { nowNs, log, token: `t${++tokens}` });
  arbiters.push(made);
  return made;
}

const lease = `lease=${LEASE_MS}ms`;
const RECORD = { kind: 'record', generation: 1, inSync: 'b1' } as const;
const ACQUIRE = { kind: 'acquire', generation: 1, instance: 'b1' } as const;

/** Watches a lease from outside and notes when it was valid, with the clock that it is measured by. */
function watch(a: EtcdArbiter): { lapses: number; lastValidMs: number; stop(): void } {
  const seen = { lapses: 0, lastValidMs: 0, stop: () => clearInterval(timer) };
  let valid = a.lease.valid;
  const timer = setInterval(() => {
    const now = a.lease.valid;
    if (now) seen.lastValidMs = performance.now();
    else if (valid) seen.lapses++;
    valid = now;
  }, 5);
  return seen;
}

describe.skipIf(missing !== undefined)('the etcd arbiter with a real cluster', () => {
  it('keeps its authority when a member is killed, also the leader', async () => {
    const cluster = await start();
    const a = arbiter(cluster.arbiter('g', lease));
    expect(await a.begin()).toBe(1);
    const seen = watch(a);
    const leader = await cluster.leader();
    expect(leader).toBeGreaterThanOrEqual(0);
    cluster.kill((leader + 1) % 3);
    await sleep(2000);
    expect(seen.lapses).toBe(0);
    cluster.startMember((leader + 1) % 3);
    await cluster.ready();
    cluster.kill(leader);
    await cluster.ready();
    await sleep(LEASE_MS);
    // An election takes one to two seconds; the lease has two and a bit to spare.
    expect(a.lease.valid).toBe(true);
    expect((await a.request(RECORD)).result).toBe('ok');
    seen.stop();
  });

  it('loses its lease when all are killed, before anybody else could have the guest', async () => {
    const cluster = await start();
    const a = arbiter(cluster.arbiter('g', lease));
    const b = arbiter(cluster.arbiter('g', lease));
    await a.begin();
    expect((await a.request(RECORD)).result).toBe('ok');
    const seen = watch(a);
    await sleep(1000);
    for (let i = 0; i < 3; i++) cluster.kill(i);
    const killedMs = performance.now();
    await sleep(LEASE_MS + 500);
    expect(a.lease.valid).toBe(false);
    // Timeline: the last beat was sent before the kill, so the lease ended a margin before a whole lease after it.
    const stoppedAfter = seen.lastValidMs - killedMs;
    console.log(
      `lease of ${LEASE_MS} ms: last valid ${Math.round(stoppedAfter)} ms after the cluster died`,
    );
    expect(stoppedAfter).toBeLessThan(LEASE_MS * 0.8 + 20);
    expect((await b.request(ACQUIRE)).result).toBe('unreachable');
    // Back with their data: nobody took the guest, so its owner has it again.
    for (let i = 0; i < 3; i++) cluster.startMember(i);
    await cluster.ready();
    for (const end = performance.now() + 10_000; !a.lease.valid && performance.now() < end; ) {
      await sleep(20);
    }
    expect(a.lease.valid).toBe(true);
    seen.stop();
  });

  it('gives the guest to one of two that ask at once, and only after a whole silent lease', async () => {
    const cluster = await start();
    const way = await CuttingProxy.start(Number(new URL(cluster.endpoints[0]!).port));
    const a = arbiter(`etcd:http://127.0.0.1:${way.port}/g?${lease}`);
    await a.begin();
    await a.request(RECORD);
    const seen = watch(a);
    const two = [arbiter(cluster.arbiter('g', lease)), arbiter(cluster.arbiter('g', lease))];
    for (const side of two) expect((await side.request(ACQUIRE)).result).toBe('refused');
    // The owner is cut off from the cluster.
    way.close();
    const results: string[][] = [];
    for (const end = performance.now() + 4 * LEASE_MS; performance.now() < end; await sleep(50)) {
      const answers = await Promise.all(two.map((side) => side.request(ACQUIRE)));
      results.push(answers.map(({ result }) => result));
      if (answers.some(({ result }) => result === 'ok')) break;
    }
    const takenMs = performance.now();
    expect(results.at(-1)!.filter((result) => result === 'ok')).toHaveLength(1);
    seen.stop();
    const apart = takenMs - seen.lastValidMs;
    console.log(`taken ${Math.round(apart)} ms after the old owner's lease was last valid`);
    expect(apart).toBeGreaterThan(0);
    const [first, second] = await Promise.all(two.map((side) => side.request(ACQUIRE)));
    expect([first!.result, second!.result].sort()).toEqual(['ok', 'refused']);
  });

  it('does not fall for a leader that was stopped and still believes in its leases', async () => {
    const cluster = await start();
    const a = arbiter(cluster.arbiter('g', lease));
    const b = arbiter(cluster.arbiter('g', lease));
    await a.begin();
    await a.request(RECORD);
    const leader = await cluster.leader();
    const seen = watch(a);
    cluster.signal(leader, 'SIGSTOP');
    const verdicts: string[] = [];
    const poll = async (untilMs: number): Promise<void> => {
      while (performance.now() < untilMs) {
        verdicts.push((await b.request(ACQUIRE)).result);
        await sleep(100);
      }
    };
    await poll(performance.now() + 3 * LEASE_MS);
    cluster.signal(leader, 'SIGCONT');
    await poll(performance.now() + LEASE_MS);
    seen.stop();
    expect(verdicts).not.toContain('ok');
    expect(a.lease.valid).toBe(true);
  });

  it('speaks TLS with certificates of a CA of its own, and refuses others', async () => {
    const cluster = await start(true);
    const a = arbiter(cluster.arbiter('g', lease));
    expect(await a.begin()).toBe(1);
    expect((await a.request(RECORD)).result).toBe('ok');
    const other = await start(true);
    const stranger = cluster.endpoints.join(',');
    const files = ['ca', 'cert', 'key'].map((f) => `${f}=${other.path(`${f}.pem`)}`).join('&');
    const wrong = arbiter(`etcd:${stranger}/g?${files}&${lease}`);
    const verdict = await wrong.request(ACQUIRE);
    expect(verdict).toMatchObject({ result: 'unreachable' });
    expect(verdict.sentence).toMatch(/certificate/);
    const nobody = arbiter(`etcd:${stranger}/g?ca=${cluster.path('ca.pem')}&${lease}`);
    expect((await nobody.request(ACQUIRE)).result).toBe('unreachable');
  });
});
