/**
 * `npm run soak -- --runs N [--fault NAME] [--seed N] [--disk shared|replicate|both]`: failovers at random instants, every kind of fault in turn, and a tally. Ends
 * with status 1 if anything was lost; each failure prints the command that repeats it.
 */
import { Prng } from '../../src/base/prng.ts';
import { FAULTS, type FaultName, runScenario } from './scenario.ts';

const args = process.argv.slice(2);
const value = (name: string): string | undefined => {
  const at = args.indexOf(name);
  return at < 0 ? undefined : args[at + 1];
};
const runs = Number(value('--runs') ?? 200);
const seed = Number(value('--seed') ?? Date.now() % 1e9);
const only = value('--fault') as FaultName | undefined;
/** `shared`, `replicate`, or both in turn. */
const kept = value('--disk') ?? 'shared';
const policies = ['adaptive', 'kemari', 'periodic'] as const;
const models = ['virtio', 'e1000'] as const;
const tally = new Map<
  FaultName,
  { runs: number; lost: number; failed: number; outputs: number; blackouts: number[] }
>();

for (let run = 0; run < runs; run++) {
  const fault = only ?? FAULTS[run % FAULTS.length]!;
  const runSeed = seed + run;
  const random = new Prng(runSeed);
  const policy = random.pick(policies);
  const model = random.pick(models);
  const disks = kept === 'both' ? random.pick(['shared', 'replicate'] as const) : kept;
  const row = tally.get(fault) ?? { runs: 0, lost: 0, failed: 0, outputs: 0, blackouts: [] };
  tally.set(fault, row);
  row.runs++;
  const repeat = `npm run soak -- --runs 1 --fault ${fault} --seed ${runSeed} --disk ${kept}`;
  try {
    const result = await runScenario({
      fault,
      random,
      policy,
      model,
      disks: disks === 'replicate' ? 'replicate' : 'shared',
    });
    row.lost += result.lost;
    row.outputs += result.outputs;
    row.blackouts.push(result.blackoutMs);
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
for (const [fault, { runs: count, lost, failed, outputs, blackouts }] of tally) {
  const sorted = blackouts.sort((a, b) => a - b);
  const median = sorted[sorted.length >> 1] ?? 0;
  bad += failed;
  process.stdout.write(
    `${fault}: ${count} runs, ${outputs} outputs, ${lost} lost, ${failed} failed, longest gap median ${median} ms, worst ${sorted.at(-1) ?? 0} ms\n`,
  );
}
process.exitCode = bad === 0 ? 0 : 1;
