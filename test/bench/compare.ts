/** Two results of the benchmark side by side: whether what one run says is what another says. `npm run bench -- --compare A.json B.json`. */
import { readFileSync } from 'node:fs';
import { columns, met } from './report.ts';
import type { ExperimentResult, SideResult } from './runner.ts';
import type { Summary } from './stats.ts';

/** What `--json` writes, as far as a comparison needs it. */
export interface BenchFile {
  readonly format: 'tsvmm-bench-1';
  readonly machine: {
    readonly commit: string;
    readonly startedAt: string;
    readonly loadAtStart: number;
    readonly loadAtEnd?: number;
  };
  readonly results: Readonly<Record<string, readonly ExperimentResult[]>>;
}

/** Reads a result. @throws Error when it is none */
export function readBenchFile(path: string): BenchFile {
  let content: Partial<BenchFile> | null;
  try {
    content = JSON.parse(readFileSync(path, 'utf8')) as Partial<BenchFile> | null;
  } catch (error) {
    throw new Error(`cannot read ${path}: ${error instanceof Error ? error.message : error}`);
  }
  if (
    content?.format !== 'tsvmm-bench-1' ||
    typeof content.results !== 'object' ||
    typeof content.machine !== 'object'
  ) {
    throw new Error(`${path} is not what --json writes`);
  }
  return content as BenchFile;
}

/** One ratio of both results. */
export interface RatioPair {
  readonly experiment: string;
  readonly metric: string;
  readonly side: string;
  readonly first: Summary;
  readonly second: Summary;
  /** The two ranges have a point in common, or nearly. */
  readonly overlap: boolean;
  /** Each median lies in the other's range. */
  readonly within: boolean;
  /** Whether the median meets the aim, in each; undefined without an aim. */
  readonly aimMet?: readonly [boolean, boolean];
}

/** A comparison of two results. */
export interface Comparison {
  readonly pairs: readonly RatioPair[];
  /** Ratios that only one of the two has: experiment, metric and side. */
  readonly onlyFirst: readonly string[];
  readonly onlySecond: readonly string[];
}

/** Relative difference that is none: what is nearly the same in each run has a range of nothing. */
const SAME = 0.02;
const inRange = (value: number, { min, max }: Summary): boolean =>
  value * (1 + SAME) >= min && value <= max * (1 + SAME);

type Rated = readonly [result: ExperimentResult, metricAt: number, side: SideResult];

/** All ratios of a result by experiment, metric and side. */
function ratios({ results }: BenchFile): Map<string, Rated> {
  const found = new Map<string, Rated>();
  for (const result of Object.values(results).flat()) {
    for (const [at, { metric, sides }] of result.metrics.entries()) {
      for (const side of sides) {
        if (side.ratio === undefined) continue;
        found.set(`${result.name}: ${metric.name}, ${side.side}`, [result, at, side]);
      }
    }
  }
  return found;
}

/** Compares every ratio that both have. */
export function compare(first: BenchFile, second: BenchFile): Comparison {
  const a = ratios(first);
  const b = ratios(second);
  const pairs: RatioPair[] = [];
  for (const [key, [result, at, { side, ratio }]] of a) {
    const other = b.get(key)?.[2].ratio;
    if (other === undefined) continue;
    const mine = ratio!;
    const { metric } = result.metrics[at]!;
    pairs.push({
      experiment: result.name,
      metric: metric.name,
      side,
      first: mine,
      second: other,
      overlap: mine.min <= other.max * (1 + SAME) && other.min <= mine.max * (1 + SAME),
      within: inRange(mine.median, other) && inRange(other.median, mine),
      ...(metric.aim?.side === side && { aimMet: [met(metric, mine), met(metric, other)] }),
    });
  }
  return {
    pairs,
    onlyFirst: [...a.keys()].filter((key) => !b.has(key)),
    onlySecond: [...b.keys()].filter((key) => !a.has(key)),
  };
}

/**
 * How likely the ranges of two samples of the same thing have nothing in common: all values of one lie below the other's. For two
 * rounds beside two that is a third, from four on next to nothing.
 */
export function apartByChance(first: number, second: number): number {
  let orders = 1;
  for (let i = 1; i <= second; i++) orders *= (first + i) / i;
  return 2 / orders;
}

const text = ({ median, min, max }: Summary): string =>
  `${median.toFixed(2)} [${min.toFixed(2)}..${max.toFixed(2)}]`;

function verdict({ overlap, within, first, second, aimMet }: RatioPair): string {
  const words = [];
  if (!overlap) words.push(`APART by ${(100 * (second.median / first.median - 1)).toFixed(0)} %`);
  else words.push(within ? 'agree' : 'overlap');
  if (aimMet !== undefined && aimMet[0] !== aimMet[1]) words.push('aim met in one of the two');
  return words.join(', ');
}

/** A comparison as lines for people; the last one sums it up. */
export function compareLines(first: BenchFile, second: BenchFile): string[] {
  const { pairs, onlyFirst, onlySecond } = compare(first, second);
  const lines = [first, second].map(({ machine }, i) => {
    const end = machine.loadAtEnd === undefined ? '' : ` to ${machine.loadAtEnd.toFixed(2)}`;
    const load = `load ${machine.loadAtStart.toFixed(2)}${end}`;
    return `${i === 0 ? 'first ' : 'second'}: commit ${machine.commit}, ${machine.startedAt}, ${load}`;
  });
  const rows: string[][] = [['', '', 'first', 'second', '']];
  let experiment = '';
  const flush = (): void => {
    if (experiment !== '') lines.push('', experiment, ...columns(rows.splice(0)));
  };
  for (const pair of pairs) {
    if (pair.experiment !== experiment) {
      flush();
      experiment = pair.experiment;
    }
    rows.push([`  ${pair.metric}`, pair.side, text(pair.first), text(pair.second), verdict(pair)]);
  }
  flush();
  lines.push('');
  for (const [which, only] of [
    ['first', onlyFirst],
    ['second', onlySecond],
  ] as const) {
    for (const name of only) lines.push(`only in the ${which}: ${name}`);
  }
  const count = (test: (pair: RatioPair) => boolean): number => pairs.filter(test).length;
  const percent = (part: number): string =>
    pairs.length === 0 ? '' : ` (${((100 * part) / pairs.length).toFixed(0)} %)`;
  const overlap = count((pair) => pair.overlap);
  const aims = count(({ aimMet }) => aimMet !== undefined);
  const same = count(({ aimMet }) => aimMet !== undefined && aimMet[0] === aimMet[1]);
  const chance = pairs.reduce(
    (sum, pair) => sum + apartByChance(pair.first.count, pair.second.count),
    0,
  );
  lines.push(
    `${pairs.length} ratios in both: the ranges of ${overlap}${percent(overlap)} overlap ` +
      `(of so few rounds ${chance.toFixed(0)} would be apart by chance, ${pairs.length - overlap} are), ` +
      `each median lies in the other's range in ${count((pair) => pair.within)}; ` +
      `${same} of ${aims} aims with the same verdict`,
  );
  return lines;
}
