import { defineConfig } from 'vitest/config';

// The lab's launcher from outside (`npm run test:lab` runs these first). One at a time: each lab takes
// all CPUs.
export default defineConfig({
  test: {
    include: ['test/lab-host/**/*.test.ts'],
    pool: 'threads',
    fileParallelism: false,
  },
});
