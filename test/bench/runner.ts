/** Runs the sides of an experiment in turn (A B A B ...) after a warm-up of each, and summarizes what they gave. */
import { type Experiment, type Metric, type Sample, SHARE_SECONDS } from './measure.ts';
import { pairRatio, type Summary, summarize } from './stats.ts';

/** One metric of one side. */
export interface SideResult {
  readonly side: string;
  readonly values: readonly number[];
  readonly summary: Summary;
  /** The first side's value over this one's, pair by pair; absent on the first side. */
  readonly ratio?: Summary;
}

/** One metric of all sides. */
export interface MetricResult {
  readonly metric: Metric;
  readonly sides: readonly SideResult[];
}

/** All that one experiment gave. */
export interface ExperimentResult {
  readonly name: string;
  /** Counted runs of each side. */
  readonly rounds: number;
  /** How long it took, the warm-up included. */
  readonly seconds: number;
  readonly commands: Readonly<Record<string, string>>;
  readonly metrics: readonly MetricResult[];
  readonly plot?: Experiment['plot'];
  /** What was left out or failed, in words. */
  readonly remarks: readonly string[];
}

/** How many counted rounds: as many as fit into the experiment's share of time, within bounds. */
export interface Rounds {
  readonly least: number;
  readonly most: number;
  /** What every share is multiplied with. */
  readonly scale?: number;
}

/** Failed runs after which a side is given up. */
const FAILURES_MAX = 2;

/**
 * The experiment with those of its sides that are asked for.
 * @param match what its name holds
 * @param sides names, separated by commas
 * @returns undefined when nothing of it is asked for
 */
export function part(
  experiment: Experiment,
  match: string | undefined,
  sides: string | undefined,
): Experiment | undefined {
  if (match !== undefined && !experiment.name.includes(match)) return undefined;
  if (sides === undefined) return experiment;
  const wanted = sides.split(',');
  const left = experiment.sides.filter(({ name }) => wanted.includes(name));
  return left.length === 0 ? undefined : { ...experiment, sides: left };
}

/** Runs all of an experiment. */
export async function runExperiment(
  experiment: Experiment,
  { least: wanted, most, scale = 1 }: Rounds,
): Promise<ExperimentResult> {
  const { sides, metrics } = experiment;
  const all = Math.min(most, experiment.rounds ?? most);
  const least = experiment.rounds ?? wanted;
  const share = (experiment.seconds ?? SHARE_SECONDS) * scale;
  const remarks = [...(experiment.skipped ?? [])];
  const samples = sides.map((): (Sample | undefined)[] => []);
  const failures = sides.map(() => 0);
  const begin = performance.now();
  const secondsSince = (from: number): number => (performance.now() - from) / 1000;
  let counting = begin;
  let rounds = 0;
  for (let round = experiment.warmUp === false ? 0 : -1; round < all; round++) {
    if (round === 0) counting = performance.now();
    // One more must fit, going by those before it.
    if (round >= least && (secondsSince(counting) * (round + 1)) / round > share) break;
    if (failures.every((count) => count >= FAILURES_MAX)) break;
    rounds = round + 1;
    for (const [i, side] of sides.entries()) {
      if (failures[i]! >= FAILURES_MAX) continue;
      let sample: Sample | undefined;
      try {
        sample = await side.run();
      } catch (error) {
        failures[i]!++;
        const why = error instanceof Error ? error.message : String(error);
        remarks.push(`${side.name}, run ${round + 1}: ${why}`);
      }
      // Round -1 warms caches and files up.
      if (round >= 0) samples[i]![round] = sample;
    }
  }
  return {
    name: experiment.name,
    rounds,
    seconds: secondsSince(begin),
    ...(experiment.plot && { plot: experiment.plot }),
    commands: Object.fromEntries(sides.map(({ name, command }) => [name, command])),
    metrics: metrics.flatMap((metric) => {
      const results = sides.flatMap(({ name }, i): SideResult[] => {
        const values = finite(samples[i]!, metric.name);
        if (values.length === 0) return [];
        const result = { side: name, values, summary: summarize(values) };
        if (i === 0) return [result];
        // Only rounds in which both gave a value are pairs.
        const first = samples[0]!;
        const pairs = [...Array(rounds).keys()].filter(
          (r) =>
            first[r]?.[metric.name] !== undefined && samples[i]![r]?.[metric.name] !== undefined,
        );
        const ratio = pairRatio(
          pairs.map((r) => first[r]![metric.name]!),
          pairs.map((r) => samples[i]![r]![metric.name]!),
        );
        return [ratio === undefined ? result : { ...result, ratio }];
      });
      return results.length === 0 ? [] : [{ metric, sides: results }];
    }),
    remarks,
  };
}

function finite(samples: readonly (Sample | undefined)[], name: string): number[] {
  const values: number[] = [];
  for (const sample of samples) {
    const value = sample?.[name];
    if (value !== undefined && Number.isFinite(value)) values.push(value);
  }
  return values;
}
