/**
 * Shares fuzzers among processes and gathers what they find. A process that hangs or dies takes only the fuzzer along
 * that it was at: another one goes on with the rest. Slowness is no failure: what seems to hang is tried again when
 * nothing else runs, with far more time, and counts only if it hangs then too. Called by main.ts.
 */
import { fork } from 'node:child_process';

/** What a process that fuzzes tells the first one: each run, and for each of its fuzzers, in their order, a verdict. */
export type Report =
  | { readonly begins: string; readonly seed: number }
  | { readonly held: string }
  | ({ readonly failed: string } & Finding);

/** What was found, and how to see it again. */
export interface Finding {
  /** One line. */
  readonly why: string;
  /** Arguments that repeat it, without the name. */
  readonly again: string;
}

export interface Failure extends Finding {
  readonly name: string;
}

/** What became of each fuzzer. */
export interface Verdicts {
  readonly held: string[];
  readonly failures: Failure[];
}

export interface JobsOptions {
  /** A module that fuzzes what its arguments name, from the seed in `--seed=N`, and sends {@link Report}s. */
  readonly program: string;
  /** Arguments in front of the seed and the names. */
  readonly args: readonly string[];
  readonly names: readonly string[];
  readonly seed: number;
  readonly jobs: number;
  /** A run that takes longer than this seems to hang. */
  readonly hangMs: number;
  /** A run that takes longer than this, alone, hangs. */
  readonly aloneMs: number;
  readonly say: (line: string) => void;
}

/** How a process ended. */
interface End {
  /** How many of its fuzzers have their verdicts. */
  readonly judged: number;
  /** Whether it was at the next one. */
  readonly began: boolean;
  readonly hung: boolean;
  /** Of the last run. */
  readonly seed: number;
  /** Why the next one has no verdict. */
  readonly finding: Finding;
}

/** The command that repeats a failure. */
export function repeatedBy({ name, again }: Failure): string {
  return `npm run fuzz -- ${again} ${name}`;
}

/** Runs all fuzzers. */
export async function fuzzInJobs(options: JobsOptions): Promise<Verdicts> {
  const { names, jobs, seed, hangMs, aloneMs, say } = options;
  const verdicts: Verdicts = { held: [], failures: [] };
  const slow: { readonly name: string; readonly seed: number }[] = [];
  const fail = (failure: Failure): void => {
    say(`${failure.name} FAILED: ${failure.why}`);
    say(`again by: ${repeatedBy(failure)}`);
    verdicts.failures.push(failure);
  };
  const job = async (part: readonly string[]): Promise<void> => {
    for (let left = part; left.length > 0; ) {
      const end = await inProcess(options, left, seed, hangMs, verdicts);
      left = left.slice(end.judged);
      const name = left[0];
      // A process may end after a failure; one that gets to nothing would do so for ever.
      if (name === undefined || (end.judged > 0 && !end.began)) continue;
      left = left.slice(1);
      if (!end.hung) fail({ name, ...end.finding });
      else {
        say(`${name} seems to hang at seed ${end.seed}; it is tried again alone`);
        slow.push({ name, seed: end.seed });
      }
    }
  };
  const parts = Array.from({ length: jobs }, (_, i) =>
    names.filter((_name, at) => at % jobs === i),
  );
  await Promise.all(parts.map(job));
  for (const { name, seed: at } of slow) {
    const end = await inProcess(options, [name], at, aloneMs, verdicts);
    if (end.judged === 0) fail({ name, ...end.finding });
    else say(`${name} was slow at seed ${at}; alone it ends`);
  }
  return verdicts;
}

/** Lets a process fuzz `names` and takes its verdicts. */
function inProcess(
  { program, args }: JobsOptions,
  names: readonly string[],
  seed: number,
  limitMs: number,
  { held, failures }: Verdicts,
): Promise<End> {
  return new Promise((resolve) => {
    const child = fork(program, [...args, `--seed=${seed}`, ...names]);
    let judged = 0;
    let began = false;
    let at = seed;
    let hung = false;
    const timer = setTimeout(() => {
      hung = true;
      child.kill('SIGKILL');
    }, limitMs);
    child.on('message', (message) => {
      const report = message as Report;
      timer.refresh();
      if ('begins' in report) {
        at = report.seed;
        began = true;
        return;
      }
      judged++;
      began = false;
      if ('held' in report) held.push(report.held);
      else failures.push({ name: report.failed, why: report.why, again: report.again });
    });
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      const why = hung ? 'it hangs' : `its process ended with ${signal ?? `status ${code}`}`;
      resolve({ judged, began, hung, seed: at, finding: { why, again: `--runs 1 --seed ${at}` } });
    });
  });
}
