// What a standby does when its disks refuse, and what it refuses itself; how shared disks are told from copies.
import { describe, expect, it } from 'vitest';
import { CrashDisk, CrashFile, Power } from '../../../test/support/crash-media.ts';
import { crc32c } from '../../base/crc32c.ts';
import { VmmError } from '../../base/error.ts';
import { BLOCK_OP, ERRNO } from '../../block/backend.ts';
import { DISK_OP, DISK_OP_BYTES, DiskOpsReader, writeDiskOp } from '../wire/disk-ops.ts';
import { FAULT } from '../wire/fault.ts';
import { PIECE_BYTES } from './disk-access.ts';
import type { Crc } from './disk-log.ts';
import { recoverImages } from './recover.ts';
import { type DiskOps, ReplicaDisks, type Room } from './replica-disks.ts';
import { IMAGE, ReplicaRecord } from './replica-record.ts';
import { decideStorage, type StorageIdentity, sameStorage } from './storage.ts';

const crc: Crc = (bytes, offset, length, previous) =>
  crc32c(bytes, offset, offset + length, previous);
const BYTES = 64 * 1024;
const VM = 'ab'.repeat(16);

function write(offset: number, fill: number, length = 512): DiskOps {
  const bytes = new Uint8Array(DISK_OP_BYTES + length).fill(fill);
  const sum = crc32c(bytes, DISK_OP_BYTES, bytes.length);
  writeDiskOp(bytes, 0, DISK_OP.write, sum, offset, length);
  return { disk: 0, bytes, start: 0, end: bytes.length };
}

const PLAIN = { disk: 0, id: 'disk0', room: undefined, blockSizeBytes: 512 };

async function make(room?: Room) {
  const disk = new CrashDisk(new Power(), new Uint8Array(BYTES));
  const file = new CrashFile(new Power());
  const record = await ReplicaRecord.open(file, crc);
  const { access } = disk;
  const replicas = new ReplicaDisks(
    [{ disk: 0, id: 'disk0', access, record, room, blockSizeBytes: 512 }],
    VM,
    crc,
  );
  const told: string[] = [];
  const flows: boolean[] = [];
  replicas.setEvents({ flow: (pause) => flows.push(pause), failed: (why) => told.push(why) });
  replicas.reset(3, false);
  expect(await replicas.complete(11)).toBeUndefined();
  return { disk, file, replicas, told, flows };
}

