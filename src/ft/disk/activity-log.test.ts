// What a primary keeps of its differences: torn, lost and damaged at every place, never too little.
import { describe, expect, it } from 'vitest';
import { CrashFile, Power } from '../../../test/support/crash-media.ts';
import { crc32c } from '../../base/crc32c.ts';
import { Prng } from '../../base/prng.ts';
import { ActivityFile, EXTENT_BYTES, EXTENTS_MAX } from './activity-file.ts';
import { ActivityLog } from './activity-log.ts';
import type { Crc } from './disk-log.ts';

const crc: Crc = (bytes, offset, length, previous) =>
  crc32c(bytes, offset, offset + length, previous);
const vm = '0123456789abcdef0123456789abcdef';

async function reopen(content: Uint8Array): Promise<ActivityFile> {
  return ActivityFile.open(new CrashFile(new Power(), content), crc);
}

const owner = { vm, generation: 4, fromId: 2 ** 33 + 7 };
const state = { ...owner, image: 99 };

/** A log, with what it does under control. */
class Rig {
  readonly file: CrashFile;
  readonly log: ActivityLog;
  readonly warnings: string[] = [];
  rooms = 0;
  waits = 0;
  flushes = 0;
  /** Sleepers, to be woken. */
  sleeping: (() => void)[] = [];
  flushed: Promise<void> = Promise.resolve();
  refuses: string | undefined;

  constructor(extents = 8, file = new CrashFile(new Power())) {
    this.file = file;
    this.log = new ActivityLog(extents * EXTENT_BYTES, {
      image: 99,
      open: () => ActivityFile.open(this.file, crc),
      flush: async () => {
        this.flushes++;
        await this.flushed;
        if (this.refuses !== undefined) throw new Error(this.refuses);
      },
      sleep: () => new Promise((resolve) => this.sleeping.push(resolve)),
      warn: (sentence) => this.warnings.push(sentence),
      close: () => {},
    });
    this.log.onRoom = () => this.rooms++;
    this.log.onWait = () => this.waits++;
  }

  async settle(): Promise<void> {
    for (let i = 0; i < 12; i++) await new Promise((resolve) => setImmediate(resolve));
  }

  /** Time passes. */
  async later(): Promise<void> {
    await this.settle();
    for (const wake of this.sleeping.splice(0)) wake();
    await this.settle();
  }

  async sound(): Promise<this> {
    this.log.arm(owner);
    await this.settle();
    expect(this.log.state).toBe('sound');
    return this;
  }

  /** A write that is done, and not acknowledged. */
  async write(extent: number): Promise<void> {
    if (!this.log.admits(extent * EXTENT_BYTES, 512)) await this.settle();
    expect(this.log.admits(extent * EXTENT_BYTES, 512)).toBe(true);
    this.log.begin(extent * EXTENT_BYTES, 512);
  }

  async durable(): Promise<readonly number[] | undefined> {
    return (await reopen(this.file.durable)).found?.extents;
  }
}

