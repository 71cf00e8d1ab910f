/** A standby that dies at any step of applying epochs leaves images that the next start brings to one whole epoch. */
import { describe, expect, it } from 'vitest';
import { CrashDisk, CrashFile, Power } from '../../../test/support/crash-media.ts';
import { crc32c } from '../../base/crc32c.ts';
import { Prng } from '../../base/prng.ts';
import { DISK_OP, DISK_OP_BYTES, writeDiskOp } from '../wire/disk-ops.ts';
import type { Crc } from './disk-log.ts';
import { recoverImages } from './recover.ts';
import { type DiskOps, type ReplicaDisk, ReplicaDisks } from './replica-disks.ts';
import { ReplicaRecord } from './replica-record.ts';

const crc: Crc = (bytes, offset, length, previous) =>
  crc32c(bytes, offset, offset + length, previous);
const DISK_BYTES = 64 * 512;
/** Small, so that laps are short. */
const AREA = 48 * 1024;
const VM = '00'.repeat(16);

/** Random operations of one epoch on one disk, done to `truth` too. */
function randomOps(random: Prng, disk: number, truth: Uint8Array): DiskOps {
  const parts: Uint8Array[] = [];
  for (let n = random.between(1, 6); n > 0; n--) {
    const sectors = random.between(1, 8);
    const offset = random.below(65 - sectors) * 512;
    const length = sectors * 512;
    if (random.chance(0.2)) {
      const head = new Uint8Array(DISK_OP_BYTES);
      writeDiskOp(
        head,
        0,
        random.pick([DISK_OP.discard, DISK_OP.writeZeroesUnmap]),
        0,
        offset,
        length,
      );
      parts.push(head);
      truth.fill(0, offset, offset + length);
    } else {
      const op = new Uint8Array(DISK_OP_BYTES + length);
      const data = op.subarray(DISK_OP_BYTES);
      random.fill(data);
      writeDiskOp(op, 0, DISK_OP.write, crc32c(data), offset, length);
      parts.push(op);
      truth.set(data, offset);
    }
  }
  const bytes = new Uint8Array(Buffer.concat(parts));
  return { disk, bytes, start: 0, end: bytes.length };
}

interface Media {
  readonly disks: CrashDisk[];
  readonly files: CrashFile[];
}

async function open(
  power: Power,
  images: Uint8Array[],
  records: Uint8Array[],
): Promise<{ media: Media; replicas: ReplicaDisk[] }> {
  const disks = images.map((image) => new CrashDisk(power, image));
  const files = records.map((content) => new CrashFile(power, content));
  const replicas: ReplicaDisk[] = [];
  for (const [disk, { access }] of disks.entries()) {
    const record = await ReplicaRecord.open(files[disk]!, crc, AREA);
    replicas.push({
      disk,
      id: `disk${disk}`,
      access,
      record,
      room: undefined,
      blockSizeBytes: 512,
    });
  }
  return { media: { disks, files }, replicas };
}

/** One life of a standby until the power goes at step `fatal`; returns how many steps it took, and checks what is left. */
async function life(seed: number, fatal: number): Promise<number> {
  const random = new Prng(seed);
  const count = random.between(1, 3);
  const truth = Array.from({ length: count }, () => new Uint8Array(DISK_BYTES));
  const power = new Power(fatal);
  const { media, replicas } = await open(
    power,
    truth,
    truth.map(() => new Uint8Array(0)),
  );
  const disks = new ReplicaDisks(replicas, VM, crc);
  const epochs: Uint8Array[][] = [];
  let sure = -1;
  const run = async (): Promise<void> => {
    disks.reset(1, false);
    for (let i = 0; i < count; i++) {
      expect(disks.copy(randomOps(random, i, truth[i]!))).toBeUndefined();
    }
    epochs.push(truth.map((t) => t.slice()));
    expect(await disks.complete(101)).toBeUndefined();
    sure = 0;
    for (let id = 101; id < 116; id++) {
      const all: DiskOps[] = [];
      for (let n = random.between(1, 4); n > 0; n--) {
        const disk = random.below(count);
        const ops = randomOps(random, disk, truth[disk]!);
        expect(disks.check(ops, true)).toBeUndefined();
        all.push(ops);
      }
      epochs.push(truth.map((t) => t.slice()));
      await disks.apply(id, all);
      if (disks.failure !== '') return;
      sure = epochs.length - 1;
    }
  };
  let over = false;
  const running = run().then(() => {
    over = true;
  });
  // Until it is done or stuck for good.
  for (let idle = 0, last = -1; !over && idle < 30; idle++) {
    await new Promise((resolve) => setImmediate(resolve));
    if (power.steps !== last) idle = 0;
    last = power.steps;
  }
  if (over) await running;
  if (!power.gone) {
    expect(over).toBe(true);
    for (const [i, { disk }] of media.disks.entries()) expect(disk.content).toEqual(truth[i]);
  }
  const after = new Prng(seed * 7919 + (fatal % 1e6));
  const images = media.disks.map((disk) => disk.after(after));
  const records = media.files.map((file) => file.after(after));
  const again = await open(new Power(), images, records);
  const whole = await recoverImages(again.replicas);
  if (whole === undefined) {
    // The first copy was not complete, and says so.
    expect(sure).toBe(-1);
    return power.steps;
  }
  const found = epochs.findIndex((states) =>
    states.every((state, i) => Buffer.compare(state, again.media.disks[i]!.disk.content) === 0),
  );
  expect(
    found,
    `seed ${seed} fatal ${fatal}: no whole epoch (recovered to ${whole})`,
  ).toBeGreaterThanOrEqual(0);
  expect(found).toBe(whole - 100);
  // What was applied is durable.
  expect(found).toBeGreaterThanOrEqual(sure);
  return power.steps;
}

describe('copies of disks under a loss of power', () => {
  it('are at one whole epoch, whatever the step and whatever was lost', async () => {
    let lives = 0;
    for (let seed = 1; seed <= 4; seed++) {
      const steps = await life(seed, Number.POSITIVE_INFINITY);
      for (let fatal = 1 + (seed % 3); fatal <= steps; fatal += 7) {
        await life(seed, fatal);
        lives++;
      }
    }
    expect(lives).toBeGreaterThan(50);
  }, 60_000);
});
