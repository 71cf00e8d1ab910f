/**
 * What a measure is: experiments, each of which runs one or more sides (tsvmm first, peers after it) that give the same metrics.
 * The runner interleaves the sides; a measure only says how one run of one side is done.
 */

/** Values of one run by metric name. A metric may be missing in a run or on a side. */
export type Sample = Readonly<Record<string, number>>;

/** One metric of an experiment. */
export interface Metric {
  readonly name: string;
  /** `ns`, `ms`, `MiB`, `/s` ...: how it is printed. */
  readonly unit: string;
  /** What the project wants of the ratio to a peer; printed beside it, never judged. */
  readonly aim?: { readonly side: string; readonly atMost?: number; readonly atLeast?: number };
}

/** One of the programs that are compared. */
export interface Side {
  readonly name: string;
  /** The command, as somebody would type it in the checkout. */
  readonly command: string;
  /** One run. @throws Error when it could not be measured */
  run(): Promise<Sample>;
}

/** {@link Experiment.seconds} of an experiment that does not say. */
export const SHARE_SECONDS = 10;

/** A comparison. */
export interface Experiment {
  readonly name: string;
  readonly metrics: readonly Metric[];
  /** The first one is tsvmm. */
  readonly sides: readonly Side[];
  /** What its counted rounds may take in a whole run, in seconds. Default {@link SHARE_SECONDS}. */
  readonly seconds?: number;
  /** Counted runs of each side where all of them are made together, whatever the share. */
  readonly rounds?: number;
  /** false: the first run of each side counts, because each one starts hosts of its own and runs them in before it measures. */
  readonly warmUp?: false;
  /** Where its medians stand: a plot of plots.ts, and the place on its axis of numbers. */
  readonly plot?: { readonly name: string; readonly x?: number };
  /** Sides or parts that are not here, and why. */
  readonly skipped?: readonly string[];
}

/** What a measure is told. */
export interface BenchContext {
  /** Fewer and shorter runs: shows that everything works, not how fast it is. */
  readonly quick: boolean;
  /** A folder for files; removed at the end. */
  readonly folder: string;
  readonly qemu: Qemu | undefined;
  readonly note: (line: string) => void;
}

/** The QEMU that stands beside. */
export interface Qemu {
  readonly path: string;
  readonly version: string;
  /** It has qboot, firmware that starts a kernel at once. */
  readonly qboot: boolean;
}

/** A measure, in a file of measures/. */
export interface Measure {
  readonly name: string;
  readonly title: string;
  /** Why it cannot run here, or undefined. */
  missing(context: BenchContext): string | undefined;
  experiments(context: BenchContext): Promise<readonly Experiment[]>;
}