describe('copies of disks at a standby', () => {
  it('keep an acknowledged epoch that the disk refuses, and put it in place before a guest runs', async () => {
    const { disk, file, replicas, told } = await make();
    await replicas.apply(11, [write(0, 1)]);
    expect(replicas.held).toEqual({ generation: 3, id: 11 });
    disk.disk.fault = (op) => (op === BLOCK_OP.write ? ERRNO.EIO : undefined);
    await replicas.apply(12, [write(512, 2)]);
    await replicas.apply(13, [write(1024, 3)]);
    expect(told).toHaveLength(1);
    expect(told[0]).toMatch(/writing to memory failed \(error 5\)/);
    expect(replicas.held).toBeUndefined();
    await expect(replicas.goLive(4)).rejects.toThrow(/failed/);
    disk.disk.fault = undefined;
    await replicas.goLive(4);
    expect([0, 512, 1024].map((at) => disk.disk.durable[at])).toEqual([1, 2, 3]);
    const after = await ReplicaRecord.open(new CrashFile(new Power(), file.durable), crc);
    expect(after.mark).toMatchObject({ state: IMAGE.live, generation: 4, vm: VM });
    expect(after.takeRecords()).toEqual([]);
    await replicas.close();
  });

  it('write no epoch behind one that is missing in a journal', async () => {
    const { disk, file, replicas, told } = await make();
    await replicas.apply(11, [write(0, 1)]);
    const sound = file.write;
    file.write = () => Promise.reject(new Error('the journal refuses'));
    await replicas.apply(12, [write(512, 2)]);
    file.write = sound;
    await replicas.apply(13, [write(1024, 3)]);
    expect(told).toEqual(['the journal refuses']);
    // Killed now, it is as of the last epoch before.
    const image = new CrashDisk(new Power(), disk.disk.content);
    const record = await ReplicaRecord.open(new CrashFile(new Power(), file.durable), crc);
    expect(await recoverImages([{ access: image.access, record }])).toBe(11);
    expect([0, 512, 1024].map((at) => image.disk.content[at])).toEqual([1, 0, 0]);
    // With what it has in memory the guest runs on; and a new copy has a journal again.
    await replicas.goLive(4);
    expect([0, 512, 1024].map((at) => disk.disk.durable[at])).toEqual([1, 2, 3]);
    replicas.reset(5, false);
    expect(await replicas.complete(21)).toBeUndefined();
    await replicas.apply(21, [write(0, 4)]);
    expect(replicas.held).toEqual({ generation: 5, id: 21 });
    await replicas.close();
  });

  it('tell of a journal that refuses when no other one is at work any more', async () => {
    const files = [new CrashFile(new Power()), new CrashFile(new Power())];
    const all = await Promise.all(
      files.map(async (file, disk) => {
        const { access } = new CrashDisk(new Power(), new Uint8Array(BYTES));
        const record = await ReplicaRecord.open(file, crc);
        return { ...PLAIN, disk, id: `disk${disk}`, access, record };
      }),
    );
    const replicas = new ReplicaDisks(all, VM, crc);
    const told: string[] = [];
    replicas.setEvents({ flow: () => {}, failed: (why) => told.push(why) });
    replicas.reset(3, false);
    await replicas.complete(11);
    files[0]!.write = () => Promise.reject(new Error('the journal refuses'));
    const sound = files[1]!.write.bind(files[1]);
    let go = (): void => {};
    files[1]!.write = async (at, bytes) => {
      await new Promise<void>((resolve) => {
        go = resolve;
      });
      await sound(at, bytes);
    };
    const applied = replicas.apply(11, [write(0, 1)]);
    for (let i = 0; i < 10; i++) await new Promise((done) => setImmediate(done));
    expect(told).toEqual([]);
    go();
    await applied;
    expect(told).toEqual(['the journal refuses']);
    await replicas.close();
  });

  it('are as of a whole epoch also when a takeover fails while it puts in place what no journal has', async () => {
    const { disk, file, replicas } = await make();
    await replicas.apply(11, [write(0, 1)]);
    const sound = file.write;
    file.write = () => Promise.reject(new Error('the journal refuses'));
    await replicas.apply(12, [write(512, 2), write(1024, 3)]);
    file.write = sound;
    disk.disk.fault = (op, at) => (op === BLOCK_OP.write && at === 1024 ? ERRNO.EIO : undefined);
    await expect(replicas.goLive(4)).rejects.toThrow(/failed/);
    const image = new CrashDisk(new Power(), disk.disk.content);
    const record = await ReplicaRecord.open(new CrashFile(new Power(), file.durable), crc);
    expect(await recoverImages([{ access: image.access, record }])).toBe(12);
    expect([0, 512, 1024].map((at) => image.disk.content[at])).toEqual([1, 2, 3]);
    await replicas.close();
  });

  it('are not complete because an earlier copy was, when another one has begun', async () => {
    const { file, replicas } = await make();
    replicas.reset(3, false);
    const { sync } = file;
    let marking: () => void = () => {};
    const marks = new Promise<void>((resolve) => {
      marking = resolve;
    });
    let go: () => void = () => {};
    const held = new Promise<void>((resolve) => {
      go = resolve;
    });
    let syncs = 0;
    file.sync = async () => {
      // The first one marks the copy as begun, the second one as complete.
      if (++syncs === 2) {
        marking();
        await held;
      }
      await sync.call(file);
    };
    const first = replicas.complete(21);
    await marks;
    replicas.cutOff();
    replicas.reset(3, false);
    expect(replicas.copy(write(0, 9))).toBeUndefined();
    go();
    await first;
    expect(replicas.held).toBeUndefined();
    const second = replicas.complete(31);
    expect(second).toBeDefined();
    expect(await second).toBeUndefined();
    expect(replicas.held).toEqual({ generation: 3, id: 30 });
    await replicas.close();
  });

  it('refuse an epoch for which there is no room before it is acknowledged', async () => {
    const room: Room = {
      ensure: (offset) => {
        if (offset >= 4096) throw new VmmError('DISK_FULL', 'there is no room left for the disk x');
      },
      forget: () => {},
      close: () => {},
    };
    const { replicas, told } = await make(room);
    expect(replicas.check(write(0, 1), true)).toBeUndefined();
    expect(replicas.check(write(4096, 1), true)).toMatchObject({
      code: FAULT.RESOURCE_MISSING,
      sentence: expect.stringMatching(/no room left/),
    });
    expect(told).toEqual([]);
    await replicas.close();
  });

  it('refuse what is damaged, outside the disk, too long or cut', async () => {
    const { replicas } = await make();
    const good = write(0, 7);
    for (let i = 0; i < good.bytes.length; i++) {
      const bytes = good.bytes.slice();
      bytes[i]! ^= 0x81;
      expect(replicas.check({ ...good, bytes }, false), `byte ${i}`).toBeDefined();
    }
    for (let end = 1; end < good.end; end++) {
      expect(replicas.check({ ...good, end }, false)).toBeDefined();
    }
    expect(replicas.check(write(BYTES, 1), false)).toBeDefined();
    expect(replicas.check(write(BYTES - 512, 1, 1024), false)).toBeDefined();
    expect(replicas.check(write(100, 1), false)).toBeDefined();
    expect(replicas.check({ ...good, disk: 1 }, false)).toBeDefined();
    const wide = new Uint8Array(DISK_OP_BYTES);
    writeDiskOp(wide, 0, DISK_OP.writeZeroes, 0, 2 ** 52, 2 ** 52);
    expect(new DiskOpsReader().reset(wide).next()).toBe(false);
    await replicas.close();
  });

  it('stop a first copy that the disk refuses, and say so once', async () => {
    const { disk, replicas, told } = await make();
    replicas.reset(3, false);
    disk.disk.fault = (op) => (op === BLOCK_OP.write ? ERRNO.ENOSPC : undefined);
    for (let i = 0; i < 20; i++) expect(replicas.copy(write(512 * i, 1))).toBeUndefined();
    expect(await replicas.complete(20)).toMatchObject({ code: FAULT.RESOURCE_MISSING });
    expect(told).toEqual(['there is no room left for the disk memory']);
    expect(replicas.held).toBeUndefined();
    await replicas.close();
  });

  it('lay their base once, however often the connection is lost meanwhile', async () => {
    const bytes = 8 * PIECE_BYTES;
    const image = new CrashDisk(new Power(), new Uint8Array(bytes));
    const base = new CrashDisk(new Power(), new Uint8Array(bytes).fill(7));
    const record = await ReplicaRecord.open(new CrashFile(new Power()), crc);
    let reads = 0;
    base.disk.fault = (op) => {
      if (op === BLOCK_OP.read) reads++;
      return undefined;
    };
    const replicas = new ReplicaDisks(
      [{ ...PLAIN, access: image.access, base: base.access, record }],
      VM,
      crc,
    );
    for (let generation = 3; generation < 8; generation++) replicas.reset(generation, false);
    expect(await replicas.complete(11)).toBeUndefined();
    expect(reads).toBe(8);
    expect(Buffer.compare(image.disk.durable, base.disk.content)).toBe(0);
    await replicas.close();
  });

  it('take nothing in while their base is laid', async () => {
    const image = new CrashDisk(new Power(), new Uint8Array(4 * PIECE_BYTES));
    const base = new CrashDisk(new Power(), new Uint8Array(4 * PIECE_BYTES).fill(7));
    const record = await ReplicaRecord.open(new CrashFile(new Power()), crc);
    const replicas = new ReplicaDisks(
      [{ ...PLAIN, access: image.access, base: base.access, record }],
      VM,
      crc,
    );
    const flows: [boolean, number][] = [];
    const note = (pause: boolean): unknown =>
      flows.push([pause, image.disk.journal.filter((e) => e.op === BLOCK_OP.write).length]);
    replicas.setEvents({ flow: note, failed: () => {} });
    replicas.reset(3, false);
    expect(flows).toEqual([[true, 0]]);
    await replicas.complete(11);
    expect(flows).toEqual([
      [true, 0],
      [false, 4],
    ]);
    // What is whole is not laid again.
    replicas.reset(4, true);
    await replicas.complete(12);
    expect(flows).toHaveLength(2);
    // A disk that refuses does not keep the connection shut for good.
    image.disk.fault = (op) => (op === BLOCK_OP.write ? ERRNO.EIO : undefined);
    replicas.reset(5, false);
    replicas.cutOff();
    replicas.reset(5, false);
    await replicas.complete(13);
    expect([replicas.failure !== '', flows.length, flows.at(-1)![0]]).toEqual([true, 4, false]);
    await replicas.close();
  });

  it('are flushed now and then while the first copy comes, so that the last flush is short', async () => {
    const disk = new CrashDisk(new Power(), new Uint8Array(PIECE_BYTES));
    const record = await ReplicaRecord.open(new CrashFile(new Power()), crc);
    // Checksums cost more than everything else here.
    const replicas = new ReplicaDisks([{ ...PLAIN, access: disk.access, record }], VM, () => 0);
    replicas.reset(3, false);
    const bytes = new Uint8Array(DISK_OP_BYTES + PIECE_BYTES);
    writeDiskOp(bytes, 0, DISK_OP.write, 0, 0, PIECE_BYTES);
    for (let sent = 0; sent < 300 * 2 ** 20; sent += PIECE_BYTES) {
      expect(replicas.copy({ disk: 0, bytes, start: 0, end: bytes.length })).toBeUndefined();
      while (replicas.queuedBytes > 2 ** 20) await new Promise((done) => setImmediate(done));
    }
    while (replicas.queuedBytes > 0) await new Promise((done) => setImmediate(done));
    expect(disk.disk.journal.filter((e) => e.op === BLOCK_OP.flush)).toHaveLength(1);
    await replicas.close();
  });

  it('stop to lay their base when the connection is lost', async () => {
    const bytes = 64 * PIECE_BYTES;
    const image = new CrashDisk(new Power(), new Uint8Array(bytes));
    const base = new CrashDisk(new Power(), new Uint8Array(bytes).fill(7));
    const record = await ReplicaRecord.open(new CrashFile(new Power()), crc);
    let reads = 0;
    const replicas = new ReplicaDisks(
      [{ ...PLAIN, access: image.access, base: base.access, record }],
      VM,
      crc,
    );
    base.disk.fault = (op) => {
      if (op === BLOCK_OP.read && ++reads === 4) replicas.cutOff();
      return undefined;
    };
    replicas.reset(3, false);
    await replicas.complete(11);
    expect([reads, replicas.held]).toEqual([4, undefined]);
    await replicas.close();
  });

  it('begin with the base unless the primary was told that they are whole', async () => {
    const disk = new CrashDisk(new Power(), new Uint8Array(BYTES).fill(1));
    const base = new CrashDisk(new Power(), new Uint8Array(BYTES).fill(2));
    const record = await ReplicaRecord.open(new CrashFile(new Power()), crc);
    const { access } = disk;
    const replicas = new ReplicaDisks(
      [
        {
          disk: 0,
          id: 'disk0',
          access,
          record,
          room: undefined,
          blockSizeBytes: 512,
          base: base.access,
        },
      ],
      VM,
      crc,
      { generation: 3, id: 10 },
    );
    const told: string[] = [];
    replicas.setEvents({ flow: () => {}, failed: (why) => told.push(why) });
    const last = (): number => disk.disk.content[BYTES - 1]!;
    const writeLast = (fill: number): DiskOps => write(BYTES - 512, fill);
    // What they lack comes; then they are whole, and the primary does not know it.
    replicas.reset(3, true);
    expect(await replicas.complete(11)).toBeUndefined();
    expect(last()).toBe(1);
    expect(replicas.held).toBeDefined();
    replicas.reset(3, false);
    expect(await replicas.complete(12)).toBeUndefined();
    expect(last()).toBe(2);
    // A disk that refuses: what was told before that holds no more, and nothing is done to the image.
    disk.disk.fault = (op) => (op === BLOCK_OP.write ? ERRNO.EIO : undefined);
    await replicas.apply(12, [writeLast(3)]);
    disk.disk.fault = undefined;
    expect(told).toHaveLength(1);
    replicas.reset(3, true);
    expect(replicas.copy(writeLast(4))).toBeUndefined();
    expect(await replicas.complete(13)).toMatchObject({ code: FAULT.RESOURCE_MISSING });
    expect(told[1]).toMatch(/not any more what the primary was told/);
    expect(replicas.held).toBeUndefined();
    expect(last()).toBe(2);
    disk.disk.content.fill(5);
    replicas.reset(3, false);
    expect(await replicas.complete(13)).toBeUndefined();
    expect(last()).toBe(2);
    await replicas.close();
  });
});

