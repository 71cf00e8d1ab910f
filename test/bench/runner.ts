/** Runs the sides of an experiment in turn (A B A B ...) after a warm-up of each, and summarizes what they gave. */
import type { Experiment, Metric, Sample } from './measure.ts';
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
  readonly commands: Readonly<Record<string, string>>;
  readonly metrics: readonly MetricResult[];
  readonly plot?: Experiment['plot'];
  /** What was left out or failed, in words. */
  readonly remarks: readonly string[];
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

/** @param runs counted runs of each side */
export async function runExperiment(
  experiment: Experiment,
  runs: number,
): Promise<ExperimentResult> {
  const { sides, metrics } = experiment;
  const rounds = experiment.runs ?? runs;
  const remarks = [...(experiment.skipped ?? [])];
  const samples = sides.map((): (Sample | undefined)[] => []);
  const failures = sides.map(() => 0);
  for (let round = experiment.warmUp === false ? 0 : -1; round < rounds; round++) {
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
