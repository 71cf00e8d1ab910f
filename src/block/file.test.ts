import { execFileSync, spawn } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Prng } from '../base/prng.ts';
import { loadAddon } from '../kvm/addon.ts';
import { loadNativeIo } from '../kvm/native-io.ts';
import { BLOCK_OP, type BlockOp, ERRNO } from './backend.ts';
import { type FileDisk, type FileDiskOptions, openFileDisk } from './file.ts';

interface MemoryMap {
  addRange(guestPhys: number, buffer: ArrayBuffer): void;
}
const native = loadNativeIo();
const addon = loadAddon() as { MemoryMap: new () => MemoryMap };

const RAM_BYTES = 4 * 1024 * 1024;
const SIZE = 8 * 1024 * 1024;

/** A disk with a file behind it and two separate pieces of memory at 0 and 16 MiB. */
class Bench {
  readonly dir = mkdtempSync(join(process.env.TSVMM_TEST_DISK_DIR ?? tmpdir(), 'tsvmm-disk-'));
  readonly path = join(this.dir, 'disk.img');
  readonly low = new Uint8Array(new ArrayBuffer(RAM_BYTES));
  readonly high = new Uint8Array(new ArrayBuffer(RAM_BYTES));
  readonly map = new addon.MemoryMap();
  readonly results = new Map<number, number>();
  batches = 0;
  disk!: FileDisk;

  constructor() {
    this.map.addRange(0, this.low.buffer);
    this.map.addRange(16 << 20, this.high.buffer);
    const fd = openSync(this.path, 'w');
    ftruncateSync(fd, SIZE);
    closeSync(fd);
  }

  open(options: Partial<FileDiskOptions> = {}): FileDisk {
    this.disk = openFileDisk(native, this.map, { path: this.path, ...options });
    this.disk.setHandler({
      complete: (tag, result) => this.results.set(tag, result),
      batchEnd: () => this.batches++,
    });
    return this.disk;
  }

  queue(tag: number, op: BlockOp, offset: number, segments: [number, number][], length?: number) {
    const addresses = new Float64Array(segments.map(([address]) => address));
    const lengths = new Uint32Array(segments.map(([, bytes]) => bytes));
    const sum = segments.reduce((total, [, bytes]) => total + bytes, 0);
    this.disk.queue(tag, op, offset, length ?? sum, addresses, lengths, 0, segments.length);
  }

  async run(op: BlockOp, offset: number, segments: [number, number][], length?: number) {
    this.queue(0, op, offset, segments, length);
    this.disk.submit();
    await this.idle();
    return this.results.get(0);
  }

  idle(): Promise<void> {
    return new Promise((resolve) => this.disk.drain(resolve));
  }

  async close() {
    await this.disk?.close();
    rmSync(this.dir, { recursive: true });
  }
}

