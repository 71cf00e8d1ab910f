import { defineConfig } from 'vitest/config';

// Tests that run inside the lab (`npm run test:lab`; docs/testing.md): a hardware-style KVM on a slow
// CPU. One worker, since the lab has few and slow CPUs and the tests start machines of their own; no
// isolation, since loading vitest again costs more there than most tests.
export default defineConfig({
  test: {
    // Some suites of the guest tests as well: what they show differs between the two kinds of KVM.
    include: [
      'test/lab/**/*.lab.test.ts',
      'test/guest/failover-console.test.ts',
      'test/guest/kvm-lazy-skip.test.ts',
      'test/guest/kvm-state.test.ts',
      'test/guest/machine-state.test.ts',
    ],
    pool: 'threads',
    isolate: false,
    maxWorkers: 1,
    fileParallelism: false,
    // Once more, visibly, where a neighbour on the host starves a guest of its deadline.
    retry: 1,
    testTimeout: 360_000,
    hookTimeout: 360_000,
    teardownTimeout: 30_000,
  },
});