describe('images of a primary that was lost', () => {
  const returned = { generation: 3, fromId: 5, extents: [[0]] };

  async function rig() {
    const disk = new CrashDisk(new Power(), new Uint8Array(BYTES).fill(1));
    const file = new CrashFile(new Power());
    const record = await ReplicaRecord.open(file, crc);
    /** What the image is marked as when its log is done away with. */
    const voided: (number | undefined)[] = [];
    const voidActivity = (): unknown => voided.push(record.mark?.state);
    const { access } = disk;
    const replicas = new ReplicaDisks(
      [{ ...PLAIN, access, record, voidActivity }],
      VM,
      crc,
      undefined,
      returned,
    );
    const told: string[] = [];
    replicas.setEvents({ flow: () => {}, failed: (why) => told.push(why) });
    return { disk, record, replicas, voided, told };
  }

  it('stay what their log says until a copy that builds on it is complete', async () => {
    const { record, replicas, voided, told } = await rig();
    for (let tries = 0; tries < 2; tries++) {
      expect(replicas.returned).toEqual(returned);
      replicas.reset(4, false, true);
      replicas.copy(write(0, 2));
      replicas.cutOff();
    }
    replicas.reset(4, false, true);
    replicas.copy(write(0, 2));
    expect([replicas.held, voided]).toEqual([undefined, []]);
    expect(await replicas.complete(11)).toBeUndefined();
    expect(record.mark).toMatchObject({ state: IMAGE.replica, generation: 4, id: 10 });
    expect([replicas.returned, voided]).toEqual([undefined, [IMAGE.replica]]);
    expect(replicas.held).toEqual({ generation: 4, id: 10 });
    // It cannot be built on any more.
    replicas.reset(4, false, true);
    expect(await replicas.complete(12)).toMatchObject({ code: FAULT.RESOURCE_MISSING });
    expect(told[0]).toMatch(/not any more what the primary was told/);
    await replicas.close();
  });

  it('are nothing before the first byte of a copy that does not build on their log', async () => {
    const { record, replicas, voided } = await rig();
    replicas.reset(4, false);
    expect(replicas.returned).toBeUndefined();
    expect(await replicas.complete(11)).toBeUndefined();
    // Before the image was marked for the first time.
    expect(voided[0]).toBeUndefined();
    expect(record.mark?.state).toBe(IMAGE.replica);
    await replicas.close();
  });

  it('are not touched when their log cannot be done away with', async () => {
    const { disk, record, replicas, told } = await rig();
    const refuses = {
      ...PLAIN,
      access: disk.access,
      record,
      voidActivity: () => {
        throw new VmmError('DISK_LOG', 'removing it failed');
      },
    };
    const others = new ReplicaDisks([refuses], VM, crc, undefined, returned);
    others.setEvents({ flow: () => {}, failed: (why) => told.push(why) });
    others.reset(4, false);
    others.copy(write(0, 2));
    expect(await others.complete(11)).toMatchObject({ code: FAULT.RESOURCE_MISSING });
    expect([told, record.mark, disk.disk.content[0]]).toEqual([
      ['removing it failed'],
      undefined,
      1,
    ]);
    await replicas.close();
  });
});

