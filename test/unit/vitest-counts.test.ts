import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { add, closingLine, countsOf, noTests } from '../vitest-counts.ts';

describe('counts of a vitest report', () => {
  const work = mkdtempSync(join(tmpdir(), 'counts-'));
  afterAll(() => rmSync(work, { recursive: true, force: true }));

  function counts(report: string) {
    const path = join(work, 'report.json');
    writeFileSync(path, report);
    return countsOf(path);
  }
  const file = (status: string, ...tests: string[]) => ({
    status,
    assertionResults: tests.map((test) => ({ status: test })),
  });

  it('adds up the tests of all files', () => {
    const report = {
      testResults: [
        file('passed', 'passed', 'skipped', 'pending', 'todo'),
        file('failed', 'passed', 'failed', 'failed'),
      ],
    };
    expect(counts(JSON.stringify(report))).toMatchObject({ passed: 2, failed: 2, skipped: 3 });
  });

  it('takes a file that fails outside its tests for a failure', () => {
    const report = { testResults: [file('failed'), file('failed', 'passed')] };
    expect(counts(JSON.stringify(report))).toMatchObject({ passed: 1, failed: 2, skipped: 0 });
  });

  it('takes a missing or broken report for a failure', () => {
    expect(counts('{"testRes')).toMatchObject({ passed: 0, failed: 1, skipped: 0 });
    expect(countsOf(join(work, 'nothing'))).toMatchObject({ passed: 0, failed: 1, skipped: 0 });
  });

  it('say what failed and how, without all of a long error', () => {
    const assertionResults = [
      { status: 'passed', fullName: 'a good one' },
      {
        status: 'failed',
        fullName: 'a bad one',
        failureMessages: [Array.from({ length: 30 }, (_, i) => `line ${i}`).join('\n')],
      },
    ];
    const testResults = [
      { name: join(process.cwd(), 'test/x.test.ts'), status: 'failed', assertionResults },
      { name: '/y.test.ts', status: 'failed', message: 'cannot load', assertionResults: [] },
    ];
    const { told = [] } = counts(JSON.stringify({ testResults }));
    expect(told[0]).toBe('failed: test/x.test.ts: a bad one');
    expect(told[1]).toBe('    line 0');
    expect(told).toContain('    ...');
    expect(told).not.toContain('    line 20');
    expect(told.at(-1)).toBe('    cannot load');
    expect(told.filter((line) => line.startsWith('failed: '))).toHaveLength(2);
    expect(add(noTests, { ...noTests, told }).told).toEqual(told);
  });

  it('are summed and written as one line', () => {
    const sum = add({ passed: 1, failed: 2, skipped: 3 }, { passed: 10, failed: 20, skipped: 30 });
    expect(closingLine(sum)).toBe('11 passed, 22 failed, 33 skipped');
  });
});
