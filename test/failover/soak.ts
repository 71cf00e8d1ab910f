/**
 * `npm run soak -- --runs N [--fault NAME] [--rounds N] [--seed N] [--disk shared|replicate|both] [--arbiter lock|etcd]`: failovers at
 * random instants, every kind of fault in turn, and a tally. `--rounds N` sends the guest back and forth N times in each run;
 * `--fault partition` cuts the link between hosts that live in each of the ways of partition.ts (`partition-NAME`: in one; with
 * `--arbiter`: in those that have it), and looks that one side goes on. `--lab [--download MIB]` instead runs the tests of two hosts
 * with stock Linux guests in the lab, with larger downloads (100 MiB) across the loss of a host. Ends with status 1 if anything was
 * lost; each failure prints the command that repeats it.
 */
import { spawnSync } from 'node:child_process';
import { Prng } from '../../src/base/prng.ts';
import { DISKS_OF, PARTITIONS, runPartition } from './partition.ts';
import { runRoundTrip } from './round-trip.ts';
import { FAULTS, type FaultName, runScenario } from './scenario.ts';
import type { Verdict } from './verify.ts';

const args = process.argv.slice(2);
const value = (name: string): string | undefined => {
  const at = args.indexOf(name);
  return at < 0 ? undefined : args[at + 1];
};
if (args.includes('--lab')) {
  const { status } = spawnSync(process.execPath, ['dist/test/lab/run-tests.js', 'ft.lab'], {
    stdio: 'inherit',
    env: { ...process.env, TSVMM_LAB_DOWNLOAD_MIB: value('--download') ?? '100' },
  });
  process.exit(status ?? 1);
}
const runs = Number(value('--runs') ?? 200);
const seed = Number(value('--seed') ?? Date.now() % 1e9);
const rounds = value('--rounds');
const only = value('--fault');
const chosenArbiter = value('--arbiter');
const arbiter = chosenArbiter ?? 'lock';
if (arbiter !== 'lock' && arbiter !== 'etcd') {
  process.stderr.write('soak: --arbiter is lock or etcd\n');
  process.exit(2);
}
/** `shared`, `replicate`, or both in turn. */
const kept = value('--disk') ?? (only?.startsWith('partition') ? 'both' : 'shared');
/** What a run is: a fault, several failovers, or a partition that one of the sides survives. */
type RunName = FaultName | 'round-trip' | `partition-${(typeof PARTITIONS)[number]}`;
const partitions = PARTITIONS.filter(
  (kind) => chosenArbiter === undefined || kind.startsWith(chosenArbiter),
).map((kind) => `partition-${kind}` as const);
const names: readonly RunName[] =
  rounds !== undefined
    ? ['round-trip']
    : only === 'partition'
      ? partitions
      : [...FAULTS, ...partitions].filter((name) =>
          only === undefined ? !name.startsWith('partition') : name === only,
        );
if (names.length === 0) {
  process.stderr.write(
    `soak: --fault is partition, ${partitions.join(', ')} or one of ${FAULTS.join(', ')}\n`,
  );
  process.exit(2);
}
const policies = ['adaptive', 'kemari', 'periodic'] as const;
const models = ['virtio', 'e1000'] as const;
const tally = new Map<
  RunName,
  {
    runs: number;
    lost: number;
    failed: number;
    outputs: number;
    blackouts: number[];
    /** From the last frame of one side to the first one of the other, where both lived. */
    gaps: number[];
  }
>();

type Options = Pick<
  Parameters<typeof runScenario>[0],
  'random' | 'policy' | 'model' | 'disks' | 'arbiter'
>;

/** One run, from start to verdict. */
async function runOne(
  name: RunName,
  options: Options,
): Promise<Verdict & { readonly verified: boolean; readonly gapMs?: number | undefined }> {
  if (name === 'round-trip') {
    const late = options.random.below(2) === 1;
    return await runRoundTrip({ ...options, late, rounds: Number(rounds) });
  }
  const kind = PARTITIONS.find((each) => name === `partition-${each}`);
  if (kind !== undefined) {
    const { disks = 'shared' } = options;
    const possible = DISKS_OF(kind);
    return await runPartition({
      ...options,
      kind,
      disks: possible.includes(disks) ? disks : possible[0]!,
    });
  }
  return await runScenario({ ...options, fault: name as FaultName });
}

for (let run = 0; run < runs; run++) {
  const fault = names[run % names.length]!;
  const runSeed = seed + run;
  const random = new Prng(runSeed);
  const policy = random.pick(policies);
  const model = random.pick(models);
  const disks = kept === 'both' ? random.pick(['shared', 'replicate'] as const) : kept;
  const row = tally.get(fault) ?? {
    runs: 0,
    lost: 0,
    failed: 0,
    outputs: 0,
    blackouts: [],
    gaps: [],
  };
  tally.set(fault, row);
  row.runs++;
  const which = fault === 'round-trip' ? `--rounds ${rounds}` : `--fault ${fault}`;
  const by = fault.startsWith('partition') ? '' : ` --arbiter ${arbiter}`;
  const repeat = `npm run soak -- --runs 1 ${which} --seed ${runSeed} --disk ${kept}${by}`;
  try {
    const result = await runOne(fault, {
      random,
      policy,
      model,
      arbiter,
      disks: disks === 'replicate' ? 'replicate' : 'shared',
    });
    row.lost += result.lost;
    row.outputs += result.outputs;
    row.blackouts.push(result.blackoutMs);
    if (result.gapMs !== undefined) row.gaps.push(result.gapMs);
    if (!result.verified) {
      row.failed++;
      process.stdout.write(
        `run ${run} ${fault} ${policy} ${model}: ${result.complaints.join('; ')}\n  ${repeat}\n`,
      );
    }
  } catch (error) {
    row.failed++;
    process.stdout.write(`run ${run} ${fault} ${policy} ${model}: ${String(error)}\n  ${repeat}\n`);
  }
}

let bad = 0;
for (const [fault, { runs: count, lost, failed, outputs, blackouts, gaps }] of tally) {
  const sorted = blackouts.sort((a, b) => a - b);
  const median = sorted[sorted.length >> 1] ?? 0;
  bad += failed;
  const apart =
    gaps.length === 0
      ? ''
      : `, sides at least ${Math.min(...gaps)} ms apart in ${gaps.length} runs`;
  process.stdout.write(
    `${fault}: ${count} runs, ${outputs} outputs, ${lost} lost, ${failed} failed, longest gap median ${median} ms, worst ${sorted.at(-1) ?? 0} ms${apart}\n`,
  );
}
process.exitCode = bad === 0 ? 0 : 1;
