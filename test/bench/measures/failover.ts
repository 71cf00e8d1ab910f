/** Measures 6 and 7: the delay that protection adds to an output, and how long a takeover takes, both seen by a client. */
import { Pair, until } from '../../failover/pair.ts';
import { EchoClient } from '../echo-client.ts';
import { commandText, launch, tsvmmCommand } from '../guest-run.ts';
import { kvmMissing } from '../machine-facts.ts';
import type { BenchContext, Experiment, Measure, Sample, Side } from '../measure.ts';
import { POLICIES, type Policy, policyArgs, WAIT_MS, withPair } from '../protected-pair.ts';
import { quantile } from '../stats.ts';

const MAC = '52:54:00:12:34:56';
/** Slow enough that requests do not wait for each other: "at rest". */
const REST_MS = 20;

/** A client on the pair's switch. */
export function plug(pair: Pair): EchoClient {
  let client: EchoClient | undefined;
  const send = pair.net.plug('echo', (frame) => client?.receive(frame));
  client = new EchoClient(send);
  return client;
}

/** Round trips of `count` requests at rest, ms. */
export async function trips(client: EchoClient, count: number): Promise<Sample> {
  client.start(REST_MS);
  await until('the guest answers', WAIT_MS, () => client.trips.length >= 5);
  client.trips.length = 0;
  await until(
    'the guest answers',
    WAIT_MS + 20 * count * REST_MS,
    () => client.trips.length >= count,
  );
  client.stop();
  const sorted = [...client.trips].sort((a, b) => a - b);
  return { p50: quantile(sorted, 0.5), p99: quantile(sorted, 0.99) };
}

async function unprotectedDelay(count: number): Promise<Sample> {
  const pair = new Pair();
  const socket = pair.path('net-a');
  await pair.net.listen(socket);
  const child = launch([
    ...tsvmmCommand({ guest: 'demo', append: 'period=100', memory: '64M' }),
    ...[
      '--net',
      `stream=${socket},mac=${MAC}`,
      '--serial',
      'null',
      '--control',
      pair.path('a.sock'),
    ],
  ]);
  const ended = new Promise((done) => child.on('exit', done));
  try {
    return await trips(plug(pair), count);
  } finally {
    child.kill('SIGKILL');
    await ended;
    pair.close();
  }
}

/** A demo guest with a disk and a card, protected. */
function protectedPair<T>(policy: Policy, body: (pair: Pair) => Promise<T>): Promise<T> {
  return withPair(policy, { append: 'period=100' }, body);
}

/** Kills a protected primary and waits for the survivor's first answer. */
async function takeover(): Promise<Sample> {
  return protectedPair('adaptive', async (pair) => {
    const client = plug(pair);
    client.start(5);
    await until('the guest answers', WAIT_MS, () => client.trips.length >= 50);
    let goneMs = 0;
    pair.primary.child.once('exit', () => {
      goneMs = performance.now();
    });
    const killMs = performance.now();
    pair.primary.signal('SIGKILL');
    await until('the standby has taken over', WAIT_MS, () => pair.tookOver());
    const late = () => client.arrivals.find((at) => at > goneMs);
    await until('the survivor answers', WAIT_MS, () => late() !== undefined);
    client.stop();
    const said = /\((?:(\d+) ms from the loss to authority, )?(\d+) ms from authority\)/.exec(
      pair.standby.log,
    );
    return {
      'kill to process gone': goneMs - killMs,
      'process gone to first answer': late()! - goneMs,
      'loss to authority': Number(said?.[1] ?? Number.NaN),
      'authority to guest runs': Number(said?.[2] ?? Number.NaN),
    };
  });
}

export const failover: Measure = {
  name: 'failover',
  title: '6. and 7. The protected guest: output delay and takeover',
  missing: kvmMissing,
  async experiments({ quick }: BenchContext): Promise<Experiment[]> {
    const count = quick ? 50 : 200;
    const words = tsvmmCommand({ guest: 'demo', append: 'period=100', memory: '64M' });
    const base = `${commandText(words)} --disk DISK --net stream=SWITCH`;
    const peer = '--ft-peer 127.0.0.1:PORT --ft-arbiter lock:FILE';
    const off: Side = { name: 'off', command: base, run: () => unprotectedDelay(count) };
    const sides = POLICIES.map(
      (policy): Side => ({
        name: policy,
        command: `${base} ${peer} ${policyArgs(policy).join(' ')}`,
        run: () => protectedPair(policy, (pair) => trips(plug(pair), count)),
      }),
    );
    return [
      {
        name: 'UDP echo round trip at rest, by policy (the ratio is: unprotected / protected)',
        metrics: [
          { name: 'p50', unit: 'ms' },
          { name: 'p99', unit: 'ms' },
        ],
        sides: [off, ...sides],
        runs: quick ? 1 : 3,
      },
      {
        name: 'takeover after kill -9, guest of 64 MiB',
        metrics: [
          { name: 'kill to process gone', unit: 'ms' },
          { name: 'process gone to first answer', unit: 'ms' },
          { name: 'loss to authority', unit: 'ms' },
          { name: 'authority to guest runs', unit: 'ms' },
        ],
        sides: [{ name: 'tsvmm', command: `${base} ${peer}; kill -9`, run: takeover }],
      },
    ];
  },
};
