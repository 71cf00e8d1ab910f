// `npm run fuzz -- [--seconds N] [--runs N] [--seed N] [--jobs N] [NAME...]`: the fuzzers of registry.ts, each for so
// many seconds (or so many runs), from one seed on, which is printed. Says what each has reached. A failure does not
// keep the others from running; at the very end each one is told again with the command that repeats it, and the end
// is 1. A fuzzer that does not get to the places that it is there for has failed too.
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { Coverage } from './coverage.ts';
import { type Finding, fuzzInJobs, type Report, repeatedBy } from './jobs.ts';
import { type Fuzzer, fuzzers } from './registry.ts';

const program = new Command('npm run fuzz --')
  .description('Fuzz what guests, peers and operators can hand to tsvmm.')
  .argument('[name...]', `which: ${fuzzers.map(({ name }) => name).join(', ')} (default all)`)
  .option('--seconds <n>', 'how long each', '60')
  .option('--runs <n>', 'how many runs each, instead of a time')
  .option('--seed <n>', 'first seed (default: from the clock)')
  .option('--jobs <n>', 'processes that share the fuzzers', '1')
  .option('--places', 'list the places that each has reached')
  .showHelpAfterError()
  .parse();

const options = program.opts<{
  seconds: string;
  runs?: string;
  seed?: string;
  jobs: string;
  places?: true;
}>();
const first = options.seed === undefined ? Date.now() % 1_000_000_000 : Number(options.seed);
const unknown = program.args.filter((name) => !fuzzers.some((fuzzer) => fuzzer.name === name));
if (unknown.length > 0) program.error(`there is no fuzzer ${unknown.join(', ')}`);
for (const name of ['seconds', 'runs', 'jobs'] as const) {
  const value = options[name];
  if (value !== undefined && !(Number(value) > 0)) {
    program.error(`--${name} ${value}: must be a number above 0`);
  }
}
if (!Number.isSafeInteger(first)) program.error(`--seed ${options.seed}: must be a whole number`);
const seconds = Number(options.seconds);
const runs = options.runs === undefined ? undefined : Number(options.runs);
const chosen = fuzzers.filter(
  ({ name }) => program.args.length === 0 || program.args.includes(name),
);

/** A run that takes longer than this seems to hang: runs are made for a tenth of a second. */
const HANG_MS = 60_000;
/** And when nothing else runs, it does. */
const ALONE_MS = 300_000;
/**
 * A fuzzer that has not got to all of its places in this many runs, whatever time they take, has gone blind. Each
 * place is reached by at least a twentieth of the runs.
 */
const BLIND_RUNS = 300;

const say = (line: string): void => void process.stdout.write(`fuzz: ${line}\n`);

/** Tells the first process; resolves when it is told. */
function tell(report: Report): Promise<void> {
  return new Promise((resolve) => process.send?.(report, () => resolve()));
}

/** Something was thrown that no fuzzer catches; the process is about to end. */
let lost = false;

/** An error and what caused it in one line. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const message = error.message || error.name;
  const cause = error.cause === undefined ? '' : reasonOf(error.cause);
  const line = (message.includes(cause) ? message : `${message}: ${cause}`).replaceAll(/\s+/g, ' ');
  return line.length > 300 ? `${line.slice(0, 300)}...` : line;
}

/** Says all of an error. */
function found(name: string, seed: number, error: unknown): Finding {
  const stack = error instanceof Error ? error.stack : String(error);
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause.stack : '';
  say(`${name} FAILED: ${stack}\n${cause}`);
  return { why: reasonOf(error), again: `--runs 1 --seed ${seed}` };
}

/** One fuzzer, for its time. Returns what it found, if anything. */
async function fuzz(fuzzer: Fuzzer): Promise<Finding | undefined> {
  const { name, rounds, deep } = fuzzer;
  const seen = new Coverage();
  const start = performance.now();
  let turn = 0;
  const escaped = (error: unknown): void => {
    if (lost) return;
    // Nobody knows what state this process is in: it says this, and no more.
    lost = true;
    void tell({ failed: name, ...found(name, first + turn, error) }).then(() => process.exit(1));
  };
  // What is thrown in a callback reaches nobody else.
  process.on('uncaughtException', escaped);
  const goesOn = (): boolean => {
    if (turn === 0) return true;
    if (runs !== undefined) return turn < runs;
    if (performance.now() - start < seconds * 1000) return true;
    return turn < BLIND_RUNS && seen.missing(deep).length > 0;
  };
  try {
    for (; goesOn(); turn++) {
      // Also lets the loop turn, without which reports may wait in this process.
      await tell({ begins: name, seed: first + turn });
      await fuzzer.run(first + turn, rounds, seen);
    }
  } catch (error) {
    return found(name, first + turn, error);
  } finally {
    process.off('uncaughtException', escaped);
  }
  const took = ((performance.now() - start) / 1000).toFixed(1);
  const missing = seen.missing(deep);
  const reached = `${deep.length - missing.length} of ${deep.length} deep`;
  const counted = `${seen.cases} cases in ${turn} runs, ${seen.places.size} places (${reached})`;
  say(`${name.padEnd(14)} ${took.padStart(6)} s  ${counted}`);
  if (options.places) {
    for (const [place, times] of [...seen.places].sort()) say(`  ${place}: ${times}`);
  }
  if (runs !== undefined || missing.length === 0) return undefined;
  const why = `it does not get to: ${missing.join(', ')} (in ${turn} runs)`;
  say(`${name} FAILED: ${why}`);
  return { why, again: `--seconds ${seconds} --seed ${first}` };
}

/** As a process that another one has started. */
async function fuzzAll(): Promise<void> {
  process.on('disconnect', () => process.exit(1));
  for (const fuzzer of chosen) {
    const { name } = fuzzer;
    const finding = await fuzz(fuzzer);
    if (lost) return new Promise(() => {});
    await tell(finding === undefined ? { held: name } : { failed: name, ...finding });
  }
}

async function share(): Promise<number> {
  say(`seed ${first}, ${runs === undefined ? `${seconds} s` : `${runs} runs`} each`);
  const { held, failures } = await fuzzInJobs({
    program: fileURLToPath(import.meta.url),
    args: [
      runs === undefined ? `--seconds=${seconds}` : `--runs=${runs}`,
      ...(options.places ? ['--places'] : []),
    ],
    names: chosen.map(({ name }) => name),
    seed: first,
    jobs: Math.min(Number(options.jobs), chosen.length),
    hangMs: HANG_MS,
    aloneMs: ALONE_MS,
    say,
  });
  say(`${held.length} held, ${failures.length} failed`);
  // The last words, because often nothing but the end of an output is kept.
  const told = failures.flatMap((failure) => [
    `${failure.name} FAILED: ${failure.why}`,
    `again by: ${repeatedBy(failure)}`,
  ]);
  for (const line of told) say(line);
  const report = process.env.TSVMM_TEST_COUNTS;
  const counts = { passed: held.length, failed: failures.length, skipped: 0 };
  if (report !== undefined) writeFileSync(report, JSON.stringify({ ...counts, told }));
  return failures.length === 0 ? 0 : 1;
}

if (process.send === undefined) process.exitCode = await share();
else {
  await fuzzAll();
  // Something a fuzzer left behind may keep the loop alive.
  process.exit(0);
}
