import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { FakeNbdServer } from '../../test/support/nbd-server.ts';
import { MemoryLog, silentLog } from '../base/log.ts';
import { Prng } from '../base/prng.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { BLOCK_OP, type BlockOp, ERRNO } from './backend.ts';
import { type NbdDisk, openNbd } from './nbd.ts';
import type { NbdOptions } from './nbd-options.ts';
import { isNbdUrl, parseNbdUrl } from './nbd-url.ts';

const SIZE = 4 << 20;
const RAM = 4 << 20;

/** A device over an NBD disk. */
class Client {
  readonly memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(RAM) }]);
  readonly results = new Map<number, number>();
  disk!: NbdDisk;
  #waiting = new Map<number, (result: number) => void>();

  async open(url: string, options: Partial<NbdOptions> = {}, log = silentLog): Promise<void> {
    this.disk = await openNbd(this.memory, log, {
      name: url,
      address: parseNbdUrl(url),
      retryMs: 5,
      ...options,
    });
    this.disk.setHandler({
      complete: (tag, result) => {
        const done = this.#waiting.get(tag);
        this.#waiting.delete(tag);
        done?.(result);
      },
      batchEnd: () => this.disk.submit(),
    });
  }

  run(
    tag: number,
    op: BlockOp,
    offset: number,
    segments: [number, number][],
    length?: number,
  ): Promise<number> {
    const sum = segments.reduce((total, [, bytes]) => total + bytes, 0);
    return new Promise((resolve) => {
      this.#waiting.set(tag, resolve);
      this.disk.queue(
        tag,
        op,
        offset,
        length ?? sum,
        Float64Array.from(segments.map((s) => s[0])),
        Uint32Array.from(segments.map((s) => s[1])),
        0,
        segments.length,
      );
      this.disk.submit();
    });
  }

  bytes(address: number, length: number): Buffer {
    const out = Buffer.alloc(length);
    this.memory.read(address, out);
    return out;
  }
}

describe('NBD addresses', () => {
  it('are understood', () => {
    expect(parseNbdUrl('nbd://host:1234/disk')).toEqual({
      target: { host: 'host', port: 1234 },
      exportName: 'disk',
    });
    expect(parseNbdUrl('nbd://[::1]')).toEqual({
      target: { host: '::1', port: 10809 },
      exportName: '',
    });
    expect(parseNbdUrl('nbd+unix:///a%20b?socket=/run/x.sock')).toEqual({
      target: { path: '/run/x.sock' },
      exportName: 'a b',
    });
    expect(isNbdUrl('nbd://x')).toBe(true);
    expect(isNbdUrl('/tmp/nbd')).toBe(false);
  });

  it('that are wrong get one sentence', () => {
    for (const bad of [
      'nbd+unix:///x',
      'nbds://h/x',
      'nbd:///x',
      'http://x/',
      'nbd://h:99999/x',
      'nbd+unix:///%ff%?socket=/x',
      'nbd',
    ])
      expect(() => parseNbdUrl(bad)).toThrow(/is not a usable NBD address/);
  });
});

