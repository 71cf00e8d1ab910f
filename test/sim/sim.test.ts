import { describe, expect, it } from 'vitest';
import { PLANTED, type Planted } from './planted.ts';
import { repeatCommand, runSeed } from './run.ts';

/** Seeds that once broke a promise, and a few that take every path; they stay. */
const CORPUS = [
  7, 22, 28, 201, 375, 706, 977, 1447, 1719, 7693, 7892, 8115, 14085, 15335, 15361, 20718, 22575,
  28384, 31404, 51350, 749, 72253, 100653, 200110, 5003720, 9109399, 81027434,
];

/** Of seeds with replicated disks. */
const DISK_CORPUS = [
  22, 69, 134, 486, 1213, 2348, 10559, 10794, 11577, 20048, 20831, 9016106, 9025509, 50002907,
  82001774,
];

/** Fresh seeds of every test run. */
const FRESH = 150;

describe('simulation', () => {
  it('keeps the promises on the corpus', async () => {
    for (const seed of CORPUS) {
      const { failure } = await runSeed(seed, { replicated: false });
      expect(failure, repeatCommand(seed)).toBeUndefined();
    }
  });

  it('keeps the promises on the corpus of replicated disks', async () => {
    for (const seed of DISK_CORPUS) {
      const { failure } = await runSeed(seed, { replicated: true });
      expect(failure, repeatCommand(seed, undefined, 'replicated')).toBeUndefined();
    }
  });

  it('keeps the promises on fresh seeds', async () => {
    const first = Math.floor(Math.random() * 2 ** 40);
    console.log(`simulation: fresh seeds from ${first}`);
    let outputs = 0;
    for (let seed = first; seed < first + FRESH; seed++) {
      const { failure, tally } = await runSeed(seed);
      expect(failure, repeatCommand(seed)).toBeUndefined();
      outputs += tally!.outputs;
    }
    expect(outputs).toBeGreaterThan(FRESH);
  });

  it('does the same again for the same seed', async () => {
    for (const seed of [3, 4, 5]) {
      const { tally } = await runSeed(seed);
      expect((await runSeed(seed)).tally).toEqual(tally);
    }
  });

  it('takes over, loses guests to double failures only, and repeats frames', async () => {
    const sum = { takeovers: 0, repeated: 0, answered: 0 };
    for (let seed = 100; seed < 140; seed++) {
      const { tally } = await runSeed(seed);
      sum.takeovers += tally!.takeovers;
      sum.repeated += tally!.repeated;
      sum.answered += tally!.answered;
    }
    expect(sum.takeovers).toBeGreaterThan(5);
    expect(sum.repeated).toBeGreaterThan(5);
    expect(sum.answered).toBeGreaterThan(200);
  });
});

describe('simulation of replicated disks', () => {
  it('takes over again after protection has come back, and takes lost hosts back', async () => {
    const sum = { chains: 0, returns: 0 };
    for (let seed = 1; seed <= 40; seed++) {
      const faults = ['kill-when-protected', 'kill-when-protected', 'host-disk-slow'] as const;
      const { failure, tally } = await runSeed(seed, { replicated: true, faults });
      expect(failure, `seed ${seed}`).toBeUndefined();
      if (tally!.takeovers > 1) sum.chains++;
      sum.returns += tally!.returns;
    }
    expect(sum.chains).toBeGreaterThan(2);
    expect(sum.returns).toBeGreaterThan(5);
  });
});

describe('planted bugs', { timeout: 60_000 }, () => {
  it.each(Object.entries(PLANTED) as [Planted, number][])(
    'finds %s within %i seeds',
    async (bug, max) => {
      let found: string | undefined;
      for (let seed = 1; seed <= max && found === undefined; seed++) {
        found = (await runSeed(seed, { bug })).failure;
      }
      expect(found, `${bug} was not found in ${max} seeds`).toBeDefined();
    },
  );
});
