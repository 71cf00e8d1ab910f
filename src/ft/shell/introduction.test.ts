import { describe, expect, it } from 'vitest';
import { crc32c } from '../../base/crc32c.ts';
import { VmmError } from '../../base/error.ts';
import { Prng } from '../../base/prng.ts';
import { EXTENTS_MAX } from '../disk/activity-file.ts';
import { STORAGE } from '../disk/storage.ts';
import { AnswerReader, answer, IntroductionReader, imageParts, introduce } from './introduction.ts';

const sum = (bytes: Uint8Array): number => crc32c(bytes);
const kernel = new Uint8Array(5000).map((_, i) => i);
const ticket = { role: 'kernel', name: 'k', bytes: kernel.length, crc: crc32c(kernel) };

function exchange(split: (length: number) => number): void {
  const reader = new IntroductionReader(sum);
  const asked = introduce({ name: 'guest', images: [ticket] });
  const answers = new AnswerReader();
  let described = false;
  let done = false;
  const feed = (bytes: Uint8Array): void => {
    for (let at = 0; at < bytes.length; ) {
      const n = Math.max(1, split(bytes.length - at));
      const event = reader.push(bytes.subarray(at, at + n));
      at += n;
      if (event?.kind === 'description') {
        described = true;
        reader.want([{ number: 0, ticket }]);
      } else if (event?.kind === 'done') {
        done = true;
        expect(event.images.get(0)).toEqual(kernel);
        expect(event.rest.length).toBeLessThanOrEqual(3);
      }
    }
  };
  feed(asked);
  expect(described).toBe(true);
  const reply = answer([0]);
  let wanted: number[] | undefined;
  for (const byte of reply) wanted = answers.push(Uint8Array.of(byte))?.wanted ?? wanted;
  expect(wanted).toEqual([0]);
  for (const part of imageParts(kernel, sum)) feed(part);
  expect(done).toBe(true);
}

describe('introduction', () => {
  it('works whatever the split', () => {
    exchange(() => 1);
    exchange((length) => length);
    const prng = new Prng(1);
    for (let i = 0; i < 20; i++) exchange((length) => prng.between(1, length));
  });

  it('refuses damage, strangers and sizes beyond the limits', () => {
    const good = introduce({ name: 'x' });
    for (let i = 0; i < good.length; i++) {
      const bad = good.slice();
      bad[i]! ^= 0x80;
      const reader = new IntroductionReader(sum);
      // A longer length only waits for more; everything else is an error.
      if (i >= 12 && i < 16) continue;
      expect(() => reader.push(bad)).toThrow(VmmError);
    }
    const huge = good.slice();
    huge[15] = 0xff;
    expect(() => new IntroductionReader(sum).push(huge)).toThrow(/description of/);
    const reader = new IntroductionReader(sum);
    reader.push(good);
    expect(() => reader.want([{ number: 0, ticket: { ...ticket, bytes: 2 ** 40 } }])).toThrow(
      VmmError,
    );
    expect(() => new AnswerReader().push(new Uint8Array(12))).toThrow(/no tsvmm standby/);
  });

  it('tells what a standby has of the disks, whatever the split', () => {
    const storage = [STORAGE.replicated, STORAGE.shared, STORAGE.replicated];
    const held = { generation: 3, id: 2 ** 40 + 1 };
    const returned = {
      generation: 2,
      fromId: 2 ** 35 + 9,
      extents: [[0, 7, 2 ** 32 - 1], [], [5]],
    };
    for (const [known, log] of [
      [undefined, undefined],
      [held, undefined],
      [undefined, returned],
      [held, returned],
    ] as const) {
      const bytes = answer([1], storage, known, log);
      const reader = new AnswerReader();
      for (const byte of bytes.subarray(0, -1)) {
        expect(reader.push(Uint8Array.of(byte))).toBeUndefined();
      }
      const read = reader.push(Uint8Array.of(bytes.at(-1)!, 1, 2));
      expect(read).toEqual({
        wanted: [1],
        storage,
        held: known,
        returned: log,
        rest: Uint8Array.of(1, 2),
      });
    }
  });

  it('refuses more extents than a log can name, and such as are out of order', () => {
    const say = (extents: number[]): unknown =>
      new AnswerReader().push(
        answer([], [STORAGE.replicated], undefined, {
          generation: 1,
          fromId: 1,
          extents: [extents],
        }),
      );
    const most = Array.from({ length: EXTENTS_MAX }, (_, i) => 3 * i);
    expect(say(most)).toBeDefined();
    expect(() => say([...most, 2 ** 31])).toThrow(/names 1008 extents/);
    expect(() => say([4, 4])).toThrow(/not in order/);
    expect(() => say([5, 4])).toThrow(VmmError);
    // Whatever a stranger sends: an answer, an error, or a wait for more; never more than an answer is kept.
    const random = new Prng(4);
    const good = answer([0], [STORAGE.replicated, STORAGE.shared], undefined, {
      generation: 1,
      fromId: 9,
      extents: [[1, 2, 3], []],
    });
    for (let i = 0; i < 3000; i++) {
      const bad = good.slice(0, random.between(12, good.length));
      for (let n = random.below(3); n >= 0; n--)
        bad[8 + random.below(bad.length - 8)] = random.below(256);
      try {
        const read = new AnswerReader().push(bad);
        if (read?.returned !== undefined) {
          expect(read.returned.extents.length).toBe(read.storage.length);
        }
      } catch (error) {
        expect(error).toBeInstanceOf(VmmError);
      }
    }
  });

  it('refuses an image whose bytes differ from what was announced', () => {
    const reader = new IntroductionReader(sum);
    reader.push(introduce({}));
    reader.want([{ number: 0, ticket }]);
    const other = kernel.slice();
    other[7] = 0;
    const [head, bytes] = imageParts(other, sum);
    reader.push(head);
    expect(() => reader.push(bytes)).toThrow(/damaged/);
  });
});