describe('NBD disk', () => {
  let dir: string;
  let url: string;
  let path: string;
  let server: FakeNbdServer;
  let client: Client;
  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'tsvmm-nbd-'));
    path = join(dir, 'nbd.sock');
    url = `nbd+unix:///disk?socket=${path}`;
    server = new FakeNbdServer({ sizeBytes: SIZE });
    client = new Client();
    await server.listen(path);
  });
  afterEach(async () => {
    await client.disk?.close();
    await server.crash();
    rmSync(dir, { recursive: true });
  });

  it('reads, writes, zeroes and trims scattered guest memory', async () => {
    await client.open(url);
    expect(client.disk.info).toMatchObject({
      sizeBytes: SIZE,
      blockSizeBytes: 512,
      physicalBlockSizeBytes: 4096,
      volatileCache: true,
    });
    const data = Buffer.alloc(300_000);
    new Prng(1).fill(data);
    client.memory.write(1000, data);
    const segments: [number, number][] = [
      [1000, 100],
      [1100, 199_900],
      [201_000, 0],
      [201_000, 100_000 - 480],
    ];
    expect(await client.run(0, BLOCK_OP.write, 5120, segments)).toBe(ERRNO.OK);
    const length = 299_520;
    expect(server.content.subarray(5120, 5120 + length).equals(data.subarray(0, length))).toBe(
      true,
    );
    expect(
      await client.run(0, BLOCK_OP.read, 5120, [
        [2 << 20, 7],
        [3 << 20, length - 7],
      ]),
    ).toBe(ERRNO.OK);
    expect(
      Buffer.concat([client.bytes(2 << 20, 7), client.bytes(3 << 20, length - 7)]).equals(
        data.subarray(0, length),
      ),
    ).toBe(true);
    expect(await client.run(0, BLOCK_OP.writeZeroes, 5120, [], 512)).toBe(ERRNO.OK);
    expect(server.seen.at(-1)).toEqual({ type: 6, flags: 2, offset: 5120, length: 512 });
    expect(await client.run(0, BLOCK_OP.writeZeroesUnmap, 5632, [], 512)).toBe(ERRNO.OK);
    expect(await client.run(0, BLOCK_OP.discard, 6144, [], 512)).toBe(ERRNO.OK);
    expect(server.content.subarray(5120, 6656).every((byte) => byte === 0)).toBe(true);
    expect(await client.run(0, BLOCK_OP.flush, 0, [])).toBe(ERRNO.OK);
    expect(server.durable.equals(server.content)).toBe(true);
    // No part was larger than the 64 KiB that the server takes at once.
    expect(server.seen.every(({ type, length }) => type > 1 || length <= 65536)).toBe(true);
  });

  it('does without what the server lacks', async () => {
    await server.crash();
    server = new FakeNbdServer({ sizeBytes: SIZE, flags: 0, knowsGo: false });
    server.content.fill(0xee);
    await server.listen(path);
    await client.open(url);
    expect(client.disk.info.volatileCache).toBe(false);
    expect(await client.run(0, BLOCK_OP.writeZeroes, 512, [], 100 * 512)).toBe(ERRNO.OK);
    expect(server.content.subarray(512, 101 * 512).every((byte) => byte === 0)).toBe(true);
    expect(server.content[511]).toBe(0xee);
    expect(server.content[101 * 512]).toBe(0xee);
    expect(await client.run(0, BLOCK_OP.discard, 0, [], 512)).toBe(ERRNO.OK);
    expect(await client.run(0, BLOCK_OP.flush, 0, [])).toBe(ERRNO.OK);
    expect(server.seen.every(({ type }) => type <= 1)).toBe(true);
  });

  it('passes errors on, and answers wrong requests with a code', async () => {
    await client.open(url);
    server.fault = (type) => (type === 1 ? 28 : 0);
    expect(await client.run(0, BLOCK_OP.write, 0, [[0, 512]])).toBe(ERRNO.ENOSPC);
    server.fault = undefined;
    expect(await client.run(0, BLOCK_OP.read, SIZE, [[0, 512]])).toBe(ERRNO.EINVAL);
    expect(await client.run(0, BLOCK_OP.read, 1, [[0, 512]])).toBe(ERRNO.EINVAL);
    expect(await client.run(0, BLOCK_OP.read, Number.NaN, [[0, 512]])).toBe(ERRNO.EINVAL);
    expect(await client.run(0, BLOCK_OP.read, 0, [[RAM - 1, 512]])).toBe(ERRNO.EFAULT);
    expect(await client.run(0, BLOCK_OP.read, 0, [[0, 512]], 1024)).toBe(ERRNO.EINVAL);
    expect(await client.run(0, BLOCK_OP.read, 0, [[0, 512]])).toBe(ERRNO.OK);
  });

  it('sends requests again after a broken connection', async () => {
    const log = new MemoryLog();
    await client.open(url, {}, log);
    client.memory.fill(0, 65536, 7);
    server.swallow = () => true;
    const requests = Array.from({ length: 16 }, (_, i) =>
      client.run(i, BLOCK_OP.write, i * 4096, [[i * 4096, 4096]]),
    );
    while (server.seen.length < 16) await new Promise((resolve) => setTimeout(resolve, 2));
    server.content.fill(0);
    server.swallow = undefined;
    server.cut();
    expect(await Promise.all(requests)).toEqual(requests.map(() => ERRNO.OK));
    expect(server.content.subarray(0, 65536).every((byte) => byte === 7)).toBe(true);
    expect(log.lines.join('\n')).toMatch(/the server is away[\s\S]*connected again/);
  });

  it('writes again what a crashed server had not flushed', async () => {
    await client.open(url);
    client.memory.fill(0, 4096, 1);
    client.memory.fill(4096, 4096, 2);
    await client.run(0, BLOCK_OP.write, 0, [[0, 4096]]);
    await client.run(0, BLOCK_OP.flush, 0, []);
    await client.run(0, BLOCK_OP.write, 8192, [[4096, 4096]]);
    await client.run(0, BLOCK_OP.writeZeroes, 0, [], 512);
    // The guest goes on and uses the memory for something else; the acknowledged data must not change.
    client.memory.fill(4096, 4096, 9);
    await server.crash();
    expect(server.content[8192]).toBe(0);
    expect(server.content[0]).toBe(1);
    await server.listen(path);
    expect(await client.run(0, BLOCK_OP.flush, 0, [])).toBe(ERRNO.OK);
    expect(server.durable[8192]).toBe(2);
    expect(server.durable[0]).toBe(0);
    expect(server.durable[512]).toBe(1);
  });

  it('says in the next flush that a write could not be repeated', async () => {
    await client.open(url);
    await client.run(0, BLOCK_OP.write, 0, [[0, 4096]]);
    server.fault = (type) => (type === 1 ? 5 : 0);
    server.cut();
    expect(await client.run(0, BLOCK_OP.flush, 0, [])).toBe(ERRNO.EIO);
    expect(await client.run(0, BLOCK_OP.flush, 0, [])).toBe(ERRNO.OK);
  });

  it('flushes on its own when it cannot remember more', async () => {
    await client.open(url, { logBytes: 16 * 1024 });
    for (let i = 0; i < 40; i++)
      expect(await client.run(0, BLOCK_OP.write, i * 4096, [[0, 4096]])).toBe(ERRNO.OK);
    const flushes = server.seen.filter(({ type }) => type === 3).length;
    expect(flushes).toBeGreaterThanOrEqual(7);
    expect(flushes).toBeLessThanOrEqual(11);
    // Larger than the log altogether, and many at a time.
    const many = Array.from({ length: 20 }, (_, i) =>
      client.run(i, BLOCK_OP.write, i * 65536, [[0, 65536]]),
    );
    expect(await Promise.all(many)).toEqual(many.map(() => ERRNO.OK));
  });

  it('fails requests when the server stays away, and works again when it is back', async () => {
    await client.open(url, { failAfterMs: 30 });
    await server.crash();
    expect(await client.run(0, BLOCK_OP.write, 0, [[0, 512]])).toBe(ERRNO.EIO);
    expect(await client.run(0, BLOCK_OP.read, 0, [[0, 512]])).toBe(ERRNO.EIO);
    await server.listen(path);
    while (!client.disk.connected) await new Promise((resolve) => setTimeout(resolve, 2));
    expect(await client.run(0, BLOCK_OP.read, 0, [[0, 512]])).toBe(ERRNO.OK);
  });

  it('gives requests up when told: nothing is read into memory, or done, afterwards', async () => {
    await client.open(url);
    client.memory.fill(0, 65536, 7);
    expect(await client.run(0, BLOCK_OP.write, 0, [[0, 4096]])).toBe(ERRNO.OK);
    // The server has them and says nothing.
    let silent = true;
    server.swallow = () => silent;
    const read = client.run(0, BLOCK_OP.read, 0, [[8192, 4096]]);
    const write = client.run(1, BLOCK_OP.write, 4096, [[0, 4096]]);
    while (server.seen.length < 3) await new Promise((resolve) => setTimeout(resolve, 2));
    client.disk.abandon();
    expect(await Promise.all([read, write])).toEqual([ERRNO.ECANCELED, ERRNO.ECANCELED]);
    silent = false;
    server.content.fill(9, 0, 4096);
    while (!client.disk.connected) await new Promise((resolve) => setTimeout(resolve, 2));
    // What was acknowledged and not flushed is written again; what was given up is not.
    expect(await client.run(2, BLOCK_OP.flush, 0, [])).toBe(ERRNO.OK);
    expect(server.seen.slice(3).map(({ type, offset }) => [type, offset])).toEqual([
      [1, 0],
      [3, 0],
    ]);
    expect(client.bytes(8192, 4096).every((byte) => byte === 7)).toBe(true);
    // With the server away.
    await server.crash();
    const late = client.run(0, BLOCK_OP.read, 0, [[8192, 4096]]);
    await new Promise((resolve) => setTimeout(resolve, 20));
    client.disk.abandon();
    expect(await late).toBe(ERRNO.ECANCELED);
    // The next ones wait for it, as ever.
    const next = client.run(0, BLOCK_OP.read, 0, [[0, 512]]);
    await server.listen(path);
    expect(await next).toBe(ERRNO.OK);
  });

  it('waits a minute for a server that is away', async () => {
    const log = new MemoryLog();
    await client.open(url, {}, log);
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      await server.crash();
      let result: number | undefined;
      void client.run(0, BLOCK_OP.write, 0, [[0, 512]]).then((code) => {
        result = code;
      });
      const settle = () => new Promise<void>((resolve) => setImmediate(resolve));
      while (client.disk.connected) await settle();
      await vi.advanceTimersByTimeAsync(59_900);
      await settle();
      expect(result).toBeUndefined();
      await vi.advanceTimersByTimeAsync(100);
      while (result === undefined) await settle();
      expect(result).toBe(ERRNO.EIO);
      expect(log.lines.join('\n')).toMatch(
        /is away; requests wait[\s\S]*requests fail until it is back/,
      );
    } finally {
      vi.useRealTimers();
    }
  });

  it('does not wait for a server that is silent: its host may be gone', async () => {
    const log = new MemoryLog();
    await client.open(url, { failAfterMs: 200 }, log);
    server.swallow = (type) => server.connections === 1 && type === 0;
    expect(await client.run(1, BLOCK_OP.write, 0, [[0, 512]])).toBe(ERRNO.OK);
    const from = performance.now();
    // The first connection says nothing any more, the second does.
    expect(await client.run(0, BLOCK_OP.read, 0, [[0, 512]])).toBe(ERRNO.OK);
    expect(performance.now() - from).toBeGreaterThan(80);
    expect(log.lines.join('\n')).toMatch(/is away[\s\S]*connected again/);
    expect(server.connections).toBe(2);
    // An idle connection is no silent one.
    await new Promise((resolve) => setTimeout(resolve, 250));
    expect(server.connections).toBe(2);
    // Nobody answers at all: the minute counts from the last sign of life.
    server.swallow = () => true;
    expect(await client.run(0, BLOCK_OP.read, 0, [[0, 512]])).toBe(ERRNO.EIO);
  });

  it('does not go on with an export that has changed', async () => {
    const log = new MemoryLog();
    await client.open(url, { failAfterMs: 600 }, log);
    await server.crash();
    server = new FakeNbdServer({ sizeBytes: SIZE / 2 });
    await server.listen(path);
    expect(await client.run(0, BLOCK_OP.read, 0, [[0, 512]])).toBe(ERRNO.EIO);
    expect(log.lines.join()).toContain('not the same any more');
  });

  it('explains what cannot be opened', async () => {
    await expect(client.open(`nbd+unix:///x?socket=${join(dir, 'none')}`)).rejects.toThrow(
      /cannot open disk/,
    );
    await server.crash();
    server = new FakeNbdServer({ sizeBytes: SIZE, exportName: 'other', flags: 0x6f });
    await server.listen(path);
    await expect(client.open(url)).rejects.toThrow(/no export of that name/);
    await expect(client.open(url.replace('disk', 'other'))).rejects.toThrow(/read-only/);
    await client.open(url.replace('disk', 'other'), { readonly: true });
    expect(await client.run(0, BLOCK_OP.write, 0, [[0, 512]])).toBe(ERRNO.EROFS);
    const silent = createServer((socket) => socket.on('error', () => {}));
    await new Promise<void>((resolve) => silent.listen(join(dir, 'silent'), resolve));
    await expect(
      openNbd(client.memory, silentLog, {
        name: 'x',
        address: { target: { path: join(dir, 'silent') }, exportName: '' },
        connectMs: 50,
      }),
    ).rejects.toThrow(/does not answer/);
    silent.close();
  });

  it('survives servers that send noise', async () => {
    const random = new Prng(3);
    for (let round = 0; round < 30; round++) {
      const noisy = createServer((socket) => {
        socket.on('error', () => {});
        const hello = Buffer.concat([
          Buffer.from('NBDMAGICIHAVEOPT\0\x03'),
          Buffer.alloc(random.below(300)),
        ]);
        random.fill(hello.subarray(random.below(hello.length)));
        socket.end(hello);
      });
      const at = join(dir, `noise${round}`);
      await new Promise<void>((resolve) => noisy.listen(at, resolve));
      await expect(
        openNbd(client.memory, silentLog, {
          name: 'x',
          address: { target: { path: at }, exportName: '' },
          connectMs: 500,
        }),
      ).rejects.toThrow();
      noisy.close();
    }
    await client.open(url, { failAfterMs: 200 });
    server.cut();
    expect(await client.run(0, BLOCK_OP.read, 0, [[0, 512]])).toBe(ERRNO.OK);
  });

  it.each([1, 2, 3, 4, 5, 6])(
    'keeps every flushed write through crashes, seed %i',
    async (seed) => {
      const random = new Prng(seed);
      await client.open(url, { logBytes: random.pick([8192, 64 * 1024, 1 << 20]) });
      const model = Buffer.alloc(SIZE);
      for (let round = 0; round < 60; round++) {
        const trouble = random.below(10);
        if (trouble < 2) {
          await server.crash();
          await server.listen(path);
        } else if (trouble < 4) {
          server.cut();
        }
        const batch: Promise<number>[] = [];
        const used = new Set<number>();
        for (let tag = 0; tag < 1 + random.below(8); tag++) {
          const slot = random.below(64);
          if (used.has(slot)) continue;
          used.add(slot);
          const offset = slot * 65536;
          const length = 512 * (1 + random.below(128));
          const address = tag * 131072;
          if (random.chance(0.15)) {
            model.fill(0, offset, offset + length);
            batch.push(client.run(tag, BLOCK_OP.writeZeroes, offset, [], length));
          } else {
            const data = Buffer.alloc(length);
            random.fill(data);
            client.memory.write(address, data);
            data.copy(model, offset);
            batch.push(client.run(tag, BLOCK_OP.write, offset, [[address, length]]));
          }
        }
        if (random.chance(0.3)) setTimeout(() => server.cut(), random.below(4));
        for (const result of await Promise.all(batch)) expect(result).toBe(ERRNO.OK);
        if (random.chance(0.3)) {
          expect(await client.run(0, BLOCK_OP.flush, 0, [])).toBe(ERRNO.OK);
          expect(Buffer.compare(server.durable, model)).toBe(0);
        }
      }
      expect(await client.run(0, BLOCK_OP.flush, 0, [])).toBe(ERRNO.OK);
      expect(Buffer.compare(server.durable, model)).toBe(0);
    },
  );
});

