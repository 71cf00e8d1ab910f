import { defineConfig } from 'vitest/config';

// Unit tests: beside their source, no KVM, no network. Other suites have configurations of their own
// under test/.
export default defineConfig({
  test: {
    include: [
      'src/**/*.test.ts',
      'devices/**/*.test.ts',
      'test/unit/**/*.test.ts',
      'test/sim/**/*.test.ts',
    ],
    // Processes, since some tests count the descriptors of theirs; two, whatever the machine has.
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: 20_000,
    // On shared machines once more, visibly, where a neighbour makes a test miss its time.
    retry: process.env.CI === undefined ? 0 : 1,
  },
});
