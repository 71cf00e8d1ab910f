import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import {
  apartByChance,
  type BenchFile,
  compare,
  compareLines,
  readBenchFile,
} from '../bench/compare.ts';
import { MARKS, markdown, writeMarkdown } from '../bench/markdown.ts';
import type { Experiment } from '../bench/measure.ts';
import { type ExperimentResult, runExperiment } from '../bench/runner.ts';

const folder = mkdtempSync(join(tmpdir(), 'tsvmm-bench-test-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const machine = {
  ...{ cpu: 'a CPU', cpus: 2, memoryMib: 1, kernel: '6.1', node: 'v20', qemu: 'QEMU 7.2' },
  ...{ virtualized: true, commit: 'abc', startedAt: '2026-01-02T03:04:05Z', loadAtStart: 0.25 },
};

/** An experiment whose first side gives `ours` round by round and whose other sides give 10. */
function result(name: string, ours: readonly number[], sides = 2): Promise<ExperimentResult> {
  const rounds = ours.length;
  let round = 0;
  const experiment: Experiment = {
    name,
    metrics: [{ name: 'time', unit: 'ns', aim: { side: 'side 1', atMost: 1.5 } }],
    sides: Array.from({ length: sides }, (_, i) => ({
      name: i === 0 ? 'tsvmm' : `side ${i}`,
      command: name,
      run: async () => ({ time: i === 0 ? ours[round++]! : 10 }),
    })),
    warmUp: false,
  };
  return runExperiment(experiment, { least: rounds, most: rounds });
}

async function file(ours: Readonly<Record<string, readonly number[]>>): Promise<BenchFile> {
  const results: ExperimentResult[] = [];
  for (const [name, values] of Object.entries(ours)) results.push(await result(name, values));
  return { format: 'tsvmm-bench-1', machine, results: { some: results } };
}

describe('the comparison of two benchmark results', () => {
  it('says of each ratio whether the ranges overlap and the medians lie within them', async () => {
    const a = await file({
      same: [10, 20, 30],
      touch: [10, 11, 20],
      apart: [10, 11, 12],
      old: [1],
      near: [10],
    });
    const b = await file({
      same: [15, 20, 40],
      touch: [20, 25, 30],
      apart: [20, 22, 24],
      new: [1],
      near: [10.1],
    });
    const { pairs, onlyFirst, onlySecond } = compare(a, b);
    expect(pairs.map(({ overlap, within }) => [overlap, within])).toEqual([
      [true, true],
      [true, false],
      [false, false],
      [true, true],
    ]);
    expect(pairs[2]).toMatchObject({ side: 'side 1', aimMet: [true, false] });
    expect(onlyFirst).toEqual(['old: time, side 1']);
    expect(onlySecond).toEqual(['new: time, side 1']);
    const lines = compareLines(a, b);
    const text = lines.join('\n');
    expect(text).toContain('2.00 [1.00..3.00]  2.00 [1.50..4.00]  agree');
    expect(text).toContain('APART by 100 %, aim met in one of the two');
    expect(text).toContain('only in the second: new: time, side 1');
    expect(lines.at(-1)).toBe(
      "4 ratios in both: the ranges of 3 (75 %) overlap (of so few rounds 1 would be apart by chance, 1 are), each median lies in the other's range in 2; 2 of 4 aims with the same verdict",
    );
  });

  it('knows how often ranges of few rounds are apart by chance', () => {
    expect(apartByChance(2, 2)).toBeCloseTo(1 / 3, 12);
    expect(apartByChance(3, 3)).toBeCloseTo(0.1, 12);
    expect(apartByChance(2, 5)).toBeCloseTo(2 / 21, 12);
  });

  it('reads what --json writes and refuses anything else', async () => {
    const path = join(folder, 'a.json');
    expect(() => readBenchFile(path)).toThrow('cannot read');
    for (const bad of ['{', 'null', '{"format":"x"}', '{"format":"tsvmm-bench-1"}']) {
      writeFileSync(path, bad);
      expect(() => readBenchFile(path)).toThrow(path);
    }
    const some = await file({ one: [10, 20] });
    writeFileSync(path, JSON.stringify(some));
    expect(compare(readBenchFile(path), some).pairs).toHaveLength(1);
  });
});

describe('the figures as Markdown', () => {
  it('has one table for experiments of two sides and one for each of more', async () => {
    const results = [await result('pair', [10, 20, 30]), await result('three', [10], 3)];
    const text = markdown(machine, [
      { name: 'some', title: '1. Some', results },
      { name: 'none', title: '2. None', results: [], skipped: 'needs luck' },
    ]);
    expect(text).toContain('`npm run bench -- --only some`');
    expect(text).toContain(
      '| pair: time, ns | 20.0 [10.0..30.0] | side 1 10.0 [10.0..10.0] | 2.00 [1.00..3.00] | <= 1.5: missed by 0.50 |',
    );
    expect(text).toContain('| three | tsvmm | side 1 | side 2 |');
    expect(text).toContain('10.0; ratio 1.00, aim <= 1.5: met');
    expect(text).toContain('Not measured: needs luck.');
  });

  it('stands between the marks of a page that has them', () => {
    const path = join(folder, 'page.md');
    writeMarkdown(path, 'new\n');
    expect(readFileSync(path, 'utf8')).toBe('new\n');
    writeFileSync(path, `# Page\n${MARKS[0]}\nold\n${MARKS[1]}\nrest\n`);
    writeMarkdown(path, 'new\n');
    expect(readFileSync(path, 'utf8')).toBe(`# Page\n${MARKS[0]}\nnew\n${MARKS[1]}\nrest\n`);
  });
});