describe.each([
  ['io_uring', 'none'],
  ['io_uring', 'writeback'],
  ['threads', 'none'],
  ['threads', 'writeback'],
] as const)('file disk, %s, cache %s', (engine, cache) => {
  let bench: Bench;
  beforeEach((context) => {
    if (engine === 'io_uring' && native.probeDiskEngine() !== 'io_uring')
      context.skip('io_uring is off on this host');
    bench = new Bench();
    bench.open({ engine, cache });
  });
  afterEach(() => bench?.close());

  it('uses the engine that was asked for', () => {
    expect(bench.disk.engine).toBe(engine);
    expect(bench.disk.info.sizeBytes).toBe(SIZE);
  });

  it('writes from and reads into scattered guest memory', async () => {
    new Prng(1).fill(bench.low);
    const segments: [number, number][] = [
      [4096, 512],
      [0, 512],
      [65536, 8192],
      [16 << 20, 1024],
    ];
    expect(await bench.run(BLOCK_OP.write, 4096, segments)).toBe(ERRNO.OK);
    expect(await bench.run(BLOCK_OP.flush, 0, [])).toBe(ERRNO.OK);
    const file = readFileSync(bench.path);
    expect(file.subarray(4096, 4608).equals(bench.low.subarray(4096, 4608))).toBe(true);
    expect(file.subarray(4608, 5120).equals(bench.low.subarray(0, 512))).toBe(true);
    expect(file.subarray(5120, 13312).equals(bench.low.subarray(65536, 73728))).toBe(true);

    expect(
      await bench.run(BLOCK_OP.read, 4096, [
        [(16 << 20) + 8192, 10_000 - (10_000 % 512)],
        [1 << 20, 512],
      ]),
    ).toBe(ERRNO.OK);
    expect(
      Buffer.from(bench.high.subarray(8192, 8192 + 9728)).equals(file.subarray(4096, 4096 + 9728)),
    ).toBe(true);
    expect(
      Buffer.from(bench.low.subarray(1 << 20, (1 << 20) + 512)).equals(
        file.subarray(4096 + 9728, 4096 + 10240),
      ),
    ).toBe(true);
  });

  it('takes segments of any address and length', async () => {
    new Prng(2).fill(bench.low);
    const pieces: [number, number][] = [
      [1, 3],
      [4099, 509],
      [8000, 1000],
      [RAM_BYTES - 24, 24],
    ];
    expect(await bench.run(BLOCK_OP.write, 512, pieces)).toBe(ERRNO.OK);
    const expected = Buffer.concat(pieces.map(([a, n]) => bench.low.subarray(a, a + n)));
    expect(readFileSync(bench.path).subarray(512, 2048).equals(expected)).toBe(true);
    expect(await bench.run(BLOCK_OP.read, 512, [[(16 << 20) + 77, 1536]])).toBe(ERRNO.OK);
    expect(Buffer.from(bench.high.subarray(77, 77 + 1536)).equals(expected)).toBe(true);
    expect(bench.high[76]).toBe(0);
    expect(bench.high[77 + 1536]).toBe(0);
  });

  it('does a whole batch by one submit and delivers it in batches', async () => {
    for (let tag = 0; tag < 200; tag++)
      bench.queue(tag, BLOCK_OP.write, tag * 4096, [[tag * 4096, 4096]]);
    expect(bench.disk.inFlight).toBe(200);
    expect(bench.results.size).toBe(0);
    bench.disk.submit();
    expect(bench.results.size).toBe(0);
    await bench.idle();
    expect([...bench.results.values()].every((result) => result === ERRNO.OK)).toBe(true);
    expect(bench.results.size).toBe(200);
    expect(bench.batches).toBeLessThanOrEqual(200);
  });

  it('makes ranges zero, reserved or not', async () => {
    bench.low.fill(0xaa);
    await bench.run(BLOCK_OP.write, 0, [[0, RAM_BYTES]]);
    const before = statSync(bench.path).blocks;
    expect(await bench.run(BLOCK_OP.writeZeroes, 4096, [], 65536)).toBe(ERRNO.OK);
    expect(await bench.run(BLOCK_OP.writeZeroesUnmap, 1 << 20, [], 1 << 20)).toBe(ERRNO.OK);
    expect(await bench.run(BLOCK_OP.discard, 3 << 20, [], 512 * 1024)).toBe(ERRNO.OK);
    const file = readFileSync(bench.path);
    expect(file.length).toBe(SIZE);
    expect(file.subarray(4096, 4096 + 65536).every((byte) => byte === 0)).toBe(true);
    expect(file.subarray(1 << 20, 2 << 20).every((byte) => byte === 0)).toBe(true);
    expect(file[4095]).toBe(0xaa);
    expect(file[4096 + 65536]).toBe(0xaa);
    expect(file[(1 << 20) - 1]).toBe(0xaa);
    expect(statSync(bench.path).blocks).toBeLessThanOrEqual(before);
  });

  it('answers wrong requests with a code', async () => {
    const { run } = { run: bench.run.bind(bench) };
    expect(await run(BLOCK_OP.read, SIZE, [[0, 512]])).toBe(ERRNO.EINVAL);
    expect(await run(BLOCK_OP.read, SIZE - 512, [[0, 1024]])).toBe(ERRNO.EINVAL);
    expect(await run(BLOCK_OP.read, 1, [[0, 512]])).toBe(ERRNO.EINVAL);
    expect(await run(BLOCK_OP.read, Number.NaN, [[0, 512]])).toBe(ERRNO.EINVAL);
    expect(await run(BLOCK_OP.write, -512, [[0, 512]])).toBe(ERRNO.EINVAL);
    expect(await run(BLOCK_OP.write, 0, [[0, 511]])).toBe(ERRNO.EINVAL);
    expect(await run(BLOCK_OP.write, 0, [[0, 512]], 1024)).toBe(ERRNO.EINVAL);
    expect(await run(BLOCK_OP.read, 0, [[RAM_BYTES - 256, 512]])).toBe(ERRNO.EFAULT);
    expect(await run(BLOCK_OP.read, 0, [[8 << 20, 512]])).toBe(ERRNO.EFAULT);
    expect(await run(BLOCK_OP.read, 0, [[Number.NaN, 512]])).toBe(ERRNO.EFAULT);
    expect(await run(BLOCK_OP.read, 0, [[-1, 512]])).toBe(ERRNO.EFAULT);
    expect(await run(BLOCK_OP.discard, 0, [], SIZE + 512)).toBe(ERRNO.EINVAL);
    expect(await run(BLOCK_OP.read, 0, [], 0)).toBe(ERRNO.OK);
  });

  it('refuses writes after the end of the lease, and reads go on', async () => {
    bench.disk.setLeaseDeadlineNs(native.boottimeNs() + 60e9);
    expect(await bench.run(BLOCK_OP.write, 0, [[0, 512]])).toBe(ERRNO.OK);
    bench.low.fill(7, 0, 512);
    bench.disk.setLeaseDeadlineNs(native.boottimeNs() - 1);
    expect(await bench.run(BLOCK_OP.write, 0, [[0, 512]])).toBe(ERRNO.EKEYEXPIRED);
    expect(await bench.run(BLOCK_OP.discard, 0, [], 4096)).toBe(ERRNO.EKEYEXPIRED);
    expect(await bench.run(BLOCK_OP.flush, 0, [])).toBe(ERRNO.EKEYEXPIRED);
    expect(await bench.run(BLOCK_OP.read, 0, [[4096, 512]])).toBe(ERRNO.OK);
    expect(bench.low[4096]).toBe(0);
    bench.disk.setLeaseDeadlineNs(Number.POSITIVE_INFINITY);
    expect(await bench.run(BLOCK_OP.write, 0, [[0, 512]])).toBe(ERRNO.OK);
  });

  it('does random requests as a plain array would', async () => {
    const random = new Prng(3);
    const model = new Uint8Array(SIZE);
    for (let round = 0; round < 60; round++) {
      const offset = random.below(SIZE / 512 - 256) * 512;
      const length = (1 + random.below(128)) * 512;
      const segments: [number, number][] = [];
      let left = length;
      let at = random.below(1 << 16);
      while (left > 0) {
        const bytes = Math.min(left, random.chance(0.5) ? 4096 : 1 + random.below(9000));
        segments.push([at + (random.chance(0.3) ? 16 << 20 : 0), bytes]);
        at += bytes + random.below(5000);
        left -= bytes;
      }
      const piece = ([address, bytes]: [number, number]) =>
        address >= 16 << 20
          ? bench.high.subarray(address - (16 << 20), address - (16 << 20) + bytes)
          : bench.low.subarray(address, address + bytes);
      let position = offset;
      if (random.chance(0.5)) {
        for (const segment of segments) random.fill(piece(segment));
        expect(await bench.run(BLOCK_OP.write, offset, segments)).toBe(ERRNO.OK);
        for (const segment of segments) {
          model.set(piece(segment), position);
          position += segment[1];
        }
      } else {
        expect(await bench.run(BLOCK_OP.read, offset, segments)).toBe(ERRNO.OK);
        for (const segment of segments) {
          expect(
            Buffer.compare(piece(segment), model.subarray(position, position + segment[1])),
          ).toBe(0);
          position += segment[1];
        }
      }
    }
  });
});

