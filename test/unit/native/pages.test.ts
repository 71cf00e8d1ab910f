import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { crc32c } from '../../../src/base/crc32c.ts';
import { Prng } from '../../../src/base/prng.ts';
import { loadAddon } from '../../../src/kvm/addon.ts';
import { DECODE_ERROR, loadNativeIo } from '../../../src/kvm/native-io.ts';

interface MemoryMap {
  addRange(guestPhys: number, buffer: ArrayBuffer): void;
}
const native = loadNativeIo();
const addon = loadAddon() as { MemoryMap: new () => MemoryMap };
const PAGE = 4096;

/** Both ends of a stream: what the sender has, and the receiver's committed memory. */
class Link {
  readonly pages: number;
  readonly sender: Uint8Array<ArrayBuffer>;
  readonly receiver: Uint8Array<ArrayBuffer>;
  readonly map = new addon.MemoryMap();
  readonly encoder;
  readonly out = new Uint8Array(1 << 20);
  readonly stats = new Uint32Array(5);

  constructor(pages: number, cachePages: number) {
    this.pages = pages;
    this.sender = new Uint8Array(new ArrayBuffer(pages * PAGE));
    this.receiver = new Uint8Array(new ArrayBuffer(pages * PAGE));
    this.map.addRange(0, this.receiver.buffer);
    this.encoder = new native.PageEncoder(cachePages);
  }

  gather(list: number[]): Uint8Array {
    const staging = new Uint8Array(list.length * PAGE);
    for (const [i, page] of list.entries())
      staging.set(this.sender.subarray(page * PAGE, (page + 1) * PAGE), i * PAGE);
    return staging;
  }

  /** Encodes one transaction; the bytes of the stream. */
  encode(list: number[]): Uint8Array {
    const numbers = new Uint32Array(list);
    const done = this.encoder.encode(
      numbers,
      0,
      list.length,
      this.gather(list),
      0,
      this.out,
      0,
      this.stats,
    );
    expect(done).toBe(list.length);
    return this.out.slice(0, this.stats[4]);
  }

  /** Decodes and commits; the number of pages, or an error code. */
  apply(stream: Uint8Array): number {
    const numbers = new Uint32Array(256);
    const staging = new Uint8Array(256 * PAGE);
    const count = native.decodePages(stream, 0, stream.length, this.map, numbers, 0, staging, 0);
    for (let i = 0; i < count; i++)
      this.receiver.set(staging.subarray(i * PAGE, (i + 1) * PAGE), numbers[i]! * PAGE);
    return count;
  }
}

function mutate(random: Prng, page: Uint8Array): void {
  switch (random.below(6)) {
    case 0:
      page.fill(0);
      break;
    case 1:
      random.fill(page);
      break;
    case 2:
      break;
    case 3:
      page.fill(random.below(256));
      break;
    default: {
      const changes = random.below(200);
      for (let i = 0; i < changes; i++) page[random.below(PAGE)] = random.below(256);
    }
  }
}

