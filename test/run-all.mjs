// `npm test`: every test this machine can run, part after part, whatever the earlier ones said. Prints
// what each part costs and ends with `N passed, N failed, N skipped`; a part that crashes or a check
// that complains counts as a failure. `npm test -- PART...` runs only the parts named (and compiles).
// Plain JavaScript, because compiling is its first part.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const work = mkdtempSync(join(tmpdir(), 'tsvmm-test-'));
const modules = join(root, 'node_modules');
const compiler = join(modules, 'typescript/bin/tsc');

/** A part that takes longer hangs: it is ended and counts as failed. The lab has limits of its own. */
const partLimitMs = 20 * 60 * 1000;

let current;
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    current?.kill(signal);
    rmSync(work, { recursive: true, force: true });
    process.exit(130);
  });
}

/** Runs Node with these arguments; resolves with its exit status or signal. */
function node(args, env = {}, limitMs = partLimitMs) {
  const child = spawn(process.execPath, args, {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, ...env },
  });
  current = child;
  const timer = setTimeout(() => {
    process.stderr.write(`ended after ${limitMs / 60000} minutes: it hangs\n`);
    child.kill('SIGKILL');
  }, limitMs);
  return new Promise((resolve) => {
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      resolve(code ?? signal);
    });
  });
}

/** A check that has no tests to count: nothing when it is content, one failure when it is not. */
function check(...args) {
  return async () => {
    if ((await node(args)) === 0) return { passed: 0, failed: 0, skipped: 0 };
    return { passed: 0, failed: 1, skipped: 0, told: ['it complains, see above'] };
  };
}

/** A suite of vitest, counted by its JSON report. */
function suite(config, label) {
  return async () => {
    const report = join(work, `${label}.json`);
    const args = ['run', `--config=${config}`, '--reporter=default', '--reporter=json'];
    const status = await node([
      join(modules, 'vitest/vitest.mjs'),
      ...args,
      `--outputFile.json=${report}`,
    ]);
    // A suite whose configuration finds that nothing can run here writes no report and has said why.
    if (status === 0 && !existsSync(report)) return { passed: 0, failed: 0, skipped: 0 };
    const { countsOf } = await import('../dist/test/vitest-counts.js');
    const counts = countsOf(report);
    // vitest also fails for what belongs to no test: an unhandled rejection, a worker that died.
    if (status === 0 || counts.failed > 0) return counts;
    return { ...counts, failed: 1, told: [`all tests passed, but vitest ended with ${status}`] };
  };
}

/**
 * A compiled program that writes its counts to the file that TSVMM_TEST_COUNTS names, and `told`: lines about its
 * failures for the end of the output.
 */
function program(path, args, limitMs = partLimitMs) {
  return async () => {
    const file = join(work, 'counts.json');
    rmSync(file, { force: true });
    const command = ['--enable-source-maps', join(root, path), ...args];
    await node(command, { TSVMM_TEST_COUNTS: file }, limitMs);
    return existsSync(file)
      ? JSON.parse(readFileSync(file, 'utf8'))
      : { passed: 0, failed: 1, skipped: 0, told: ['it ended without its counts'] };
  };
}

const parts = [
  ['compile', check(compiler, '-p', 'tsconfig.build.json')],
  ['types', check(compiler, '-p', 'tsconfig.json')],
  ['lint', check(join(modules, '@biomejs/biome/bin/biome'), 'check', '.')],
  ['unit', suite('vitest.config.ts', 'unit')],
  ['guest', suite('vitest.guest.config.ts', 'guest')],
  ['fuzz', program('dist/test/fuzz/main.js', ['--seconds=5', '--jobs=2'])],
  ['pack', suite('vitest.pack.config.ts', 'pack')],
  ['lab', program('dist/test/lab/run-tests.js', [], 4 * partLimitMs)],
];

const wanted = process.argv.slice(2);
const unknown = wanted.filter((name) => !parts.some(([part]) => part === name));
if (unknown.length > 0) {
  const names = parts.map(([part]) => part).join(', ');
  process.stderr.write(`There is no part ${unknown.join(', ')}; the parts are ${names}.\n`);
  process.exit(2);
}

const total = { passed: 0, failed: 0, skipped: 0 };
const summary = [];
/** What failed and what was tried again, said once more at the end: a log may keep no more than that. */
const told = [];
for (const [name, run] of parts) {
  if (wanted.length > 0 && name !== 'compile' && !wanted.includes(name)) continue;
  process.stdout.write(`\n=== ${name}\n`);
  const start = Date.now();
  const counts = await run().catch((error) => {
    process.stderr.write(`${error.stack}\n`);
    return { passed: 0, failed: 1, skipped: 0, told: [String(error)] };
  });
  for (const key of Object.keys(total)) total[key] += counts[key];
  for (const line of counts.told ?? []) told.push(`${name}: ${line}`);
  const { passed, failed, skipped } = counts;
  const seconds = ((Date.now() - start) / 1000).toFixed(1);
  summary.push(
    `${name.padEnd(8)} ${seconds.padStart(7)} s  ${passed} passed, ${failed} failed, ${skipped} skipped`,
  );
}
rmSync(work, { recursive: true, force: true });
process.stdout.write(`\n${summary.join('\n')}\n`);
if (told.length > 0) process.stdout.write(`\n${told.join('\n')}\n`);
process.stdout.write(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped\n`);
process.exitCode = total.failed === 0 ? 0 : 1;
