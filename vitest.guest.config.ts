import { accessSync, constants } from 'node:fs';
import { defineConfig } from 'vitest/config';

// Tests that run guests on /dev/kvm. One file at a time, each in a process of its own: they count
// descriptors and threads, and measure.
function kvmMissing(): string | undefined {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

const missing = kvmMissing();
if (missing !== undefined) {
  process.stdout.write(`skipped: the tests with guests need /dev/kvm (${missing})\n`);
}

export default defineConfig({
  test: {
    include: missing === undefined ? ['test/guest/**/*.test.ts'] : [],
    passWithNoTests: missing !== undefined,
    pool: 'forks',
    fileParallelism: false,
    // Once more, visibly, where a neighbour on the host starves a guest of its deadline.
    retry: 1,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    execArgv: ['--expose-gc'],
  },
});