describe('page stream', () => {
  it('carries any sequence of changes, with any cache', () => {
    fc.assert(
      fc.property(fc.integer(), fc.constantFrom(0, 1, 7, 64), (seed, cache) => {
        const random = new Prng(seed);
        const link = new Link(48, cache);
        for (let epoch = 0; epoch < 12; epoch++) {
          const list = Array.from({ length: 48 }, (_, page) => page).filter(() =>
            random.chance(0.5),
          );
          for (const page of list)
            mutate(random, link.sender.subarray(page * PAGE, (page + 1) * PAGE));
          const stream = link.encode(list);
          if (random.chance(0.2)) {
            // The transaction was cancelled: its pages go into the next one.
            link.encoder.forget(new Uint32Array(list), 0, list.length);
            const again = link.encode(list);
            expect(link.apply(again)).toBe(list.length);
          } else {
            expect(link.apply(stream)).toBe(list.length);
          }
          expect(Buffer.compare(link.sender, link.receiver)).toBe(0);
        }
      }),
      { numRuns: 40 },
    );
  });

  it('counts kinds, and a small change costs little', () => {
    const link = new Link(4, 16);
    new Prng(5).fill(link.sender.subarray(PAGE, 3 * PAGE));
    link.apply(link.encode([0, 1, 2]));
    expect([...link.stats.subarray(0, 4)]).toEqual([1, 0, 0, 2]);
    link.stats.fill(0);
    link.sender[PAGE + 5000] = link.sender[PAGE + 5000]! ^ 1;
    link.sender[PAGE + 100] = link.sender[PAGE + 100]! ^ 1;
    const stream = link.encode([1, 2]);
    expect([...link.stats.subarray(0, 4)]).toEqual([0, 0, 2, 0]);
    expect(stream.length).toBeLessThan(60);
    link.stats.fill(0);
    link.apply(stream);
    expect(link.encode([0, 1]).length).toBe(24);
    expect([...link.stats.subarray(0, 4)]).toEqual([1, 1, 0, 0]);
  });

  it('stops where the output is full and goes on from there', () => {
    const link = new Link(8, 0);
    new Prng(6).fill(link.sender);
    const list = Uint32Array.from([0, 1, 2, 3, 4, 5, 6, 7]);
    const staging = link.gather([...list]);
    const out = new Uint8Array(3 * 4108 + 500);
    const done = link.encoder.encode(list, 0, 8, staging, 0, out, 0, link.stats);
    expect(done).toBe(3);
    const rest = link.encoder.encode(list, 3, 2, staging, 3 * PAGE, link.out, 0, link.stats);
    expect(rest).toBe(2);
    expect(link.apply(out.subarray(0, 3 * 4108))).toBe(3);
    expect(link.apply(link.out.subarray(0, link.stats[4]))).toBe(2);
    expect(
      Buffer.compare(link.receiver.subarray(0, 5 * PAGE), link.sender.subarray(0, 5 * PAGE)),
    ).toBe(0);
  });

  it('refuses a delta against other content (planted: the receiver lost a commit)', () => {
    const link = new Link(1, 4);
    new Prng(7).fill(link.sender);
    link.encode([0]);
    link.sender[9] = link.sender[9]! ^ 0xff;
    expect(link.apply(link.encode([0]))).toBe(DECODE_ERROR.checksum);
  });

  it('refuses pages that are not memory, and too many', () => {
    const link = new Link(2, 0);
    link.sender.fill(1);
    const stream = link.encode([0, 1]);
    const numbers = new Uint32Array(1);
    expect(
      native.decodePages(
        stream,
        0,
        stream.length,
        link.map,
        numbers,
        0,
        new Uint8Array(2 * PAGE),
        0,
      ),
    ).toBe(DECODE_ERROR.noRoom);
    new DataView(stream.buffer, stream.byteOffset).setUint32(0, 2, true);
    expect(link.apply(stream)).toBe(DECODE_ERROR.notMemory);
    new DataView(stream.buffer, stream.byteOffset).setUint32(0, 0xffff_ffff, true);
    expect(link.apply(stream)).toBe(DECODE_ERROR.notMemory);
  });

  it('survives noise and damage: nothing is decoded that the sender did not mean', () => {
    const random = new Prng(8);
    const link = new Link(16, 16);
    random.fill(link.sender);
    const all = Array.from({ length: 16 }, (_, page) => page);
    link.apply(link.encode(all));
    for (const page of all) link.sender[page * PAGE + random.below(PAGE)]!++;
    const good = link.encode(all);
    const numbers = new Uint32Array(64);
    const staging = new Uint8Array(64 * PAGE);
    let refused = 0;
    for (let round = 0; round < 3000; round++) {
      const bad = good.slice(0, random.chance(0.3) ? random.below(good.length) : good.length);
      const flips = random.below(4);
      for (let i = 0; i < flips && bad.length > 0; i++) {
        const at = random.below(bad.length);
        bad[at] = bad[at]! ^ (1 << random.below(8));
      }
      const count = native.decodePages(bad, 0, bad.length, link.map, numbers, 0, staging, 0);
      if (count < 0) {
        refused++;
        continue;
      }
      for (let i = 0; i < count; i++) {
        // A flipped page number can only be caught by the transaction's own checksum; content never differs.
        const page = staging.subarray(i * PAGE, (i + 1) * PAGE);
        const known = all.some(
          (p) => Buffer.compare(page, link.sender.subarray(p * PAGE, (p + 1) * PAGE)) === 0,
        );
        expect(known).toBe(true);
      }
    }
    expect(refused).toBeGreaterThan(1000);
    const noise = new Uint8Array(5000);
    for (let round = 0; round < 3000; round++) {
      random.fill(noise);
      if (random.chance(0.5)) noise.fill(0, 0, 4);
      if (random.chance(0.5)) noise.fill(random.below(4), 4, 5).fill(0, 5, 6);
      native.decodePages(noise, 0, random.below(5000), link.map, numbers, 0, staging, 0);
    }
  });

  it('refuses garbage arguments by throwing', () => {
    const link = new Link(1, 1);
    const garbage = [
      undefined,
      null,
      -1,
      1e300,
      Number.NaN,
      'x',
      {},
      [],
      new Uint8Array(3),
      new Uint32Array(1),
      new Float64Array(2),
      link.map,
    ];
    const random = new Prng(9);
    const calls = ['decodePages', 'crc32c', 'crcPages', 'isZero', 'bytesEqual'] as const;
    const functions = native as unknown as Record<string, (...args: unknown[]) => unknown>;
    const encoder = link.encoder as unknown as Record<string, (...args: unknown[]) => unknown>;
    for (let round = 0; round < 4000; round++) {
      const args = Array.from({ length: random.below(10) }, () => random.pick(garbage));
      try {
        if (random.chance(0.3)) encoder[random.pick(['encode', 'forget', 'clear'])]!(...args);
        else functions[random.pick(calls)]!(...args);
      } catch (error) {
        expect(error).toBeInstanceOf(Error);
      }
    }
  });
});

