// `npm run fuzz -- [--seconds N] [--runs N] [--seed N] [--jobs N] [NAME...]`: the fuzzers of registry.ts, each for so
// many seconds (or so many runs), from one seed on, which is printed. Says what each has reached. A failure prints the
// command that repeats it; the others still run, and the end is 1. A fuzzer that does not get to the places that it is
// there for has failed too.
import { fork } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { Coverage } from './coverage.ts';
import { type Fuzzer, fuzzers } from './registry.ts';

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

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

/** What a process that fuzzes tells the first one. */
type Report = { readonly begins: string; readonly seed: number } | { readonly counts: Counts };

/** A run that takes longer than this hangs: runs are made for a tenth of a second. */
const HANG_MS = 60_000;

const say = (line: string): void => void process.stdout.write(`fuzz: ${line}\n`);
const tell = (report: Report): void => void process.send?.(report);

function repeatedBy(name: string, seed: number): void {
  say(`again by: npm run fuzz -- --runs 1 --seed ${seed} ${name}`);
}

function failed(name: string, seed: number, error: unknown): void {
  const stack = error instanceof Error ? error.stack : String(error);
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause.stack : '';
  say(`${name} FAILED: ${stack}\n${cause}`);
  repeatedBy(name, seed);
}

/** One fuzzer, for its time. Returns whether all held. */
async function fuzz(fuzzer: Fuzzer): Promise<boolean> {
  const { name, rounds, deep } = fuzzer;
  const seen = new Coverage();
  const start = performance.now();
  let turn = 0;
  const escaped = (error: unknown): void => {
    failed(name, first + turn, error);
    process.exit(1);
  };
  // What is thrown in a callback reaches nobody else.
  process.on('uncaughtException', escaped);
  try {
    const goesOn = (): boolean =>
      runs === undefined ? performance.now() - start < seconds * 1000 : turn < runs;
    for (; turn === 0 || goesOn(); turn++) {
      tell({ begins: name, seed: first + turn });
      try {
        await fuzzer.run(first + turn, rounds, seen);
      } catch (error) {
        failed(name, first + turn, error);
        return false;
      }
    }
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
  if (runs !== undefined || missing.length === 0) return true;
  say(`${name} FAILED: it does not get to: ${missing.join(', ')}`);
  return false;
}

async function fuzzAll(): Promise<void> {
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 };
  for (const fuzzer of chosen) counts[(await fuzz(fuzzer)) ? 'passed' : 'failed']++;
  tell({ counts });
}

/** Another process fuzzes `names`; this one sees when it hangs. */
function job(names: readonly string[], total: Counts): Promise<void> {
  const amount = runs === undefined ? `--seconds=${seconds}` : `--runs=${runs}`;
  const places = options.places ? ['--places'] : [];
  const args = [amount, `--seed=${first}`, ...places, ...names];
  return new Promise((resolve) => {
    const child = fork(fileURLToPath(import.meta.url), args);
    let counts: Counts | undefined;
    let timer: NodeJS.Timeout | undefined;
    child.on('message', (message) => {
      const report = message as Report;
      clearTimeout(timer);
      if ('counts' in report) {
        counts = report.counts;
        return;
      }
      timer = setTimeout(() => {
        say(`${report.begins} FAILED: it hangs`);
        repeatedBy(report.begins, report.seed);
        child.kill('SIGKILL');
      }, HANG_MS);
    });
    child.on('close', () => {
      clearTimeout(timer);
      total.passed += counts?.passed ?? 0;
      total.failed += counts?.failed ?? 1;
      resolve();
    });
  });
}

async function share(): Promise<never> {
  const total: Counts = { passed: 0, failed: 0, skipped: 0 };
  const jobs = Math.min(Number(options.jobs), chosen.length);
  say(`seed ${first}, ${runs === undefined ? `${seconds} s` : `${runs} runs`} each`);
  await Promise.all(
    Array.from({ length: jobs }, (_, i) => {
      const part = chosen.filter((_fuzzer, at) => at % jobs === i);
      return job(
        part.map(({ name }) => name),
        total,
      );
    }),
  );
  say(`${total.passed} held, ${total.failed} failed`);
  const report = process.env.TSVMM_TEST_COUNTS;
  if (report !== undefined) writeFileSync(report, JSON.stringify(total));
  process.exit(total.failed === 0 ? 0 : 1);
}

if (process.send === undefined) await share();
else {
  await fuzzAll();
  // Something a fuzzer left behind may keep the loop alive.
  process.disconnect();
  process.exit(0);
}
