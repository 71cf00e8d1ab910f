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
    pool: 'threads',
    testTimeout: 20_000,
  },
});