describe('shared or copied', () => {
  const file = (host: string, where: string, local = true): StorageIdentity => ({
    kind: 'file',
    host,
    where,
    local,
  });
  const device = (host: string): StorageIdentity => ({
    kind: 'device',
    host,
    where: 'device 2049',
    local: false,
  });
  const nbd = (where: string): StorageIdentity => ({
    kind: 'network',
    host: '',
    where,
    local: false,
  });
  const ask = {
    id: 'disk0',
    primaryChoice: 'auto',
    standbyChoice: 'auto',
    locked: false,
  } as const;

  it('is known, or not, and never guessed', () => {
    expect(sameStorage(file('a', '1:2'), file('a', '1:2'), true)).toBe(true);
    expect(sameStorage(file('a', '1:2'), file('a', '1:3'), false)).toBe(false);
    expect(sameStorage(file('a', '1:2'), file('b', '1:2'), false)).toBe(false);
    expect(sameStorage(file('a', '1:2', false), file('b', '9:2', false), true)).toBe(true);
    expect(sameStorage(file('a', '1:2', false), file('b', '9:2', false), false)).toBeUndefined();
    expect(sameStorage(device('a'), device('b'), true)).toBeUndefined();
    expect(sameStorage(nbd('nbd://x'), nbd('nbd://x'), false)).toBe(true);
    expect(sameStorage(nbd('nbd://x'), file('b', '1:2'), false)).toBeUndefined();
  });

  it('is what an option says, unless that is surely wrong', () => {
    const [here, there] = [device('a'), device('b')];
    const decide = (primaryChoice: 'auto' | 'shared' | 'replicate', standbyChoice = 'auto') =>
      decideStorage({
        ...ask,
        primary: here,
        standby: there,
        primaryChoice,
        standbyChoice: standbyChoice as 'auto',
      });
    expect(decide('shared')).toBe(1);
    expect(decide('replicate')).toBe(2);
    expect(decide('auto', 'replicate')).toBe(2);
    expect(() => decide('auto')).toThrow(/cannot be told/);
    expect(() => decide('shared', 'replicate')).toThrow(/the primary says ft=shared/);
    const one = file('a', '1:2');
    expect(() =>
      decideStorage({ ...ask, primary: one, standby: one, primaryChoice: 'replicate' }),
    ).toThrow(/name the same storage/);
    expect(() =>
      decideStorage({ ...ask, primary: one, standby: undefined, primaryChoice: 'shared' }),
    ).toThrow(/other storage/);
  });
});
