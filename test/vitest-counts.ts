// Reads what vitest's JSON reporter wrote, for the closing lines of `npm test` and `npm run test:lab`.
import { readFileSync } from 'node:fs';
import { relative } from 'node:path';

/** How many tests ended how. */
export interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  /** Lines for the end of a run, where they are not overlooked: what failed and why, what was tried again. */
  readonly told?: readonly string[];
}

export const noTests: Counts = { passed: 0, failed: 0, skipped: 0 };

/** The parts of vitest's JSON report that are used here. */
interface Report {
  readonly testResults?: readonly {
    readonly name?: string;
    readonly status: string;
    /** What went wrong outside the file's tests. */
    readonly message?: string;
    readonly assertionResults: readonly {
      readonly status: string;
      readonly fullName?: string;
      readonly failureMessages?: readonly string[];
    }[];
  }[];
}

/** As much of an error as belongs into a remark. */
const errorLinesMax = 12;

/** The first lines of an error, indented. */
function shortened(message: string): string[] {
  const lines = message.trimEnd().split('\n');
  const kept = lines.slice(0, errorLinesMax);
  if (lines.length > errorLinesMax) kept.push('...');
  return kept.map((line) => `    ${line.slice(0, 240)}`);
}

/**
 * The counts of a report. A file that fails outside its tests, and a report that was never written or
 * cut off, count as one failure each, so that a crash cannot pass as silence.
 */
export function countsOf(path: string): Counts {
  let report: Report;
  try {
    report = JSON.parse(readFileSync(path, 'utf8'));
  } catch {
    return { passed: 0, failed: 1, skipped: 0, told: ['the tests ended without a report'] };
  }
  let passed = 0;
  let failed = 0;
  let skipped = 0;
  const told: string[] = [];
  for (const file of report.testResults ?? []) {
    const where = relative(process.cwd(), file.name ?? 'a file without a name');
    let failedHere = 0;
    for (const { status, fullName, failureMessages } of file.assertionResults) {
      if (status === 'passed') passed++;
      else if (status === 'failed') {
        failedHere++;
        told.push(`failed: ${where}: ${fullName}`, ...shortened(failureMessages?.[0] ?? ''));
      } else skipped++;
    }
    if (file.status === 'failed' && failedHere === 0) {
      failedHere = 1;
      told.push(`failed: ${where}`, ...shortened(file.message ?? ''));
    }
    failed += failedHere;
  }
  return { passed, failed, skipped, told };
}

/** The sum of two counts. */
export function add(a: Counts, b: Counts): Counts {
  return {
    passed: a.passed + b.passed,
    failed: a.failed + b.failed,
    skipped: a.skipped + b.skipped,
    told: [...(a.told ?? []), ...(b.told ?? [])],
  };
}

/** The closing line of a test run. */
export function closingLine({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}
