// `npm run test:lab [-- FILTER...]`: tests the lab itself from outside, then runs the tests marked for it
// (lab-tests.ts), a lab for each file or a few. With filters (vitest's, parts of file names) only the tests in the lab run. Where
// the lab cannot run, it says why, counts its tests as skipped and ends with 0; TSVMM_REQUIRE_LAB=1
// makes that a failure (.ci/run sets it). Writes its counts to the file named by TSVMM_TEST_COUNTS.
//
// The lab's TSC is one clock for all its CPUs, but its kernel cannot prove that and takes hpet instead.
// With hpet, guests with two vCPUs were seen not to reach their shell now and then, under QEMU as well;
// whether the clock is why is not known. The tests run with tsc=reliable; TSVMM_LAB_CLOCK=hpet runs them
// the other way.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';
import { add, type Counts, closingLine, countsOf, noTests } from '../vitest-counts.ts';
import { grubDisk, networkProgram } from './boot-images.ts';
import { image, imageNames } from './images.ts';
import { kernel } from './kernels.ts';
import { type LabRun, labRuns } from './lab-tests.ts';
import { runInLab } from './machine.ts';
import { LabError, repositoryRoot, whyNoLab } from './tools.ts';

/** Larger downloads than usual were asked for (`npm run soak -- --lab`). */
const downloadMib = Number(process.env.TSVMM_LAB_DOWNLOAD_MIB ?? 0);
/** More than the tests of one file take on a machine that has other work as well. */
const labTimeoutSeconds = 1500 + 24 * downloadMib;
/** Longer than any single test may be silent: above the test timeout of vitest.lab.config.ts. */
const silenceMs = 6.5 * 60_000 + downloadMib * 12_000;

/**
 * CPUs of each lab. With one, the lab's processes cannot interrupt each other's CPU, which is when QEMU's software CPU goes
 * wrong most; a lab then also needs less than half the host's time for the same tests. TSVMM_LAB_CPUS=2 runs them the other way.
 */
const labCpus = Number(process.env.TSVMM_LAB_CPUS ?? 1);
/** Labs that run at the same time: what the host has CPUs and memory for. */
const labsAtOnce = Math.max(
  1,
  Math.min(2, Math.floor(availableParallelism() / labCpus), Math.floor(freemem() / (7 * 2 ** 30))),
);

const root = repositoryRoot();
const work = mkdtempSync(join(tmpdir(), 'tsvmm-test-lab-'));

