// The test files that run inside the lab, by the labs they run in: each of this folder in one of its own, and together some
// suites of the guest tests, because what they show differs between the two kinds of KVM.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { repositoryRoot } from './tools.ts';

/** What one lab runs: a name, and paths from the root of the repository. */
export interface LabRun {
  readonly name: string;
  readonly files: readonly string[];
}

/** Files that take long: they begin first, so that labs side by side end together. */
const long = ['ft-disks', 'devices-linux', 'ft', 'boot', 'restore'].map(
  (name) => `${name}.lab.test.ts`,
);

/** All of them, in order. */
export const labRuns: readonly LabRun[] = [
  ...readdirSync(join(repositoryRoot(), 'test/lab'))
    .filter((name) => name.endsWith('.lab.test.ts'))
    .sort((a, b) => Number(long.includes(b)) - Number(long.includes(a)) || a.localeCompare(b))
    .map((name) => ({ name: name.replace('.lab.test.ts', ''), files: [`test/lab/${name}`] })),
  {
    name: 'guest suites',
    files: [
      'test/guest/failover-console.test.ts',
      'test/guest/kvm-lazy-skip.test.ts',
      'test/guest/kvm-state.test.ts',
      'test/guest/machine-state.test.ts',
    ],
  },
];
