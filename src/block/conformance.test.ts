import { ftruncateSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type BlockSubject, blockConformance } from '../../test/support/block-conformance.ts';
import { FakeNbdServer } from '../../test/support/nbd-server.ts';
import { silentLog } from '../base/log.ts';
import { loadAddon } from '../kvm/addon.ts';
import { loadNativeIo } from '../kvm/native-io.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { BLOCK_OP, type BlockBackend, ERRNO } from './backend.ts';
import { MemoryDisk } from './memory.ts';
import { openDisk } from './open.ts';
import { PauseWhenFull } from './pause-when-full.ts';

const RAM = 1 << 20;
const SIZE = 2 << 20;

function guest() {
  const buffer = new ArrayBuffer(RAM);
  const addon = loadAddon() as {
    MemoryMap: new () => { addRange(guestPhys: number, buffer: ArrayBuffer): void };
  };
  const memoryMap = new addon.MemoryMap();
  memoryMap.addRange(0, buffer);
  const memory = new GuestMemory([{ base: 0, buffer }]);
  return { memory, parts: { native: loadNativeIo(), memoryMap, memory, log: silentLog } };
}

describe('memory disk', () => {
  blockConformance(async () => {
    const { memory } = guest();
    return { memory, backend: new MemoryDisk(memory, { sizeBytes: SIZE }), async dispose() {} };
  });

  it('can fail, hold, and lose what was not flushed', () => {
    const { memory } = guest();
    const disk = new MemoryDisk(memory, { sizeBytes: SIZE, delivery: 'poll' });
    const results: number[] = [];
    disk.setHandler({ complete: (_, result) => results.push(result), batchEnd() {} });
    const nothing = [new Float64Array(1), new Uint32Array([512])] as const;
    disk.fault = (op) => (op === BLOCK_OP.read ? ERRNO.EIO : undefined);
    disk.queue(0, BLOCK_OP.read, 0, 512, ...nothing, 0, 1);
    memory.fill(0, 512, 5);
    disk.queue(1, BLOCK_OP.write, 0, 512, ...nothing, 0, 1);
    disk.submit();
    disk.held = true;
    expect(disk.poll()).toBe(0);
    disk.held = false;
    expect(disk.poll()).toBe(2);
    expect(results).toEqual([ERRNO.EIO, ERRNO.OK]);
    expect([disk.content[0], disk.durable[0]]).toEqual([5, 0]);
  });
});

describe.each(['io_uring', 'threads'] as const)('file disk on %s', (engine) => {
  blockConformance(async () => {
    const { memory, parts } = guest();
    const dir = mkdtempSync(join(tmpdir(), 'tsvmm-disk-'));
    const source = join(dir, 'disk.img');
    ftruncateSync(openSync(source, 'w'), SIZE);
    const { backend } = await openDisk(parts, { source, readonly: false, engine });
    return { memory, backend, dispose: async () => rmSync(dir, { recursive: true }) };
  });
});

describe('NBD disk', () => {
  blockConformance(async () => {
    const { memory, parts } = guest();
    const dir = mkdtempSync(join(tmpdir(), 'tsvmm-disk-'));
    const server = new FakeNbdServer({ sizeBytes: SIZE });
    await server.listen(join(dir, 's'));
    const source = `nbd+unix:///x?socket=${join(dir, 's')}`;
    const { backend } = await openDisk(parts, { source, readonly: false });
    const dispose = async () => {
      await server.crash();
      rmSync(dir, { recursive: true });
    };
    return { memory, backend, dispose };
  });
});

describe('pause when full', () => {
  const make = (onFull: () => void): BlockSubject & { inner: MemoryDisk } => {
    const { memory } = guest();
    const inner = new MemoryDisk(memory, { sizeBytes: SIZE });
    return { memory, inner, backend: new PauseWhenFull(inner, onFull), async dispose() {} };
  };
  blockConformance(async () => make(() => {}));

  it('keeps writes that find no room, and issues them again', async () => {
    let full = 0;
    const { memory, inner, backend } = make(() => full++);
    const disk = backend as PauseWhenFull;
    const results: [number, number][] = [];
    disk.setHandler({ complete: (tag, result) => results.push([tag, result]), batchEnd() {} });
    memory.fill(0, 4096, 3);
    inner.fault = (op) => (op === BLOCK_OP.write ? ERRNO.ENOSPC : undefined);
    const write = (target: BlockBackend, tag: number) =>
      target.queue(
        tag,
        BLOCK_OP.write,
        tag * 4096,
        4096,
        new Float64Array(1),
        new Uint32Array([4096]),
        0,
        1,
      );
    write(disk, 0);
    write(disk, 1);
    disk.queue(2, BLOCK_OP.flush, 0, 0, new Float64Array(0), new Uint32Array(0), 0, 0);
    disk.submit();
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(results).toEqual([[2, ERRNO.OK]]);
    expect([full, disk.heldCount, disk.inFlight]).toEqual([1, 2, 2]);
    expect(() => write(disk, 0)).toThrow(/tag is free/);
    disk.resume();
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect([full, disk.heldCount]).toEqual([2, 2]);
    inner.fault = undefined;
    disk.resume();
    await new Promise<void>((resolve) => disk.drain(resolve));
    expect(results.slice(1)).toEqual([
      [0, ERRNO.OK],
      [1, ERRNO.OK],
    ]);
    expect(inner.content[4096]).toBe(3);
    await disk.close();
  });
});
