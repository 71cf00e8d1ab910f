/**
 * What a fuzzer has reached: places by name (a register in one width, a state of the device, a kind of answer) and how
 * often. A fuzzer that no longer reaches what it once did has gone blind, and finds nothing for that reason.
 */
import { assert } from '../../src/base/assert.ts';

/** Places that one fuzzer can have; a name made of random data would fill memory. */
const PLACES_MAX = 20_000;

export class Coverage {
  /** How often each place was reached. */
  readonly places = new Map<string, number>();
  /** Cases: steps of a guest, connections of a peer, files of an operator. */
  cases = 0;

  hit(place: string, times = 1): void {
    if (times === 0) return;
    const before = this.places.get(place) ?? 0;
    assert(before > 0 || this.places.size < PLACES_MAX, `too many places: ${place}`);
    this.places.set(place, before + times);
  }

  /** Those of `deep` that were not reached. */
  missing(deep: readonly string[]): string[] {
    return deep.filter((place) => !this.places.has(place));
  }
}
