import { afterAll, describe, it } from 'vitest';
import { fuzzers } from '../fuzz/registry.ts';

const seed = Number(process.env.TSVMM_SEED ?? Date.now() % 1_000_000_000);
afterAll(() => process.stdout.write(`fuzz: TSVMM_SEED=${seed}\n`));

describe(`every fuzzer for a moment, seed ${seed}`, () => {
  for (const { name, rounds, run } of fuzzers) {
    it(name, async () => {
      await run(seed, rounds);
    });
  }
});
