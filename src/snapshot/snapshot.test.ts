import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { VmmError } from '../base/error.ts';
import {
  array,
  bool,
  bytes,
  fixedBytes,
  oneOf,
  optional,
  text,
  u8,
  u16,
  u32,
  u53,
  u64,
} from './codec.ts';
import { decodeContainer, encodeContainer, SectionSet, sectionOf } from './container.ts';
import { schema } from './schema.ts';

interface Sample {
  a: number;
  b: number;
  c: number;
  far: number;
  wide: bigint;
  on: boolean;
  id: Uint8Array;
  blob: Uint8Array;
  name: string;
  list: number[];
  maybe: number | undefined;
  mode: 'x' | 'y';
}

const sample = schema<Sample>('sample', 3, {
  a: u8,
  b: u16,
  c: u32,
  far: u53,
  wide: u64,
  on: bool,
  id: fixedBytes(4),
  blob: bytes(100),
  name: text(50),
  list: array(u16, 10),
  maybe: optional(u32),
  mode: oneOf('x', 'y'),
});

const anySample: fc.Arbitrary<Sample> = fc.record({
  a: fc.nat(0xff),
  b: fc.nat(0xffff),
  c: fc.nat(0xffffffff),
  far: fc.maxSafeNat(),
  wide: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
  on: fc.boolean(),
  id: fc.uint8Array({ minLength: 4, maxLength: 4 }),
  blob: fc.uint8Array({ maxLength: 100 }),
  name: fc.string({ maxLength: 10 }),
  list: fc.array(fc.nat(0xffff), { maxLength: 10 }),
  maybe: fc.option(fc.nat(0xffffffff), { nil: undefined }),
  mode: fc.constantFrom<'x' | 'y'>('x', 'y'),
});

describe('schema', () => {
  it('reads back what it wrote', () => {
    fc.assert(
      fc.property(anySample, (value) => {
        const back = sample.decode(sample.encode(value));
        expect(back).toEqual({
          ...value,
          id: Uint8Array.from(value.id),
          blob: Uint8Array.from(value.blob),
        });
      }),
    );
  });

  it('refuses values that do not fit', () => {
    const good = fc.sample(anySample, 1)[0]!;
    expect(() => sample.encode({ ...good, a: 256 })).toThrow(VmmError);
    expect(() => sample.encode({ ...good, b: 1.5 })).toThrow(VmmError);
    expect(() => sample.encode({ ...good, id: new Uint8Array(3) })).toThrow(VmmError);
  });

  it('answers any bytes with a value or STATE_CORRUPT', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (garbage) => {
        try {
          sample.decode(garbage);
        } catch (error) {
          expect(error).toBeInstanceOf(VmmError);
        }
      }),
    );
  });
});

describe('container', () => {
  const one = sectionOf(sample, 'first', fc.sample(anySample, 1)[0]!);

  it('keeps sections, and each must be taken exactly once', () => {
    const set = new SectionSet(decodeContainer(encodeContainer([one])));
    expect(() => set.end()).toThrow(/sample:first/);
    set.take(sample, 'first');
    set.end();
    expect(() => set.take(sample, 'first')).toThrow(/no section/);
  });

  it('refuses a wrong version and a doubled section', () => {
    const newer = schema<{ a: number }>('sample', 4, { a: u8 });
    expect(() => new SectionSet([one]).take(newer, 'first')).toThrow(/version 3/);
    expect(() => new SectionSet([one, one])).toThrow(/two sections/);
  });

  it('names a damaged section in one line', () => {
    const bytes = encodeContainer([{ ...one, kind: 'a\n\u001b[2J', version: 1 }]);
    bytes[bytes.length - 5]! ^= 1;
    expect(() => decodeContainer(bytes)).toThrow(/section a\\u000a\\u001b\[2J:first fails/);
  });

  it('notices every flipped bit and every cut', () => {
    const whole = encodeContainer([one]);
    for (let i = 0; i < whole.length; i++) {
      const bad = whole.slice();
      bad[i]! ^= 1 << (i % 8);
      expect(() => decodeContainer(bad)).toThrow(VmmError);
      expect(() => decodeContainer(whole.subarray(0, i))).toThrow(VmmError);
    }
  });
});
