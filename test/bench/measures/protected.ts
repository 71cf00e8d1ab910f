/**
 * Measure 9: what protection takes from a guest that works: requests to a disk that both hosts share or that each has a copy of, and
 * turns of a loop. What it adds to one answer is measure 6.
 */
import type { Pair } from '../../failover/pair.ts';
import { benchLines, commandText, field, tsvmmCommand } from '../guest-run.ts';
import { kvmMissing } from '../machine-facts.ts';
import type { BenchContext, Experiment, Measure, Side } from '../measure.ts';
import { consoleStretch, POLICIES, type Policy, policyText, withPair } from '../protected-pair.ts';
import { summarize } from '../stats.ts';

const SIDES: readonly Policy[] = ['off', ...POLICIES];
const DISK_BYTES = 16 * 2 ** 20;

/** Both kinds of disk of a protected guest. */
const DISKS = ['shared', 'replicate'] as const;
const DISK_CASES = [
  { op: 'write', depth: 1 },
  { op: 'write', depth: 16 },
  { op: 'read', depth: 16 },
] as const;

/** Loops, each of some tenths of a millisecond a round and a line every few hundred. */
const LOOPS = [
  { name: 'registers only', append: 'pages=1 content=zero spin=1000000 every=300' },
  { name: '1 MiB written over and over', append: 'pages=256 content=delta every=15000' },
  {
    name: '32 MiB written at random',
    append: 'pages=1024 mem=32M order=random content=delta every=150',
  },
] as const;

/** Blocks of the disk's file, so that no side pays for allocation. */
const fillDisk = (pair: Pair): void => pair.fillDisk(new Uint8Array(DISK_BYTES).fill(0x5a), 0);

function diskExperiment(
  { quick }: BenchContext,
  disks: (typeof DISKS)[number],
  { op, depth }: (typeof DISK_CASES)[number],
): Experiment {
  const append = `op=${op} depth=${depth} ms=250 runs=0`;
  const options = { guest: 'blk', append, disks, diskBytes: DISK_BYTES };
  const words = commandText(tsvmmCommand({ guest: 'blk', append, memory: '64M' }));
  const side = (policy: Policy): Side => ({
    name: policy,
    command: `${words} --disk DISK${policyText(policy)}`,
    run: () =>
      withPair(
        policy,
        options,
        async (pair) => {
          const { lines, ms } = await consoleStretch(
            pair,
            (text) => benchLines(text, 'blk'),
            quick ? 500 : 1000,
          );
          let requests = 0;
          for (const line of lines) requests += field(line, 'count');
          const median = (key: string): number =>
            summarize(lines.map((line) => field(line, key) / 1e6)).median;
          return {
            throughput: (requests * 1000) / ms,
            'median latency': median('p50_ns'),
            'latency, 99 %': median('p99_ns'),
          };
        },
        fillDisk,
      ),
  });
  return {
    name: `protected disk, ${disks === 'shared' ? 'shared' : 'replicated'}: ${op} 4 KiB random, queue depth ${depth} (ratio: off / protected)`,
    metrics: [
      { name: 'throughput', unit: '/s' },
      { name: 'median latency', unit: 'ms' },
      { name: 'latency, 99 %', unit: 'ms' },
    ],
    sides: SIDES.map(side),
    seconds: 30,
    warmUp: false,
  };
}

/** The lines that the dirty guest prints now and then. */
function roundsIn(text: string): string[] {
  return text.match(/dirty: round \d+/g) ?? [];
}

function loopExperiment({ quick }: BenchContext, { name, append }: (typeof LOOPS)[number]) {
  const words = commandText(tsvmmCommand({ guest: 'dirty', append, memory: '64M' }));
  const side = (policy: Policy): Side => ({
    name: policy,
    command: `${words}${policyText(policy)}`,
    run: () =>
      withPair(policy, { guest: 'dirty', append, bare: true }, async (pair) => {
        const { lines, ms } = await consoleStretch(pair, roundsIn, quick ? 500 : 1000);
        const figures = await pair.figures();
        const every = Number(/every=(\d+)/.exec(append)![1]);
        return {
          rounds: (lines.length * every * 1000) / ms,
          'last pause': Number(figures?.lastPauseNs ?? Number.NaN) / 1e6,
        };
      }),
  });
  return {
    name: `protected loop: ${name} (ratio: off / protected, the slow-down)`,
    metrics: [
      { name: 'rounds', unit: '/s' },
      { name: 'last pause', unit: 'ms' },
    ],
    sides: SIDES.map(side),
    seconds: 30,
    warmUp: false as const,
  };
}

/** See the module's head. */
export const protectedGuest: Measure = {
  name: 'protected',
  title: '9. The protected guest at work: disk and loops',
  missing: kvmMissing,
  async experiments(context: BenchContext): Promise<Experiment[]> {
    return [
      ...DISKS.flatMap((disks) => DISK_CASES.map((each) => diskExperiment(context, disks, each))),
      ...LOOPS.map((loop) => loopExperiment(context, loop)),
    ];
  },
};