describe('the activity log', () => {
  it('claims nothing before the disk is durable, and names what was written meanwhile', async () => {
    const rig = new Rig();
    const { log } = rig;
    let go = (): void => {};
    rig.flushed = new Promise((resolve) => {
      go = resolve;
    });
    // Not acknowledged when the flush begins; acknowledged before it ends; written while it is under way; and neither.
    for (const extent of [1, 2, 5]) log.begin(extent * EXTENT_BYTES, 512);
    log.end(5 * EXTENT_BYTES, 512);
    log.arm(owner);
    await rig.settle();
    expect([log.state, log.admits(0, 512), rig.file.durable.length]).toEqual(['arming', true, 0]);
    log.end(2 * EXTENT_BYTES, 512);
    log.begin(3 * EXTENT_BYTES, 512);
    log.end(3 * EXTENT_BYTES, 512);
    go();
    await rig.settle();
    expect(log.state).toBe('sound');
    expect((await reopen(rig.file.durable)).found).toEqual({ ...state, extents: [1, 2, 3] });
  });

  it('covers an extent only when that is durable', async () => {
    const rig = await new Rig().sound();
    const { log, file } = rig;
    expect(log.admits(EXTENT_BYTES - 512, 1024)).toBe(false);
    const { rooms } = rig;
    expect(await rig.durable()).toEqual([]);
    await rig.settle();
    expect(rig.rooms).toBeGreaterThan(rooms);
    expect(log.admits(EXTENT_BYTES - 512, 1024)).toBe(true);
    expect((await reopen(file.durable)).found).toEqual({ ...state, extents: [0, 1] });
    expect(log.admits(2 * EXTENT_BYTES, 512)).toBe(false);
  });

  it('retires what is acknowledged and durable, and nothing else', async () => {
    const rig = await new Rig().sound();
    const { log } = rig;
    for (const extent of [1, 2, 3, 4, 5]) await rig.write(extent);
    // 2: not acknowledged. 3: acknowledged while the flush is under way. 4: written again meanwhile. 5: refused half-way.
    for (const extent of [1, 4, 5]) log.end(extent * EXTENT_BYTES, 512);
    log.failed(5 * EXTENT_BYTES, 512);
    let go = (): void => {};
    rig.flushed = new Promise((resolve) => {
      go = resolve;
    });
    const { flushes } = rig;
    await rig.later();
    expect(rig.flushes).toBe(flushes + 1);
    log.end(3 * EXTENT_BYTES, 512);
    await rig.write(4);
    log.end(4 * EXTENT_BYTES, 512);
    expect(await rig.durable()).toEqual([1, 2, 3, 4, 5]);
    go();
    await rig.settle();
    expect(await rig.durable()).toEqual([2, 3, 4, 5]);
    expect(log.admits(EXTENT_BYTES, 512)).toBe(false);
    log.end(2 * EXTENT_BYTES, 512);
    await rig.later();
    await rig.settle();
    // 1 was wanted, and not written.
    expect(await rig.durable()).toEqual([1, 5]);
    await rig.later();
    // What was refused is never the same again.
    expect(await rig.durable()).toEqual([5]);
    await log.close();
    expect(await rig.durable()).toEqual([5]);
  });

  it('lets nothing go that it does not cover before the file claims nothing', async () => {
    const rig = await new Rig().sound();
    const { log, file } = rig;
    await rig.write(1);
    const sound = file.write.bind(file);
    file.write = () => Promise.reject(new Error('the disk refuses'));
    log.void();
    expect([log.admits(EXTENT_BYTES, 512), log.admits(0, 512)]).toEqual([true, false]);
    await rig.later();
    expect([log.state, log.admits(0, 512)]).toEqual(['voiding', false]);
    expect(rig.warnings).toEqual(['writes wait: the disk refuses']);
    file.write = sound;
    await rig.later();
    expect([log.state, log.admits(0, 512)]).toEqual(['void', true]);
    expect(await rig.durable()).toBeUndefined();
    // For the next standby it begins anew; what was not acknowledged meanwhile is still counted.
    log.arm({ ...owner, fromId: 77 });
    await rig.settle();
    expect((await reopen(file.durable)).found).toEqual({ ...state, fromId: 77, extents: [1] });
    // Given up again before it has begun.
    log.void();
    await rig.settle();
    log.arm(owner);
    log.void();
    await rig.settle();
    expect([log.state, await rig.durable()]).toEqual(['void', undefined]);
  });

  it('waits for acknowledgements when it is full, and gives up for a write that is too wide', async () => {
    const rig = await new Rig(EXTENTS_MAX + 40).sound();
    const { log } = rig;
    const write = rig.file.write.bind(rig.file);
    let writes = 0;
    rig.file.write = (at, bytes) => {
      writes++;
      return write(at, bytes);
    };
    for (let e = 0; e < 50; e++) log.admits(e * EXTENT_BYTES, 512);
    await rig.settle();
    // Changes that come together share a write.
    expect(writes).toBe(2);
    for (let e = 0; e < EXTENTS_MAX; e++) await rig.write(e);
    expect(log.admits(EXTENTS_MAX * EXTENT_BYTES, 512)).toBe(false);
    expect(rig.waits).toBe(1);
    await rig.later();
    expect(log.admits(EXTENTS_MAX * EXTENT_BYTES, 512)).toBe(false);
    log.end(5 * EXTENT_BYTES, 512);
    await rig.later();
    await rig.later();
    await rig.write(EXTENTS_MAX);
    expect(log.active).not.toContain(5);
    expect(log.admits(0, 600 * EXTENT_BYTES)).toBe(false);
    await rig.settle();
    expect([log.state, log.admits(0, 600 * EXTENT_BYTES)]).toEqual(['void', true]);
    expect(await rig.durable()).toBeUndefined();
  });

  it('says that nothing differs when its owner ends in order', async () => {
    const rig = await new Rig().sound();
    await rig.write(3);
    rig.log.end(3 * EXTENT_BYTES, 512);
    await rig.log.close();
    expect(await rig.durable()).toEqual([]);
    const other = await new Rig().sound();
    await other.write(3);
    await other.log.close();
    expect(await other.durable()).toEqual([3]);
  });

  it('is given up when the disk loses what it took, or has no place for the file', async () => {
    const rig = await new Rig().sound();
    await rig.write(3);
    rig.refuses = 'lost';
    await rig.later();
    expect([rig.log.state, await rig.durable()]).toEqual(['void', undefined]);
    expect(rig.warnings[0]).toMatch(/whole copy of its disk: lost/);
    rig.log.arm(owner);
    expect(rig.log.state).toBe('void');
    const file = new CrashFile(new Power());
    file.read = () => Promise.reject(new Error('no place'));
    const none = new Rig(8, file);
    none.log.arm(owner);
    await none.settle();
    expect([none.log.state, none.warnings.length]).toEqual(['void', 1]);
  });
});

