// The page stream has two implementations, and one format: whatever one encodes or refuses, so does the other.
import { describe, expect, it } from 'vitest';
import { fuzzPageStream } from '../../../src/ft/wire/page-fuzz.ts';
import { nativeCodec, plainCodec } from '../../support/page-codecs.ts';

describe('the page stream', () => {
  it('is the same in both implementations, sound and damaged', () => {
    const seed = Math.floor(Math.random() * 2 ** 31);
    const { kinds, verdicts, failure } = fuzzPageStream(seed, 2000, [plainCodec, nativeCodec()]);
    expect(failure).toBeUndefined();
    // Every kind of record and every verdict was seen.
    for (const count of [...kinds, ...verdicts]) expect(count, `seed ${seed}`).toBeGreaterThan(5);
  });

  it('shows a difference when there is one', () => {
    const native = nativeCodec();
    const careless = {
      ...native,
      decoder: (memory: ArrayBuffer): ReturnType<typeof native.decoder> => {
        const decode = native.decoder(memory);
        return (...args) => Math.max(-1, decode(...args));
      },
    };
    const forgetful = {
      ...native,
      encoder(pages: number) {
        const encoder = native.encoder(pages);
        return {
          encode: (...args: Parameters<typeof encoder.encode>) => encoder.encode(...args),
          forget: () => {},
          clear: () => encoder.clear(),
        };
      },
    };
    expect(fuzzPageStream(1, 500, [plainCodec, careless]).failure).toMatch(/says -1/);
    expect(fuzzPageStream(1, 500, [plainCodec, forgetful]).failure).toMatch(/encodes/);
  });
});
