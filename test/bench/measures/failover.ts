/**
 * Measures 6 and 7: the delay that protection adds to an output, and how long a takeover takes, both seen by a client; and how long a
 * new standby takes to have the guest's memory.
 */
import { existsSync, readFileSync } from 'node:fs';
import { askControl } from '../../../src/monitor/control-server.ts';
import { etcdMissing } from '../../failover/etcd-cluster.ts';
import { LEASE_MS, Pair, type PairOptions, until } from '../../failover/pair.ts';
import { EchoClient } from '../echo-client.ts';
import { commandText, launch, tsvmmCommand } from '../guest-run.ts';
import { kvmMissing } from '../machine-facts.ts';
import type { BenchContext, Experiment, Measure, Sample, Side } from '../measure.ts';
import { POLICIES, type Policy, policyArgs, WAIT_MS, withPair } from '../protected-pair.ts';
import { quantile } from '../stats.ts';

const MAC = '52:54:00:12:34:56';
/** Slow enough that requests do not wait for each other: "at rest". */
const REST_MS = 20;
/** Silence after which a host counts as lost. */
const SILENCE_MS = 500;

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

/** How a host is lost. The silent ones need a shorter wait for silence than the default of 3 s, to be worth a run. */
const FAULTS = {
  'kill -9': {},
  'SIGSTOP (etcd)': { arbiter: 'etcd', timeoutMs: SILENCE_MS },
  'silent link (policy)': {
    arbiter: 'none',
    disks: 'replicate',
    timeoutMs: SILENCE_MS,
    standbyArgs: ['--on-peer-loss', 'takeover'],
  },
} as const satisfies Record<string, PairOptions>;
type Fault = keyof typeof FAULTS;

/** Takes a protected primary away and waits for the survivor's first answer. */
async function takeover(fault: Fault): Promise<Sample> {
  return withPair('adaptive', { append: 'period=100', ...FAULTS[fault] }, async (pair) => {
    const client = plug(pair);
    client.start(5);
    await until('the guest answers', WAIT_MS, () => client.trips.length >= 50);
    let firstMs = 0;
    // Answers only: the survivor announces itself by ARP before.
    pair.net.onFrame = (from, frame) => {
      if (firstMs !== 0 || from !== pair.path('net-b')) return;
      if (frame[12] === 8 && frame[13] === 0) firstMs = performance.now();
    };
    let goneMs = Number.NaN;
    pair.primary.child.once('exit', () => {
      goneMs = performance.now();
    });
    const faultMs = performance.now();
    if (fault === 'kill -9') pair.primary.signal('SIGKILL');
    else if (fault === 'silent link (policy)') pair.proxy.setSilent(true);
    else pair.primary.signal('SIGSTOP');
    await until('the survivor answers', WAIT_MS, () => firstMs !== 0);
    client.stop();
    await until('the standby says so', WAIT_MS, () => pair.tookOver());
    const said = /\((?:(\d+) ms from the loss to authority, )?(\d+) ms from authority\)/.exec(
      pair.standby.log,
    );
    return {
      'fault to first answer': firstMs - faultMs,
      'kill to process gone': goneMs - faultMs,
      'loss to authority': Number(said?.[1] ?? Number.NaN),
      'authority to guest runs': Number(said?.[2] ?? Number.NaN),
    };
  });
}

/** MiB of memory that a guest fills before it is given a standby, and all that it has. */
const FILLED_MIB = 512;
const MEMORY_MIB = 640;

/** Gives a running guest its standby and waits until it is protected. */
async function synchronise(append: string): Promise<Sample> {
  const options = { guest: 'dirty', append, memory: `${MEMORY_MIB}M`, bare: true };
  return withPair('off', options, async (pair) => {
    const console = pair.path('console-a');
    await until(
      'the guest has filled its memory',
      WAIT_MS,
      () => existsSync(console) && /dirty: ready/.test(readFileSync(console, 'utf8')),
    );
    const begin = performance.now();
    await askControl(pair.path('a.sock'), {
      command: 'protect',
      'ft-peer': `127.0.0.1:${pair.proxy.port}`,
      'ft-arbiter': pair.arbiter,
    });
    await pair.protected();
    const seconds = (performance.now() - begin) / 1000;
    const sent = Number((await pair.figures())?.sentBytes ?? Number.NaN);
    return {
      'time per GiB': (seconds * 1024) / FILLED_MIB,
      'sent per filled byte': sent / (FILLED_MIB * 2 ** 20),
    };
  });
}

function synchronisation(): Experiment[] {
  const metrics = [
    { name: 'time per GiB', unit: 's' },
    { name: 'sent per filled byte', unit: '' },
  ];
  return ['random', 'text', 'zero'].map((content) => {
    const append = `pages=1 mem=${FILLED_MIB}M period=100000 content=${content}`;
    const words = tsvmmCommand({ guest: 'dirty', append, memory: `${MEMORY_MIB}M` });
    return {
      name: `synchronisation of a new standby: ${FILLED_MIB} MiB of ${content} content in a guest of ${MEMORY_MIB} MiB`,
      metrics,
      sides: [
        {
          name: 'tsvmm',
          command: `${commandText(words)}; tsvmm protect 127.0.0.1:PORT once it runs`,
          run: () => synchronise(append),
        },
      ],
      seconds: 12,
      warmUp: false,
    };
  });
}

export const failover: Measure = {
  name: 'failover',
  title: '6. and 7. The protected guest: output delay and takeover',
  missing: kvmMissing,
  async experiments({ quick }: BenchContext): Promise<Experiment[]> {
    const count = quick ? 30 : 75;
    const noEtcd = etcdMissing();
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
        plot: { name: 'delay-by-policy' },
        seconds: 55,
        warmUp: false,
      },
      {
        name: `takeover, guest of 64 MiB; silence is noticed after ${SILENCE_MS} ms, the lease at etcd is ${LEASE_MS} ms`,
        metrics: [
          { name: 'fault to first answer', unit: 'ms' },
          { name: 'kill to process gone', unit: 'ms' },
          { name: 'loss to authority', unit: 'ms' },
          { name: 'authority to guest runs', unit: 'ms' },
        ],
        sides: (Object.keys(FAULTS) as Fault[])
          .filter((fault) => !fault.includes('etcd') || noEtcd === undefined)
          .map((fault) => ({
            name: fault,
            command: `${base} ${peer}; ${fault}`,
            run: () => takeover(fault),
          })),
        seconds: 36,
        warmUp: false,
        skipped: noEtcd === undefined ? [] : [`no stopped host: ${noEtcd}`],
      },
      ...synchronisation(),
    ];
  },
};
