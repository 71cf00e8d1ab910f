/** One seed, from its first draw to its verdict. */
import { Violation } from './checkers.ts';
import type { Planted } from './planted.ts';
import { type RunOptions, type Tally, World } from './world.ts';

/** The verdict about a seed. */
export interface Verdict {
  readonly seed: number;
  readonly tally: Tally | undefined;
  /** What was broken, or undefined. */
  readonly failure: string | undefined;
}

/** Runs `seed`. */
export async function runSeed(seed: number, options: RunOptions = {}): Promise<Verdict> {
  const world = new World(seed, options);
  try {
    return { seed, tally: await world.run(), failure: undefined };
  } catch (error) {
    if (error instanceof Violation) return { seed, tally: world.tally, failure: error.message };
    // An assertion of the code under test is a finding too.
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { seed, tally: world.tally, failure: text };
  }
}

/** The command that runs `seed` again. */
export function repeatCommand(seed: number, bug?: Planted, disks?: string): string {
  const planted = bug === undefined ? '' : ` --planted ${bug}`;
  return `npm run sim -- --seed ${seed}${planted}${disks === undefined ? '' : ` --disks ${disks}`} --trace`;
}
