/** Every fuzzer of the project by name. A new one is one entry here, and `npm run fuzz` and the unit test run it. */
import { assert } from '../../src/base/assert.ts';
import { fuzzDecoder } from '../../src/ft/wire/fuzz.ts';
import { fuzzPageStream } from '../../src/ft/wire/page-fuzz.ts';
import { nativeCodec, plainCodec } from '../support/page-codecs.ts';
import { fuzzE1000 } from './e1000.ts';
import { fuzzBootImages, fuzzOptions, fuzzSavedStates } from './operator-input.ts';
import { fuzzVirtio } from './virtio.ts';

/** One fuzzer. */
export interface Fuzzer {
  readonly name: string;
  /** Rounds of one run: well below a second. */
  readonly rounds: number;
  /** Runs `rounds` rounds from `seed`; throws when something does not hold. The same arguments give the same run. */
  run(seed: number, rounds: number): unknown;
}

/** In the order in which they take turns. */
export const fuzzers: readonly Fuzzer[] = [
  { name: 'boot-images', rounds: 150, run: fuzzBootImages },
  { name: 'saved-states', rounds: 200, run: fuzzSavedStates },
  { name: 'options', rounds: 150, run: fuzzOptions },
  { name: 'e1000', rounds: 1000, run: fuzzE1000 },
  { name: 'virtio-blk', rounds: 1000, run: (seed, rounds) => fuzzVirtio('blk', seed, rounds) },
  { name: 'virtio-net', rounds: 1000, run: (seed, rounds) => fuzzVirtio('net', seed, rounds) },
  { name: 'virtio-rng', rounds: 1000, run: (seed, rounds) => fuzzVirtio('rng', seed, rounds) },
  {
    name: 'wire',
    rounds: 500,
    run(seed, rounds) {
      const { failure } = fuzzDecoder(seed, rounds);
      assert(failure === undefined, failure ?? '');
    },
  },
  {
    name: 'page-stream',
    rounds: 200,
    run(seed, rounds) {
      const { failure } = fuzzPageStream(seed, rounds, [plainCodec, nativeCodec()]);
      assert(failure === undefined, failure ?? '');
    },
  },
];