describe('the file of an activity log', () => {
  it('gives back what was written, and names an extent too many rather than one too few', async () => {
    for (let fatal = 1; fatal < 24; fatal++) {
      const random = new Prng(fatal);
      const file = new CrashFile(new Power(fatal));
      let before: number[] | undefined;
      let next: number[] | undefined;
      const run = async (): Promise<void> => {
        const log = await ActivityFile.open(file, crc);
        for (let i = 0; i < 20; i++) {
          next = random.chance(0.2) ? undefined : [i, i + 1, 1000 + i];
          await log.write(next && { ...state, extents: next });
          before = next;
        }
      };
      void run();
      for (let i = 0; i < 60; i++) await new Promise((resolve) => setImmediate(resolve));
      const { found } = await reopen(file.after(random));
      // The last that was durable, or the one after that; torn, none.
      if (found !== undefined) expect([before, next]).toContainEqual(found.extents);
    }
  });

  it('claims nothing when any bit of it is damaged', async () => {
    const file = new CrashFile(new Power());
    const log = await ActivityFile.open(file, crc);
    for (let i = 0; i < 5; i++) await log.write({ ...state, extents: [i] });
    expect((await reopen(file.now)).found).toEqual({ ...state, extents: [4] });
    const random = new Prng(3);
    for (let i = 0; i < 300; i++) {
      const bad = file.now.slice();
      bad[random.below(bad.length)]! ^= 1 << random.below(8);
      expect((await reopen(bad)).found).toBeUndefined();
    }
    for (let length = 1; length < file.now.length; length += 611) {
      const { found } = await reopen(file.now.slice(0, length));
      if (length % 4096 !== 0) expect(found).toBeUndefined();
    }
  });
});
