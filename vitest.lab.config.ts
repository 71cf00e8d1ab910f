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
    // The software CPU now and then loses a guest, and the tests behind it would wait for it in vain: the file is run again
    // in a fresh lab at once (test/lab/run-tests.ts).
    bail: 1,
    testTimeout: 360_000,
    hookTimeout: 360_000,
    teardownTimeout: 30_000,
  },
});
