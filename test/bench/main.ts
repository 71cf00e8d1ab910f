/**
 * The benchmark's command line: `--only NAME[,NAME]`, `--match TEXT` (of an experiment's name), `--sides NAME[,NAME]`, `--json FILE`, `--plots DIR`,
 * `--runs N`, `--quick`, `--list`. Prints a table as it goes.
 * Never fails by a figure; the exit status is 1 only when nothing could be measured. What each measure means: docs/benchmarks.md.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { endAll, guestPath, ROOT } from './guest-run.ts';
import { findQemu, loadNow, machineFacts } from './machine-facts.ts';
import type { BenchContext, Measure } from './measure.ts';
import { blk } from './measures/blk.ts';
import { checkpoint } from './measures/checkpoint.ts';
import { exits } from './measures/exits.ts';
import { failover } from './measures/failover.ts';
import { kernels } from './measures/kernels.ts';
import { link } from './measures/link.ts';
import { net } from './measures/net.ts';
import { protectedGuest } from './measures/protected.ts';
import { start } from './measures/start.ts';
import { protectedTcp, tap } from './measures/tap.ts';
import { writePlots } from './plots.ts';
import { experimentLines } from './report.ts';
import { type ExperimentResult, part, runExperiment } from './runner.ts';

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
];
const RUNS = 7;
const RUNS_QUICK = 2;

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

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      only: { type: 'string' },
      match: { type: 'string' },
      sides: { type: 'string' },
      json: { type: 'string' },
      plots: { type: 'string' },
      runs: { type: 'string' },
      quick: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
    },
  });
  const print = (line: string): void => void process.stdout.write(`${line}\n`);
  if (values.list) {
    for (const { name, title } of MEASURES) print(`${name.padEnd(13)} ${title}`);
    return 0;
  }
  const runs = values.runs === undefined ? (values.quick ? RUNS_QUICK : RUNS) : Number(values.runs);
  if (!Number.isSafeInteger(runs) || runs < 1)
    throw new Error('--runs takes a whole number from 1');
  const measures = chosen(values.only);
  if (!existsSync(guestPath('hello'))) {
    throw new Error('the guests are not built: node firmware/build.mjs');
  }

  const qemu = findQemu();
  const facts = machineFacts(qemu);
  const qemuText = qemu?.version ?? 'QEMU is not installed: no ratios';
  print(
    `${facts.cpu}, ${facts.cpus} CPUs${facts.virtualized ? ' of a virtual machine' : ''}, ${facts.memoryMib} MiB`,
  );
  print(`Linux ${facts.kernel}, Node ${facts.node}, ${qemuText}`);
  print(`commit ${facts.commit}, ${facts.startedAt}, load ${facts.loadAtStart.toFixed(2)}`);
  print(
    `${runs} runs of each side, in turn, after one that is not counted; median [least..greatest]; ratio: tsvmm / peer, run by run`,
  );
  if (facts.loadAtStart > facts.cpus / 2)
    print('Others are using this machine: read the ratios, and those with care.');
  print('');

  // Beside the build and not in /tmp: that may be memory, which takes no direct I/O.
  const folder = mkdtempSync(join(ROOT, 'dist', 'bench-'));
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
  const results: Record<string, readonly ExperimentResult[]> = {};
  const skipped: Record<string, string> = {};
  const context: BenchContext = { quick: values.quick, folder, qemu, note: print };
  try {
    for (const measure of measures) {
      print(`== ${measure.title}`);
      const why = measure.missing(context);
      if (why !== undefined) {
        print(`skipped: ${why}\n`);
        skipped[measure.name] = why;
        continue;
      }
      const done: ExperimentResult[] = [];
      results[measure.name] = done;
      for (const whole of await measure.experiments(context)) {
        const experiment = part(whole, values.match, values.sides);
        if (experiment === undefined) continue;
        const result = await runExperiment(experiment, runs);
        done.push(result);
        for (const line of experimentLines(result)) print(line);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  facts.loadAtEnd = loadNow();
  print(`load at the end ${facts.loadAtEnd.toFixed(2)}`);
  if (values.json !== undefined) {
    const all = {
      format: 'tsvmm-bench-1',
      runs,
      quick: values.quick,
      machine: facts,
      results,
      skipped,
    };
    writeFileSync(values.json, `${JSON.stringify(all, null, 1)}\n`);
  }
  if (values.plots !== undefined) {
    const files = writePlots(values.plots, Object.values(results).flat());
    print(files.length === 0 ? 'nothing of what was measured has a plot' : files.join('\n'));
  }
  const measured = Object.values(results).some((list) =>
    list.some(({ metrics }) => metrics.length > 0),
  );
  return measured ? 0 : 1;
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`bench: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 2;
}