const has = (program: string) =>
  spawnSync(program, ['--version'], { stdio: 'ignore' }).status === 0;

describe.each([
  ['nbdkit', (socket: string, image: string) => ['-f', '-U', socket, 'file', image]],
  [
    'qemu-nbd',
    (socket: string, image: string) => [
      '--socket',
      socket,
      '--persistent',
      '--format=raw',
      '--discard=unmap',
      image,
    ],
  ],
] as const)('NBD disk on %s (skipped where it is not installed)', (program, args) => {
  it.skipIf(!has(program))('keeps data through a kill of the server', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'tsvmm-nbd-'));
    const socket = join(dir, 's');
    const image = join(dir, 'disk.img');
    writeFileSync(image, Buffer.alloc(SIZE));
    const start = async () => {
      rmSync(socket, { force: true });
      const child = spawn(program, args(socket, image), { stdio: 'ignore' });
      while (!existsSync(socket)) await new Promise((resolve) => setTimeout(resolve, 5));
      return child;
    };
    let server = await start();
    const client = new Client();
    await client.open(`nbd+unix:///?socket=${socket}`);
    const data = Buffer.alloc(1 << 20);
    new Prng(9).fill(data);
    client.memory.write(0, data);
    expect(await client.run(0, BLOCK_OP.write, 65536, [[0, 1 << 20]])).toBe(ERRNO.OK);
    expect(await client.run(0, BLOCK_OP.writeZeroesUnmap, 0, [], 65536)).toBe(ERRNO.OK);
    server.kill('SIGKILL');
    const pending = client.run(1, BLOCK_OP.write, 2 << 20, [[0, 1 << 20]]);
    await new Promise((resolve) => server.once('exit', resolve));
    server = await start();
    expect(await pending).toBe(ERRNO.OK);
    expect(await client.run(0, BLOCK_OP.flush, 0, [])).toBe(ERRNO.OK);
    expect(await client.run(0, BLOCK_OP.read, 2 << 20, [[2 << 20, 1 << 20]])).toBe(ERRNO.OK);
    expect(client.bytes(2 << 20, 1 << 20).equals(data)).toBe(true);
    await client.disk.close();
    const gone = new Promise((resolve) => server.once('exit', resolve));
    server.kill('SIGKILL');
    await gone;
    const file = readFileSync(image);
    expect(file.subarray(65536, 65536 + (1 << 20)).equals(data)).toBe(true);
    rmSync(dir, { recursive: true });
  });
});