/** Tests in the sources under a directory, by their names; only used for counting what is skipped. */
function testsIn(directory: string, suffix: string): number {
  let tests = 0;
  for (const name of readdirSync(join(root, directory), { recursive: true, encoding: 'utf8' })) {
    if (!name.endsWith(suffix)) continue;
    const text = readFileSync(join(root, directory, name), 'utf8');
    tests += [...text.matchAll(/^\s*(it|test)(\.\w+)*\(/gm)].length;
  }
  return tests;
}

/** Downloads and builds all that the tests need; says why in a sentence when that is impossible. */
function prepare(): string | undefined {
  const reason = whyNoLab();
  if (reason !== undefined) return reason;
  try {
    kernel('generic');
    kernel('cloud');
  } catch (error) {
    if (error instanceof LabError) return error.message;
    throw error;
  }
  for (const name of imageNames) {
    try {
      image(name);
    } catch (error) {
      if (!(error instanceof LabError)) throw error;
      process.stdout.write(`lab: no guest \`${name}\`, its tests are skipped: ${error.message}\n`);
    }
  }
  for (const make of [grubDisk, networkProgram]) {
    try {
      make();
    } catch (error) {
      if (!(error instanceof LabError)) throw error;
      process.stdout.write(`lab: some boot tests are skipped: ${error.message}\n`);
    }
  }
  return undefined;
}

async function outside(): Promise<Counts> {
  const report = join(work, 'host.json');
  const args = vitest('vitest.lab-host.config.ts', report);
  const child = spawn(process.execPath, args, {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  await new Promise((done) => child.on('close', done));
  return countsOf(report);
}

/** Passes whole lines on, each behind the lab's name, and calls `stalled` when nothing has come for {@link silenceMs}. */
function watched(name: string, target: NodeJS.WritableStream, stalled?: () => void): Writable {
  const watch = () => (stalled === undefined ? undefined : setTimeout(stalled, silenceMs));
  let timer = watch();
  const decoder = new StringDecoder();
  let rest = '';
  return new Writable({
    write(chunk: Buffer, _encoding, done) {
      clearTimeout(timer);
      timer = watch();
      const lines = (rest + decoder.write(chunk)).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) target.write(`${name}| ${line}\n`);
      done();
    },
    destroy(error, done) {
      clearTimeout(timer);
      if (rest !== '') target.write(`${name}| ${rest}\n`);
      rest = '';
      done(error);
    },
  });
}

/** Runs test files in a lab of their own; the told also say how that lab came to no good end. */
async function insideOnce({ name, files }: LabRun, attempt: number): Promise<Counts> {
  const out = join(work, `out-${name.replaceAll(/\W/g, '_')}-${attempt}`);
  const report = join(out, 'lab.json');
  const ended = new AbortController();
  const told: string[] = [];
  const interrupt = (): void => {
    interrupted = true;
    ended.abort();
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, interrupt);
  const stdout = watched(name, process.stdout, () => {
    process.stdout.write(
      `lab: nothing heard from ${name} for ${silenceMs / 60_000} minutes; the lab is ended\n`,
    );
    ended.abort();
  });
  const stderr = watched(name, process.stderr);
  try {
    await runInLab({
      command: [process.execPath, ...vitest('vitest.lab.config.ts', report), ...files],
      cwd: root,
      cpus: labCpus,
      memoryMib: 6144,
      timeoutSeconds: labTimeoutSeconds,
      tscReliable: process.env.TSVMM_LAB_CLOCK !== 'hpet',
      verbose: false,
      outDirectory: out,
      stdout,
      stderr,
      note: (text) => told.push(`${name}: ${text}`),
      signal: ended.signal,
    });
  } catch (error) {
    if (!(error instanceof LabError)) throw error;
    told.push(`${name}: ${excerpt(error.message)}`);
    process.stdout.write(`lab: ${name}: ${error.message}\n`);
  } finally {
    stdout.destroy();
    stderr.destroy();
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.off(signal, interrupt);
  }
  const counts = existsSync(report) ? countsOf(report) : { passed: 0, failed: 1, skipped: 0 };
  return { ...counts, told: [...(counts.told ?? []), ...told] };
}

/** The first line, and the last ones, of what may be a whole console. */
function excerpt(text: string): string {
  const lines = text.split('\n');
  return lines.length <= 8 ? text : [lines[0], '...', ...lines.slice(-6)].join('\n    ');
}

/** Somebody wants the whole run to end. */
let interrupted = false;
/** How often the files of a lab are run until they pass; each failed try stands in the output. */
const attemptsMax = 6;

/** Runs files until they pass; says at the end how often, how long, and what went wrong. */
async function insideUntilPassed(run: LabRun): Promise<Counts> {
  const told: string[] = [];
  const start = performance.now();
  let found: Counts | undefined;
  let attempt = 0;
  while (attempt < attemptsMax && found?.failed !== 0 && !interrupted) {
    attempt++;
    if (attempt > 1) {
      process.stdout.write(`lab: ${run.name} again, in a fresh lab (try ${attempt})\n`);
    }
    found = await insideOnce(run, attempt);
    told.push(...(found.told ?? []));
  }
  const seconds = ((performance.now() - start) / 1000).toFixed(0);
  const tries = attempt === 1 ? '' : `, ${attempt} tries`;
  told.push(`${run.name}: ${seconds} s${tries}: ${closingLine(found ?? noTests)}`);
  return { ...(found ?? noTests), told };
}

/**
 * As many labs at once as this machine has CPUs for. QEMU's software CPU, or a guest on it, is known to stand still now and
 * then under load: then only the files of that lab have to be run again, in a fresh one; the last try counts.
 */
async function inside(filters: readonly string[]): Promise<Counts> {
  const left = labRuns
    .map(({ name, files }) => ({
      name,
      files: files.filter(
        (file) => filters.length === 0 || filters.some((filter) => file.includes(filter)),
      ),
    }))
    .filter(({ files }) => files.length > 0);
  let counts = noTests;
  const runAll = async (): Promise<void> => {
    for (let run = left.shift(); run !== undefined; run = left.shift()) {
      const found = await insideUntilPassed(run);
      counts = add(counts, found);
    }
  };
  await Promise.all(Array.from({ length: labsAtOnce }, runAll));
  return counts;
}

function vitest(config: string, report: string): string[] {
  return [
    join(root, 'node_modules/vitest/vitest.mjs'),
    'run',
    `--config=${config}`,
    '--reporter=verbose',
    '--reporter=json',
    `--outputFile.json=${report}`,
  ];
}

async function main(): Promise<Counts> {
  const filters = process.argv.slice(2);
  const reason = prepare();
  if (reason !== undefined) {
    process.stdout.write(`The tests in the lab are skipped: ${reason}\n`);
    const skipped = testsIn('test/lab', '.lab.test.ts') + testsIn('test/lab-host', '.test.ts');
    return { passed: 0, failed: process.env.TSVMM_REQUIRE_LAB === '1' ? 1 : 0, skipped };
  }
  const counts = filters.length > 0 ? noTests : await outside();
  try {
    return add(counts, await inside(filters));
  } catch (error) {
    if (!(error instanceof LabError)) throw error;
    process.stderr.write(`lab: ${error.message}\n`);
    return add(counts, { passed: 0, failed: 1, skipped: 0 });
  }
}

try {
  const counts = await main();
  const file = process.env.TSVMM_TEST_COUNTS;
  if (file !== undefined) writeFileSync(file, JSON.stringify(counts));
  if (counts.told?.length) process.stdout.write(`\n${counts.told.join('\n')}\n`);
  process.stdout.write(`${closingLine(counts)}\n`);
  process.exitCode = counts.failed === 0 ? 0 : 1;
} finally {
  rmSync(work, { recursive: true, force: true });
}
