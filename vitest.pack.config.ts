import { defineConfig } from 'vitest/config';

// Makes the two published packages, installs them and runs them. Needs the npm registry (or its cache) for the run-time
// dependencies, and /dev/kvm for the demo guest.
export default defineConfig({
  test: {
    include: ['test/pack/**/*.test.ts'],
    testTimeout: 120_000,
    hookTimeout: 300_000,
    fileParallelism: false,
  },
});
