/**
 * The benchmark's command line: `--only NAME[,NAME]`, `--match TEXT` (of an experiment's name), `--sides NAME[,NAME]`, `--json FILE`, `--plots DIR`,
 * `--markdown FILE`, `--runs N`, `--minutes N`, `--quick`, `--list`, `--compare A.json B.json`. Prints a table as it goes.
 * Never fails by a figure; the exit status is 1 only when nothing could be measured. What each measure means: docs/benchmarks.md.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { compareLines, readBenchFile } from './compare.ts';
import { endAll, guestPath, ROOT } from './guest-run.ts';
import { findQemu, loadNow, machineFacts } from './machine-facts.ts';
import { type MeasureFigures, markdown, writeMarkdown } from './markdown.ts';
import { type BenchContext, type Measure, SHARE_SECONDS } from './measure.ts';
import { blk } from './measures/blk.ts';
import { checkpoint } from './measures/checkpoint.ts';
import { exits } from './measures/exits.ts';
import { failover } from './measures/failover.ts';
import { kernels } from './measures/kernels.ts';
import { link } from './measures/link.ts';
import { linux } from './measures/linux.ts';
import { net } from './measures/net.ts';
import { protectedGuest } from './measures/protected.ts';
import { start } from './measures/start.ts';
import { protectedTcp, tap } from './measures/tap.ts';
import { writePlots } from './plots.ts';
import { columns, experimentLines } from './report.ts';
import { type ExperimentResult, part, type Rounds, runExperiment } from './runner.ts';

const MEASURES: readonly Measure[] = [
  exits,
  blk,
  net,
  start,
  checkpoint,
  failover,
  kernels,
  protectedGuest,
  link,
  tap,
  protectedTcp,
  linux,
];
/** Counted runs of each side when the share of time decides: never fewer, and no more than the spread needs. */
const ROUNDS: Rounds = { least: 2, most: 15 };
const ROUNDS_QUICK: Rounds = { least: 1, most: 1 };
/** What the shares of all experiments amount to on a quiet machine of two CPUs, warm-ups included. */
const MINUTES = 21;

/** Measures by name, in the order of the list. @throws Error for a name that is none */
function chosen(only: string | undefined): readonly Measure[] {
  if (only === undefined) return MEASURES;
  const names = only.split(',');
  for (const name of names) {
    if (!MEASURES.some((measure) => measure.name === name)) {
      throw new Error(
        `no measure is named ${name}; there are ${MEASURES.map((m) => m.name).join(', ')}`,
      );
    }
  }
  return MEASURES.filter(({ name }) => names.includes(name));
}

const OPTIONS = {
  only: { type: 'string' },
  match: { type: 'string' },
  sides: { type: 'string' },
  json: { type: 'string' },
  markdown: { type: 'string' },
  plots: { type: 'string' },
  runs: { type: 'string' },
  minutes: { type: 'string' },
  quick: { type: 'boolean', default: false },
  list: { type: 'boolean', default: false },
  compare: { type: 'boolean', default: false },
} as const;

/** How many rounds the options ask for. @throws Error for a number that is none */
function roundsOf(runs: string | undefined, minutes: string | undefined, quick: boolean): Rounds {
  if (runs !== undefined) {
    const count = Number(runs);
    if (!Number.isSafeInteger(count) || count < 1)
      throw new Error('--runs takes a whole number from 1');
    return { least: count, most: count };
  }
  if (minutes === undefined) return quick ? ROUNDS_QUICK : ROUNDS;
  const scale = Number(minutes) / MINUTES;
  if (!(scale > 0)) throw new Error('--minutes takes a number above 0');
  return { ...ROUNDS, most: Math.ceil(ROUNDS.most * Math.max(1, scale)), scale };
}

function roundsText({ least, most }: Rounds): string {
  const runs = least === most ? `${least} runs` : `${least} to ${most} runs`;
  return `${runs} of each side, in turn, after one that is not counted; median [least..greatest]; ratio: tsvmm / peer, run by run`;
}

