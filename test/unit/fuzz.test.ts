import { afterAll, describe, expect, it } from 'vitest';
import { Coverage } from '../fuzz/coverage.ts';
import { fuzzers } from '../fuzz/registry.ts';

const seed = Number(process.env.TSVMM_SEED ?? Date.now() % 1_000_000_000);
/** Runs within which a mistake made on purpose must be found. */
const PATIENCE = 20;
afterAll(() => process.stdout.write(`fuzz: TSVMM_SEED=${seed}\n`));

describe(`every fuzzer for a moment, seed ${seed}`, () => {
  for (const { name, rounds, run } of fuzzers) {
    it(name, async () => {
      const seen = new Coverage();
      await run(seed, rounds, seen);
      expect(seen.cases).toBeGreaterThan(0);
    });
  }
});

describe('what once failed holds', () => {
  const past: readonly (readonly [name: string, seed: number])[] = [
    // An answer damaged to "I do not know NBD_OPT_GO".
    ['nbd', 337981445],
    ['saved-states', 372987793],
    ['virtio-rng', 790980041],
  ];
  it.each(past)('%s, seed %i', async (name, seed) => {
    const { run, rounds } = fuzzers.find((fuzzer) => fuzzer.name === name)!;
    await run(seed, rounds, new Coverage());
  });
});

describe('a fuzzer finds a mistake made on purpose', () => {
  for (const { name, rounds, plants, run } of fuzzers) {
    for (const plant of plants) {
      it(`${name}: ${plant}`, async () => {
        let found: unknown;
        for (let turn = 1; turn <= PATIENCE && found === undefined; turn++) {
          try {
            await run(turn, rounds, new Coverage(), plant);
          } catch (error) {
            found = error;
          }
        }
        expect(found).toBeInstanceOf(Error);
      });
    }
  }
});