describe('checksums and comparison', () => {
  it('agrees with the table in TypeScript, for every length and with and without the instruction', () => {
    const random = new Prng(10);
    const bytes = new Uint8Array(20_000);
    random.fill(bytes);
    expect(native.crc32c(Buffer.from('123456789'), 0, 9, 0)).toBe(0xe3069283);
    const withTable = native.crc32c as unknown as (...args: unknown[]) => number;
    for (let round = 0; round < 300; round++) {
      const start = random.below(9000);
      const length = random.below(round < 100 ? 64 : 11_000);
      const previous = random.chance(0.5) ? 0 : random.u32();
      const expected = crc32c(bytes, start, start + length, previous);
      expect(native.crc32c(bytes, start, length, previous)).toBe(expected);
      expect(withTable(bytes, start, length, previous, true)).toBe(expected);
    }
    const sums = new Uint32Array(4);
    native.crcPages(bytes, 100, 4, sums);
    for (let i = 0; i < 4; i++)
      expect(sums[i]).toBe(crc32c(bytes, 100 + i * PAGE, 100 + (i + 1) * PAGE));
  });

  it('finds zero and equal ranges', () => {
    const a = new Uint8Array(10_000);
    expect(native.isZero(a, 0, 10_000)).toBe(true);
    expect(native.isZero(a, 5, 0)).toBe(true);
    for (const at of [0, 1, 4095, 9999]) {
      a[at] = 1;
      expect(native.isZero(a, 0, 10_000)).toBe(false);
      expect(native.isZero(a, at + 1 < 10_000 ? at + 1 : 0, 0)).toBe(true);
      a[at] = 0;
    }
    const b = a.slice();
    expect(native.bytesEqual(a, 3, b, 3, 9000)).toBe(true);
    b[8000] = 2;
    expect(native.bytesEqual(a, 3, b, 3, 9000)).toBe(false);
    expect(() => native.isZero(a, 9000, 1001)).toThrow(RangeError);
  });
});
