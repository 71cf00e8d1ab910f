/** What every disk backend and every decorator must do, whatever is behind it. */
import { afterEach, beforeEach, expect, it } from 'vitest';
import { BLOCK_OP, type BlockBackend, type BlockOp, ERRNO } from '../../src/block/backend.ts';
import type { GuestMemory } from '../../src/memory/guest-memory.ts';

/** A backend under test over `memory` (1 MiB at 0 at least); its content is all zero, 1 MiB at least, writable. */
export interface BlockSubject {
  readonly backend: BlockBackend;
  readonly memory: GuestMemory;
  dispose(): Promise<void>;
}

/** Declares the tests. */
export function blockConformance(make: () => Promise<BlockSubject>): void {
  let subject: BlockSubject;
  let disk: BlockBackend;
  let completions: [tag: number, result: number][] = [];
  let onComplete: ((tag: number) => void) | undefined;
  let batches = 0;

  beforeEach(async () => {
    subject = await make();
    disk = subject.backend;
    completions = [];
    batches = 0;
    onComplete = undefined;
    disk.setHandler({
      complete(tag, result) {
        completions.push([tag, result]);
        onComplete?.(tag);
      },
      batchEnd() {
        batches++;
        disk.submit();
      },
    });
  });
  afterEach(async () => {
    await disk.close();
    await subject.dispose();
  });

  const queue = (
    tag: number,
    op: BlockOp,
    offset: number,
    segments: [number, number][] = [],
    length?: number,
  ) =>
    disk.queue(
      tag,
      op,
      offset,
      length ?? segments.reduce((sum, [, bytes]) => sum + bytes, 0),
      Float64Array.from(segments, ([address]) => address),
      Uint32Array.from(segments, ([, bytes]) => bytes),
      0,
      segments.length,
    );
  const idle = () => new Promise<void>((resolve) => disk.drain(resolve));
  const run = async (...args: Parameters<typeof queue>) => {
    queue(...args);
    disk.submit();
    await idle();
    return completions.at(-1)![1];
  };

  it('describes itself', () => {
    const { info } = disk;
    expect(info.sizeBytes % info.blockSizeBytes).toBe(0);
    expect(info.physicalBlockSizeBytes % info.blockSizeBytes).toBe(0);
    expect(info.maxRequests).toBeGreaterThan(0);
    expect(info.maxSegments).toBeGreaterThanOrEqual(126);
    expect(info.readonly).toBe(false);
  });

  it('gives back what was written, by any segments', async () => {
    const { memory } = subject;
    for (let i = 0; i < 8192; i++) memory.writeU8(i, i * 7);
    expect(
      await run(0, BLOCK_OP.write, 4096, [
        [0, 4096],
        [4096, 4096],
      ]),
    ).toBe(ERRNO.OK);
    expect(
      await run(0, BLOCK_OP.read, 4096, [
        [65536, 1000],
        [70000, 7192],
      ]),
    ).toBe(ERRNO.OK);
    const first = new Uint8Array(1000);
    const rest = new Uint8Array(7192);
    memory.read(65536, first);
    memory.read(70000, rest);
    const got = Buffer.concat([first, rest]);
    expect(got.every((byte, i) => byte === ((i * 7) & 0xff))).toBe(true);
  });

  it('never completes inside queue or submit', async () => {
    for (let tag = 0; tag < 4; tag++) {
      queue(tag, BLOCK_OP.write, tag * 4096, [[0, 4096]]);
      queue(tag + 4, BLOCK_OP.read, disk.info.sizeBytes, [[0, 4096]]);
    }
    expect(completions).toEqual([]);
    disk.submit();
    expect(completions).toEqual([]);
    expect(disk.inFlight).toBe(8);
    await idle();
    expect(completions.length).toBe(8);
    expect(disk.inFlight).toBe(0);
    expect(batches).toBeGreaterThan(0);
    for (const [tag, result] of completions) expect(result).toBe(tag < 4 ? ERRNO.OK : ERRNO.EINVAL);
  });

  it('lets a handler use the tag again at once', async () => {
    let rounds = 0;
    onComplete = (tag) => {
      if (++rounds < 10) queue(tag, BLOCK_OP.write, rounds * 4096, [[0, 4096]]);
    };
    queue(3, BLOCK_OP.write, 0, [[0, 4096]]);
    disk.submit();
    const end = performance.now() + 5000;
    while (rounds < 10 && performance.now() < end)
      await new Promise((resolve) => setTimeout(resolve, 2));
    expect(completions.map(([tag]) => tag)).toEqual(new Array(10).fill(3));
  });

  it('refuses a tag that is in flight', async () => {
    queue(1, BLOCK_OP.read, 0, [[0, 4096]]);
    expect(() => queue(1, BLOCK_OP.read, 0, [[0, 4096]])).toThrow();
    disk.submit();
    await idle();
  });

  it('answers wrong requests with codes', async () => {
    const { sizeBytes } = disk.info;
    expect(await run(0, BLOCK_OP.write, sizeBytes, [[0, 4096]])).toBe(ERRNO.EINVAL);
    expect(await run(0, BLOCK_OP.read, 1, [[0, 4096]])).toBe(ERRNO.EINVAL);
    expect(await run(0, BLOCK_OP.read, 0, [[2 ** 45, 4096]])).toBe(ERRNO.EFAULT);
    expect(await run(0, BLOCK_OP.discard, sizeBytes - 4096, [], 8192)).toBe(ERRNO.EINVAL);
    expect(await run(0, BLOCK_OP.read, 0, [[0, 4096]])).toBe(ERRNO.OK);
  });

  it('flushes and makes ranges zero', async () => {
    subject.memory.fill(0, 65536, 0xff);
    expect(await run(0, BLOCK_OP.write, 0, [[0, 65536]])).toBe(ERRNO.OK);
    expect(await run(0, BLOCK_OP.flush, 0)).toBe(ERRNO.OK);
    expect(await run(0, BLOCK_OP.writeZeroes, 4096, [], 4096)).toBe(ERRNO.OK);
    expect(await run(0, BLOCK_OP.writeZeroesUnmap, 16384, [], 8192)).toBe(ERRNO.OK);
    expect(await run(0, BLOCK_OP.discard, 40960, [], 4096)).toBe(ERRNO.OK);
    expect(await run(0, BLOCK_OP.read, 0, [[131072, 32768]])).toBe(ERRNO.OK);
    const got = new Uint8Array(32768);
    subject.memory.read(131072, got);
    expect(
      got.every(
        (byte, i) => byte === ((i >= 4096 && i < 8192) || (i >= 16384 && i < 24576) ? 0 : 0xff),
      ),
    ).toBe(true);
  });

  it('drains at once when idle, and closes while requests are in flight', async () => {
    let drained = false;
    disk.drain(() => {
      drained = true;
    });
    expect(drained).toBe(true);
    queue(0, BLOCK_OP.write, 0, [[0, 65536]]);
    disk.submit();
    await disk.close();
    expect(completions).toEqual([[0, ERRNO.OK]]);
    await disk.close();
  });
}
