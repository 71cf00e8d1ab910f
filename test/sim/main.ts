/**
 * The simulator's command line: `--seed N` (one seed, or the first of several), `--runs M`, `--planted NAME`,
 * `--disks shared|replicated` (on all seeds; else as each says), `--trace` (what happened, line by line). Exit status 1 when a promise was broken; with `--planted` 1 when the
 * bug was not found.
 */
import { parseArgs } from 'node:util';
import { PLANTED, type Planted } from './planted.ts';
import { repeatCommand, runSeed } from './run.ts';

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string' },
      runs: { type: 'string' },
      planted: { type: 'string' },
      disks: { type: 'string' },
      trace: { type: 'boolean', default: false },
    },
  });
  const bug = values.planted;
  if (bug !== undefined && !(bug in PLANTED)) {
    console.error(`No bug named ${bug}. There are: ${Object.keys(PLANTED).join(', ')}.`);
    return 2;
  }
  const planted = bug as Planted | undefined;
  const given = values.seed === undefined ? undefined : Number(values.seed);
  const first = given ?? Math.floor(Math.random() * 2 ** 31);
  const runs = values.runs === undefined ? (given === undefined ? 1000 : 1) : Number(values.runs);
  if (!Number.isSafeInteger(first) || !Number.isSafeInteger(runs) || runs < 1) {
    console.error('--seed and --runs take whole numbers.');
    return 2;
  }
  const { disks } = values;
  if (disks !== undefined && disks !== 'shared' && disks !== 'replicated') {
    console.error('--disks takes shared or replicated.');
    return 2;
  }
  const replicated = disks === undefined ? undefined : disks === 'replicated';
  const started = performance.now();
  const cpu = process.cpuUsage();
  const sum = {
    outputs: 0,
    answered: 0,
    repeated: 0,
    takeovers: 0,
    returns: 0,
    coldStarts: 0,
    faults: 0,
  };
  for (let i = 0; i < runs; i++) {
    const seed = first + i;
    const trace: string[] | undefined = values.trace ? [] : undefined;
    const { failure, tally } = await runSeed(seed, { bug: planted, trace, replicated });
    if (trace !== undefined) console.log(trace.join('\n'));
    if (failure !== undefined) {
      if (planted !== undefined) {
        console.log(`Found ${planted} in ${i + 1} seeds: ${failure.split('\n')[0]}`);
        console.log(`Again: ${repeatCommand(seed, planted)}`);
        return 0;
      }
      console.error(`Seed ${seed}: ${failure}`);
      console.error(`Again: ${repeatCommand(seed, undefined, disks)}`);
      return 1;
    }
    for (const key of Object.keys(sum) as (keyof typeof sum)[]) sum[key] += tally![key];
  }
  if (planted !== undefined) {
    console.error(`${planted} was not found in ${runs} seeds from ${first}.`);
    return 1;
  }
  const seconds = (performance.now() - started) / 1000;
  const perMinute = Math.round((runs / seconds) * 60);
  const spent = process.cpuUsage(cpu);
  const perCpuMinute = Math.round((runs / (spent.user + spent.system)) * 60e6);
  console.log(
    `${runs} seeds from ${first}: nothing broken. ${perMinute} seeds a minute, ${perCpuMinute} a minute of CPU time.`,
  );
  console.log(
    `${sum.faults} faults, ${sum.takeovers} takeovers, ${sum.returns} returns, ${sum.coldStarts} guests lost to double failures; ` +
      `${sum.outputs} outputs, ${sum.answered} requests answered, ${sum.repeated} frames repeated.`,
  );
  return 0;
}

process.exitCode = await main();
