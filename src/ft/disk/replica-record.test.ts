import { describe, expect, it } from 'vitest';
import { CrashFile, Power } from '../../../test/support/crash-media.ts';
import { crc32c } from '../../base/crc32c.ts';
import { Prng } from '../../base/prng.ts';
import type { Crc } from './disk-log.ts';
import { IMAGE, type Mark, ReplicaRecord } from './replica-record.ts';

const crc: Crc = (bytes, offset, length, previous) =>
  crc32c(bytes, offset, offset + length, previous);
const AREA = 64 * 1024;
const mark: Mark = {
  state: IMAGE.replica,
  vm: '00112233445566778899aabbccddeeff',
  generation: 3,
  id: 7,
  imageBytes: 2 ** 40 + 512,
};

async function open(content?: Uint8Array): Promise<{ file: CrashFile; record: ReplicaRecord }> {
  const file = new CrashFile(new Power(), content);
  return { file, record: await ReplicaRecord.open(file, crc, AREA) };
}

function body(random: Prng, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  random.fill(bytes);
  return bytes;
}

describe('the record beside an image', () => {
  it('gives back its mark and what was appended', async () => {
    const random = new Prng(1);
    const { file, record } = await open();
    expect(record.mark).toBeUndefined();
    await record.reserve();
    expect(file.sizeBytes).toBe(AREA + 8192);
    await record.setMark(mark);
    const bodies = [body(random, 0), body(random, 5000), body(random, 4048)];
    for (const [i, b] of bodies.entries())
      await record.append(3, 8 + i, [b.subarray(0, 7), b.subarray(7)]);
    const again = await open(file.now);
    expect(again.record.mark).toEqual(mark);
    const found = again.record.takeRecords();
    expect(found.map(({ id }) => id)).toEqual([8, 9, 10]);
    expect(found.map((r) => r.body)).toEqual(bodies);
    expect(again.record.takeRecords()).toEqual([]);
  });

  it('begins a lap with a mark that voids what lies there', async () => {
    const random = new Prng(2);
    const { file, record } = await open();
    await record.setMark(mark);
    for (let id = 8; record.fits(9000); id++) await record.append(3, id, [body(random, 9000)]);
    expect(record.canHold(9000)).toBe(true);
    expect(record.canHold(AREA)).toBe(false);
    await record.setMark({ ...mark, id: 12 });
    expect((await open(file.now)).record.takeRecords()).toEqual([]);
    await record.append(3, 13, [body(random, 100)]);
    const again = await open(file.now);
    expect(again.record.mark?.id).toBe(12);
    expect(again.record.takeRecords().map(({ id }) => id)).toEqual([13]);
    // Nobody looked at the records, and yet what follows is numbered behind them.
    await again.record.setMark({ ...mark, id: 13 });
    expect((await open(again.file.now)).record.takeRecords()).toEqual([]);
  });

  it('has no record in a lap that was begun in an earlier one and failed', async () => {
    const { file, record } = await open();
    await record.setMark(mark);
    const { sync } = file;
    file.sync = () => Promise.reject(new Error('the flush fails'));
    await expect(record.append(3, 8, [new Uint8Array(10)])).rejects.toThrow(/the flush fails/);
    file.sync = sync;
    // It is there, and the first record of the next lap would be in its place.
    await record.setMark({ ...mark, id: 20 });
    const again = await open(file.now);
    expect(again.record.takeRecords()).toEqual([]);
    expect(again.record.lastId).toBe(20);
    await record.append(3, 21, [new Uint8Array(10)]);
    expect((await open(file.now)).record.takeRecords().map(({ id }) => id)).toEqual([21]);
  });

  it('makes what an earlier process could not flush durable before a recovery', async () => {
    const { file, record } = await open();
    await record.setMark(mark);
    const { sync } = file;
    file.sync = () => Promise.reject(new Error('killed'));
    await expect(record.append(3, 8, [new Uint8Array(10)])).rejects.toThrow(/killed/);
    file.sync = sync;
    const again = await ReplicaRecord.open(file, crc);
    await again.sync();
    const after = await open(file.durable);
    expect(after.record.takeRecords().map(({ id }) => id)).toEqual([8]);
  });

  it('has no records unless the image is a copy', async () => {
    const { file, record } = await open();
    await record.setMark(mark);
    await record.append(3, 8, [new Uint8Array(10)]);
    await record.setMark({ ...mark, state: IMAGE.live });
    const again = await open(file.now);
    expect(again.record.mark?.state).toBe(IMAGE.live);
    expect(again.record.takeRecords()).toEqual([]);
  });

  it('ends before a record that is torn at any byte, or damaged at any bit of it', async () => {
    const random = new Prng(3);
    const { file, record } = await open();
    await record.setMark(mark);
    await record.append(3, 8, [body(random, 300)]);
    const start = 8192 + 4096;
    const before = file.now.slice();
    await record.append(3, 9, [body(random, 300)]);
    const whole = file.now.slice();
    for (let at = 0; at < 348; at++) {
      const torn = whole.slice();
      torn.fill(0, start + at);
      torn.set(before.subarray(start + at, before.length), start + at);
      const ids = (await open(torn)).record.takeRecords().map(({ id }) => id);
      expect(ids, `torn at ${at}`).toEqual([8]);
      const damaged = whole.slice();
      damaged[start + at]! ^= 1 << random.below(8);
      // The reserved words are covered by the checksum too.
      expect((await open(damaged)).record.takeRecords().map(({ id }) => id)).toEqual([8]);
    }
    expect((await open(whole)).record.takeRecords().map(({ id }) => id)).toEqual([8, 9]);
  });

  it('has the mark before, or the new one, when a mark is torn at any byte', async () => {
    const { file, record } = await open();
    await record.setMark(mark);
    await record.setMark({ ...mark, id: 8 });
    const before = file.now.slice();
    await record.setMark({ ...mark, id: 9 });
    const after = file.now.slice();
    for (let at = 0; at <= 72; at++) {
      const torn = before.slice();
      torn.set(after.subarray(4096, 4096 + at), 4096);
      const { id } = (await open(torn)).record.mark!;
      expect(id).toBe(at === 72 ? 9 : 8);
    }
  });
});