/** Experiments and their shares of time, without running any. */
async function list(
  measures: readonly Measure[],
  context: BenchContext,
  wanted: { match: string | undefined; sides: string | undefined },
  print: (line: string) => void,
): Promise<void> {
  let total = 0;
  for (const measure of measures) {
    print(`${measure.name.padEnd(13)} ${measure.title}`);
    const why = measure.missing(context);
    if (why !== undefined) {
      print(`  skipped: ${why}`);
      continue;
    }
    const rows: string[][] = [];
    for (const whole of await measure.experiments(context)) {
      const experiment = part(whole, wanted.match, wanted.sides);
      if (experiment === undefined) continue;
      const seconds = experiment.seconds ?? SHARE_SECONDS;
      total += seconds;
      const sides = experiment.sides.map(({ name }) => name).join(', ');
      rows.push([`  ${seconds} s`, experiment.name, sides]);
    }
    for (const line of columns(rows)) print(line);
  }
  print(`shares of time: ${(total / 60).toFixed(1)} min, and a warm-up of each side`);
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({ options: OPTIONS, allowPositionals: true });
  const print = (line: string): void => void process.stdout.write(`${line}\n`);
  if (values.compare) {
    if (positionals.length !== 2) throw new Error('--compare takes two files that --json wrote');
    const [first, second] = positionals.map(readBenchFile);
    for (const line of compareLines(first!, second!)) print(line);
    return 0;
  }
  if (positionals.length > 0) throw new Error(`what is ${positionals[0]}?`);
  const rounds = roundsOf(values.runs, values.minutes, values.quick);
  const measures = chosen(values.only);
  if (!existsSync(guestPath('hello'))) {
    throw new Error('the guests are not built: node firmware/build.mjs');
  }

  const qemu = findQemu();
  // Beside the build and not in /tmp: that may be memory, which takes no direct I/O.
  const folder = mkdtempSync(join(ROOT, 'dist', 'bench-'));
  const context: BenchContext = { quick: values.quick, folder, qemu, note: print };
  for (const [signal, status] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    process.once(signal, () => {
      endAll();
      rmSync(folder, { recursive: true, force: true });
      process.exit(status);
    });
  }
  const wanted = { match: values.match, sides: values.sides };
  const facts = machineFacts(qemu);
  const figures: MeasureFigures[] = [];
  const began = performance.now();
  try {
    if (values.list) {
      await list(measures, context, wanted, print);
      return 0;
    }
    const qemuText = qemu?.version ?? 'QEMU is not installed: no ratios';
    print(
      `${facts.cpu}, ${facts.cpus} CPUs${facts.virtualized ? ' of a virtual machine' : ''}, ${facts.memoryMib} MiB`,
    );
    print(`Linux ${facts.kernel}, Node ${facts.node}, ${qemuText}`);
    print(`commit ${facts.commit}, ${facts.startedAt}, load ${facts.loadAtStart.toFixed(2)}`);
    print(roundsText(rounds));
    if (facts.loadAtStart > facts.cpus / 2)
      print('Others are using this machine: read the ratios, and those with care.');
    print('');
    for (const measure of measures) {
      const { name, title } = measure;
      print(`== ${title}`);
      const skipped = measure.missing(context);
      if (skipped !== undefined) {
        print(`skipped: ${skipped}\n`);
        figures.push({ name, title, results: [], skipped });
        continue;
      }
      const results: ExperimentResult[] = [];
      figures.push({ name, title, results });
      for (const whole of await measure.experiments(context)) {
        const experiment = part(whole, wanted.match, wanted.sides);
        if (experiment === undefined) continue;
        const result = await runExperiment(experiment, rounds);
        results.push(result);
        for (const line of experimentLines(result)) print(line);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  facts.loadAtEnd = loadNow();
  const all = figures.flatMap(({ results }) => results);
  print('seconds by part:');
  const parts = figures.map(({ name, results }) => {
    const seconds = results.reduce((sum, result) => sum + result.seconds, 0);
    return [`  ${name}`, seconds.toFixed(0).padStart(5), `${results.length} experiments`];
  });
  for (const line of columns(parts)) print(line);
  const minutes = (performance.now() - began) / 60_000;
  print(`${minutes.toFixed(1)} min in all; load at the end ${facts.loadAtEnd.toFixed(2)}`);
  if (values.json !== undefined) {
    const content = {
      format: 'tsvmm-bench-1',
      rounds,
      quick: values.quick,
      minutes,
      machine: facts,
      results: Object.fromEntries(figures.map(({ name, results }) => [name, results])),
      skipped: Object.fromEntries(
        figures.flatMap(({ name, skipped }) => (skipped === undefined ? [] : [[name, skipped]])),
      ),
    };
    writeFileSync(values.json, `${JSON.stringify(content, null, 1)}\n`);
  }
  if (values.markdown !== undefined) writeMarkdown(values.markdown, markdown(facts, figures));
  if (values.plots !== undefined) {
    const files = writePlots(values.plots, all);
    print(files.length === 0 ? 'nothing of what was measured has a plot' : files.join('\n'));
  }
  return all.some(({ metrics }) => metrics.length > 0) ? 0 : 1;
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`bench: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 2;
}
