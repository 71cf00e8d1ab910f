/** One seed, from its first draw to its verdict. */
import { Violation } from './checkers.ts';
import type { Planted } from './planted.ts';
import { type Tally, World } from './world.ts';

/** The verdict about a seed. */
export interface Verdict {
  readonly seed: number;
  readonly tally: Tally | undefined;
  /** What was broken, or undefined. */
  readonly failure: string | undefined;
}

/** Runs `seed`, with a planted bug if asked; `trace` collects what happened. */
export function runSeed(seed: number, bug?: Planted, trace?: string[]): Verdict {
  const world = new World(seed, bug, trace);
  try {
    return { seed, tally: world.run(), failure: undefined };
  } catch (error) {
    if (error instanceof Violation) return { seed, tally: world.tally, failure: error.message };
    // An assertion of the code under test is a finding too.
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { seed, tally: world.tally, failure: text };
  }
}

/** The command that runs `seed` again. */
export function repeatCommand(seed: number, bug?: Planted): string {
  return `npm run sim -- --seed ${seed}${bug === undefined ? '' : ` --planted ${bug}`} --trace`;
}