describe('file disk', () => {
  let bench: Bench;
  beforeEach(() => {
    bench = new Bench();
  });
  afterEach(() => bench.close());

  it('reports a file that became shorter as an I/O error', async () => {
    bench.open({ cache: 'writeback' });
    const fd = openSync(bench.path, 'r+');
    ftruncateSync(fd, 4096);
    closeSync(fd);
    expect(await bench.run(BLOCK_OP.read, 1 << 20, [[0, 512]])).toBe(ERRNO.EIO);
    expect(await bench.run(BLOCK_OP.read, 0, [[0, 512]])).toBe(ERRNO.OK);
  });

  it('goes on with a file that was deleted, as the system keeps it', async () => {
    bench.open();
    rmSync(bench.path);
    bench.low.fill(4, 0, 512);
    expect(await bench.run(BLOCK_OP.write, 0, [[0, 512]])).toBe(ERRNO.OK);
    expect(await bench.run(BLOCK_OP.read, 0, [[512, 512]])).toBe(ERRNO.OK);
    expect(bench.low[1023]).toBe(4);
  });

  it.skipIf(process.getuid?.() !== 0)(
    'reports a full file system as ENOSPC, and goes on when there is room (needs root to mount one)',
    async () => {
      const mount = join(bench.dir, 'small');
      mkdirSync(mount);
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', mount]);
      try {
        const path = join(mount, 'disk.img');
        const fd = openSync(path, 'w');
        ftruncateSync(fd, SIZE);
        closeSync(fd);
        bench.open({ path, cache: 'writeback' });
        expect(await bench.run(BLOCK_OP.write, 0, [[0, 1 << 20]])).toBe(ERRNO.ENOSPC);
        execFileSync('mount', ['-o', 'remount,size=4m', mount]);
        expect(await bench.run(BLOCK_OP.write, 0, [[0, 1 << 20]])).toBe(ERRNO.OK);
        await bench.disk.close();
      } finally {
        execFileSync('umount', ['-l', mount]);
      }
    },
  );

  it('does not write to a read-only disk', async () => {
    bench.open({ readonly: true });
    expect(await bench.run(BLOCK_OP.write, 0, [[0, 512]])).toBe(ERRNO.EROFS);
    expect(await bench.run(BLOCK_OP.discard, 0, [], 512)).toBe(ERRNO.EROFS);
    expect(await bench.run(BLOCK_OP.flush, 0, [])).toBe(ERRNO.OK);
  });

  it('locks: one writer, or many readers, and names the holder', () => {
    bench.open();
    expect(() => openFileDisk(native, bench.map, { path: bench.path })).toThrow(
      new RegExp(`already in use by .*\\(process ${process.pid}\\)`),
    );
    expect(() => openFileDisk(native, bench.map, { path: bench.path, readonly: true })).toThrow(
      /in use/,
    );
  });

  it('lets a standby look without the lock and take it later', async () => {
    bench.open();
    const standby = openFileDisk(native, bench.map, { path: bench.path, lock: 'unlocked' });
    expect(() => standby.lock()).toThrow(/in use/);
    await bench.disk.close();
    standby.lock();
    await standby.close();
  });

  it('sees a lock of another process', async () => {
    const holder = spawn('flock', ['--version'], { stdio: 'ignore' });
    const usable = await new Promise<boolean>((resolve) => {
      holder.on('exit', (code) => resolve(code === 0));
      holder.on('error', () => resolve(false));
    });
    expect(usable).toBe(true);
    const script = `const a=require(${JSON.stringify(join(process.cwd(), 'native/binding.cjs'))});const fd=require('fs').openSync(process.argv[1],'r+');if(!a.tryLock(fd,true,0,0))process.exit(2);console.log('held');setInterval(()=>{},1000)`;
    const child = spawn(process.execPath, ['-e', script, bench.path], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await new Promise((resolve) => child.stdout.once('data', resolve));
    try {
      expect(() => bench.open()).toThrow(new RegExp(`\\(process ${child.pid}\\)`));
    } finally {
      child.kill('SIGKILL');
      await new Promise((resolve) => child.once('exit', resolve));
    }
    bench.open();
  });

  it('explains what cannot be opened', () => {
    const open = (path: string, readonly = false) =>
      openFileDisk(native, bench.map, { path, readonly });
    expect(() => open(join(bench.dir, 'missing'))).toThrow(/there is no such file/);
    expect(() => open(bench.dir)).toThrow(/is a directory/);
    expect(() => open('/dev/zero', true)).toThrow(
      /neither a file nor a block device|no direct I\/O/,
    );
    writeFileSync(join(bench.dir, 'small'), 'x');
    expect(() => open(join(bench.dir, 'small'))).toThrow(/less than one sector/);
  });

  it('waits for what is in flight when it is closed', async () => {
    bench.open();
    bench.low.fill(9);
    bench.queue(5, BLOCK_OP.write, 0, [[0, 1 << 20]]);
    bench.disk.submit();
    await bench.disk.close();
    expect(bench.results.get(5)).toBe(ERRNO.OK);
    expect(readFileSync(bench.path)[(1 << 20) - 1]).toBe(9);
  });

  it.each(['auto', 'threads'] as const)(
    'leaves nothing behind, however often (%s)',
    async (engine) => {
      const open = () =>
        readdirSync('/proc/self/fd').length + readdirSync('/proc/self/task').length;
      bench.open({ engine });
      await bench.disk.close();
      const before = open();
      for (let i = 0; i < 100; i++) {
        bench.open({ engine });
        await bench.run(BLOCK_OP.write, 0, [[0, 512]]);
        await bench.disk.close();
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
      // Kernel workers of io_uring may linger as threads for a moment.
      expect(open()).toBeLessThan(before + 12);
    },
  );

  it('delivers from poll, too', async () => {
    bench.open({ cache: 'writeback' });
    bench.queue(1, BLOCK_OP.write, 0, [[0, 512]]);
    bench.disk.submit();
    const until = Date.now() + 5000;
    while (!bench.results.has(1) && Date.now() < until) bench.disk.poll();
    expect(bench.results.get(1)).toBe(ERRNO.OK);
  });

  it('refuses a tag twice and garbage arguments without harm', async () => {
    bench.open();
    bench.queue(1, BLOCK_OP.read, 0, [[0, 512]]);
    expect(() => bench.queue(1, BLOCK_OP.read, 0, [[0, 512]])).toThrow(/tag is free/);
    bench.disk.submit();
    await bench.idle();
    const io = new native.BlockIo(
      bench.map,
      {
        fd: 0,
        sizeBytes: 1024,
        blockBytes: 512,
        memoryAlign: 1,
        readonly: true,
        maxRequests: 4,
        engine: 'auto',
      },
      () => {},
    );
    const raw = io as unknown as Record<string, (...args: unknown[]) => unknown>;
    const garbage = [
      undefined,
      null,
      -1,
      2 ** 40,
      Number.NaN,
      'x',
      {},
      new Uint8Array(2),
      new Float64Array(1),
      () => 0,
    ];
    const random = new Prng(4);
    for (let i = 0; i < 3000; i++) {
      const name = random.pick(['queue', 'reap', 'setLeaseDeadlineNs']);
      const args = Array.from({ length: random.below(9) }, () => random.pick(garbage));
      try {
        raw[name]!(...args);
      } catch (error) {
        expect(error).toBeInstanceOf(Error);
      }
    }
    for (const options of garbage) {
      expect(
        () =>
          new (native.BlockIo as unknown as new (...args: unknown[]) => unknown)(
            bench.map,
            options,
            () => 0,
          ),
      ).toThrow();
      expect(
        () =>
          new (native.BlockIo as unknown as new (...args: unknown[]) => unknown)(
            options,
            {},
            () => 0,
          ),
      ).toThrow();
    }
    io.close();
    expect(() => io.submit()).toThrow(/closed/);
  });
});
