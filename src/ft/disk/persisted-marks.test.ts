// What a primary and a survivor keep of their differences: torn, lost and damaged at every place, never too little.
import { describe, expect, it } from 'vitest';
import { CrashFile, Power } from '../../../test/support/crash-media.ts';
import { crc32c } from '../../base/crc32c.ts';
import { Prng } from '../../base/prng.ts';
import { ActivityLog, EXTENT_BYTES, EXTENTS_MAX } from './activity-log.ts';
import { saveDifferences, takeDifferences } from './difference-file.ts';
import type { Crc } from './disk-log.ts';
import { GRANULE_BYTES, Granules } from './granules.ts';

const crc: Crc = (bytes, offset, length, previous) =>
  crc32c(bytes, offset, offset + length, previous);
const vm = '0123456789abcdef0123456789abcdef';

async function reopen(content: Uint8Array): Promise<ActivityLog> {
  return ActivityLog.open(new CrashFile(new Power(), content), crc);
}

describe('the activity log', () => {
  it('covers an extent only when that is durable', async () => {
    const file = new CrashFile(new Power());
    const log = await ActivityLog.open(file, crc);
    expect(log.found).toBeUndefined();
    await log.begin({ vm, generation: 4 });
    expect(log.covers(0, 512)).toBe(false);
    const done = log.activate(EXTENT_BYTES - 512, 1024);
    expect(log.covers(0, 512)).toBe(false);
    await done;
    expect(log.covers(EXTENT_BYTES - 512, 1024)).toBe(true);
    expect((await reopen(file.durable)).found).toEqual({
      vm,
      generation: 4,
      clean: false,
      extents: [0, 1],
    });
    log.retire([0]);
    expect(log.covers(0, 512)).toBe(false);
    await log.end();
    expect((await reopen(file.durable)).found).toEqual({
      vm,
      generation: 4,
      clean: true,
      extents: [1],
    });
  });

  it('shares one write between changes that come together, and has a bound', async () => {
    const power = new Power();
    const log = await ActivityLog.open(new CrashFile(power), crc);
    await log.begin({ vm, generation: 1 });
    const before = power.steps;
    const all: Promise<void>[] = [];
    for (let e = 0; e < EXTENTS_MAX; e++) all.push(log.activate(e * EXTENT_BYTES, 512)!);
    await Promise.all(all);
    expect(power.steps - before).toBeLessThanOrEqual(4);
    expect(log.covers(0, EXTENTS_MAX * EXTENT_BYTES)).toBe(true);
    expect(log.activate(EXTENTS_MAX * EXTENT_BYTES, 512)).toBeUndefined();
    log.retire(log.active.slice(0, 1));
    await log.activate(EXTENTS_MAX * EXTENT_BYTES, 512);
    expect(log.covers(EXTENTS_MAX * EXTENT_BYTES, 512)).toBe(true);
    expect(log.covers(0, 512)).toBe(false);
  });

  it('names every extent that was written, whenever the power goes', async () => {
    for (let fatal = 1; fatal < 60; fatal++) {
      const random = new Prng(fatal);
      const power = new Power(fatal);
      const file = new CrashFile(power);
      const written = new Set<number>();
      let active: number[] = [];
      const run = async (): Promise<void> => {
        const log = await ActivityLog.open(file, crc);
        await log.begin({ vm, generation: 2 });
        for (let i = 0; i < 30; i++) {
          const extent = random.below(12);
          if (!log.covers(extent * EXTENT_BYTES, 512)) {
            await log.activate(extent * EXTENT_BYTES, 512);
          }
          expect(log.covers(extent * EXTENT_BYTES, 512)).toBe(true);
          written.add(extent);
          active = [...log.active];
          if (random.chance(0.3)) {
            // Acknowledged and durable: the same on both hosts.
            const gone = random.pick(active);
            written.delete(gone);
            log.retire([gone]);
          }
        }
      };
      void run();
      for (let i = 0; i < 40; i++) await new Promise((resolve) => setImmediate(resolve));
      const { found } = await reopen(file.after(random));
      if (found === undefined) {
        expect(written.size).toBe(0);
        continue;
      }
      expect(found.clean).toBe(false);
      for (const extent of written) expect(found.extents, `fatal ${fatal}`).toContain(extent);
    }
  });

  it('does not believe a damaged block', async () => {
    const file = new CrashFile(new Power());
    const log = await ActivityLog.open(file, crc);
    await log.begin({ vm, generation: 1 });
    await log.activate(0, 512);
    const last = (await reopen(file.now)).found;
    expect(last?.extents).toEqual([0]);
    const random = new Prng(3);
    for (let i = 0; i < 200; i++) {
      const bad = file.now.slice();
      // The second block that was written is the newest.
      bad[2 * 4096 + random.below(4096)]! ^= 1 << random.below(8);
      expect((await reopen(bad)).found?.extents).toEqual([]);
    }
  });
});

describe('differences that are kept', () => {
  const size = 70_000 * GRANULE_BYTES + 512;
  const base = { vm, generation: 3, id: 2 ** 33 + 5 };

  function marks(): Granules {
    const random = new Prng(11);
    const granules = new Granules(size);
    for (let i = 0; i < 3000; i++) granules.set(random.below(granules.total));
    return granules;
  }

  it('come back once, as they were', async () => {
    const file = new CrashFile(new Power());
    const granules = marks();
    await saveDifferences(file, crc, base, granules);
    expect(
      await takeDifferences(new CrashFile(new Power(), file.now), crc, size - 512),
    ).toBeUndefined();
    const taken = await takeDifferences(file, crc, size);
    expect(taken?.base).toEqual(base);
    expect(taken?.granules.count).toBe(granules.count);
    expect(taken?.granules.toBytes()).toEqual(granules.toBytes());
    // Whoever took them and dies leaves none.
    expect(await takeDifferences(file, crc, size)).toBeUndefined();
  });

  it('are whole or none, whenever the power goes while they are saved', async () => {
    const granules = marks();
    for (let fatal = 1; fatal <= 12; fatal++) {
      for (let seed = 0; seed < 8; seed++) {
        const random = new Prng(seed);
        const power = new Power(fatal);
        const file = new CrashFile(power);
        let saved = false;
        void saveDifferences(file, crc, base, granules).then(() => {
          saved = true;
        });
        for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
        const after = new CrashFile(new Power(), file.after(random));
        const taken = await takeDifferences(after, crc, size);
        if (saved) expect(taken).toBeDefined();
        if (taken !== undefined) expect(taken.granules.toBytes()).toEqual(granules.toBytes());
      }
    }
  });
});
