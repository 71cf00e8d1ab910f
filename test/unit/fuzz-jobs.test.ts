import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type Failure, fuzzInJobs, repeatedBy } from '../fuzz/jobs.ts';
import { within } from '../fuzz/patience.ts';

/** Fuzzers that do what their names say. */
const PROGRAM = `
if (process.argv[2] === '--mute') process.exit(3);
const seed = Number(process.argv[2].slice('--seed='.length));
const tell = (report) => new Promise((resolve) => process.send(report, () => resolve()));
const busy = () => { for (;;); };
for (const name of process.argv.slice(3)) {
  const at = seed + 3;
  await tell({ begins: name, seed });
  if (seed < 1000) await tell({ begins: name, seed: at });
  if (name === 'hangs' || (name === 'slow' && process.argv.length > 4)) busy();
  if (name === 'dies') process.exit(7);
  if (name === 'killed') process.kill(process.pid, 'SIGKILL');
  const failed = name.startsWith('fails');
  await tell(failed ? { failed: name, why: 'it must', again: '--runs 1 --seed 5' } : { held: name });
  if (name === 'fails and ends') process.exit(1);
}
process.exit(0);
`;

const folder = mkdtempSync(join(tmpdir(), 'tsvmm-fuzz-jobs-'));
const program = join(folder, 'fuzzers.mjs');
writeFileSync(program, PROGRAM);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function judge(
  names: readonly string[],
  seed: number,
  more: { readonly aloneMs?: number; readonly args?: readonly string[] } = {},
) {
  const lines: string[] = [];
  const say = (line: string): void => void lines.push(line);
  const options = { args: [], hangMs: 1000, aloneMs: 60_000, jobs: 2, ...more };
  const verdicts = await fuzzInJobs({ program, names, seed, say, ...options });
  return { ...verdicts, lines };
}

const names = (failures: readonly Failure[]): string[] => failures.map(({ name }) => name).sort();

describe('processes that fuzz', () => {
  it('gives each fuzzer one verdict, whatever becomes of its process', async () => {
    const all = ['a', 'dies', 'b', 'fails and ends', 'killed', 'fails', 'c', 'd', 'e', 'f'];
    const { held, failures } = await judge(all, 10);
    expect(held.sort()).toEqual(['a', 'b', 'c', 'd', 'e', 'f']);
    expect(names(failures)).toEqual(['dies', 'fails', 'fails and ends', 'killed']);
    const dies = failures.find(({ name }) => name === 'dies')!;
    expect(dies.why).toBe('its process ended with status 7');
    expect(repeatedBy(dies)).toBe('npm run fuzz -- --runs 1 --seed 13 dies');
    expect(failures.find(({ name }) => name === 'killed')!.why).toContain('SIGKILL');
  });

  it('counts a hang', async () => {
    const { held, failures } = await judge(['a', 'hangs', 'b', 'c'], 998, { aloneMs: 5000 });
    expect(held.sort()).toEqual(['a', 'b', 'c']);
    expect(failures).toEqual([
      { name: 'hangs', why: 'it hangs', again: expect.stringMatching(/^--runs 1 --seed \d+$/) },
    ]);
  });

  it('tries again what is slow', async () => {
    // It hangs only in a process that has more to do.
    const { held, failures, lines } = await judge(['slow', 'a', 'b'], 998);
    expect(failures).toEqual([]);
    expect(held.sort()).toEqual(['a', 'b', 'slow']);
    expect(lines.some((line) => /^slow was slow at seed \d+; alone it ends$/.test(line))).toBe(
      true,
    );
  });

  it('blames the fuzzers of a process that does not begin', async () => {
    const { held, failures } = await judge(['a', 'b', 'c'], 10, { args: ['--mute'] });
    expect(held).toEqual([]);
    expect(names(failures)).toEqual(['a', 'b', 'c']);
    expect(failures[0]!.why).toBe('its process ended with status 3');
  });
});

describe('patience', () => {
  it('passes on what happens', async () => {
    await expect(within(Promise.resolve(5), 'x')).resolves.toBe(5);
    await expect(within(Promise.reject(new Error('y')), 'x')).rejects.toThrow('y');
  });

  it('ends', async () => {
    await expect(within(new Promise(() => {}), 'an answer', 3)).rejects.toThrow(
      'an answer does not end',
    );
  });

  it('does not count the time in which this process gets none', async () => {
    const late = new Promise<string>((resolve) => {
      let turns = 0;
      const turn = (): void => {
        // Far more than the ticks allow, in few turns.
        for (const end = performance.now() + 300; performance.now() < end; );
        if (++turns === 3) resolve('in the end');
        else setTimeout(turn, 1);
      };
      setTimeout(turn, 1);
    });
    await expect(within(late, 'it', 5)).resolves.toBe('in the end');
  });
});
