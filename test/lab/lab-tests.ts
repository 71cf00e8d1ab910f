// The test files that run inside the lab: those of this folder, and some suites of the guest tests, because what they
// show differs between the two kinds of KVM.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { repositoryRoot } from './tools.ts';

/** Paths from the root of the repository. */
export const labTests: readonly string[] = [
  ...readdirSync(join(repositoryRoot(), 'test/lab'))
    .filter((name) => name.endsWith('.lab.test.ts'))
    .sort()
    .map((name) => `test/lab/${name}`),
  'test/guest/failover-console.test.ts',
  'test/guest/kvm-lazy-skip.test.ts',
  'test/guest/kvm-state.test.ts',
  'test/guest/machine-state.test.ts',
];
