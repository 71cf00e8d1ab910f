import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LockArbiter, type LockNative } from './lock-arbiter.ts';

/** Locks between descriptors of one process, as open-file-description locks are. */
class Locks implements LockNative {
  readonly #holders = new Map<string, number>();
  readonly path: string;
  constructor(path: string) {
    this.path = path;
  }
  tryLock(fd: number): boolean {
    const holder = this.#holders.get(this.path);
    if (holder !== undefined && holder !== fd) return false;
    this.#holders.set(this.path, fd);
    return true;
  }
  unlock(fd: number): void {
    if (this.#holders.get(this.path) === fd) this.#holders.delete(this.path);
  }
  /** The process that holds the lock dies. */
  die(): void {
    this.#holders.clear();
  }
}

let folder: string;
let path: string;
let locks: Locks;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'tsvmm-arbiter-'));
  path = join(folder, 'lock');
  locks = new Locks(path);
});
afterEach(() => rmSync(folder, { recursive: true }));

describe('LockArbiter', () => {
  it('says that a full disk takes no record, and grants nothing on one', async () => {
    // A device that can be opened and locked, reads as zeros and has no room.
    const arbiter = new LockArbiter(locks, '/dev/full');
    await expect(arbiter.begin()).rejects.toThrow(/cannot be written: ENOSPC/);
    const verdict = await arbiter.request({ kind: 'acquire', generation: 1, instance: 'x' });
    expect(verdict.result).not.toBe('ok');
    arbiter.close();
  });

  it('lets the standby on record take over once the primary is dead, and only then', async () => {
    const a = new LockArbiter(locks, path);
    const b = new LockArbiter(locks, path);
    expect(await a.begin()).toBe(1);
    await expect(b.begin()).rejects.toThrow(/running already/);
    const acquire = { kind: 'acquire', generation: 1, instance: 'b' } as const;
    await expect(b.request(acquire)).resolves.toMatchObject({ result: 'refused' });
    expect((await a.request({ kind: 'record', generation: 1, inSync: 'b' })).result).toBe('ok');
    expect((await b.request(acquire)).sentence).toMatch(/still exists/);
    locks.die();
    expect((await b.request({ ...acquire, instance: 'c' })).sentence).toMatch(/not on record/);
    expect(await b.request(acquire)).toMatchObject({ result: 'ok', generation: 2 });
    // The answer may have been lost on the way to the core, which asks again.
    expect(await b.request(acquire)).toMatchObject({ result: 'ok', generation: 2 });
    const c = new LockArbiter(locks, path);
    expect((await c.request({ ...acquire, instance: 'c' })).result).toBe('refused');
  });

  it('refuses a standby that was recorded out of sync', async () => {
    const a = new LockArbiter(locks, path);
    const b = new LockArbiter(locks, path);
    await a.begin();
    await a.request({ kind: 'record', generation: 1, inSync: 'b' });
    await a.request({ kind: 'record', generation: 1, inSync: '' });
    locks.die();
    const verdict = await b.request({ kind: 'acquire', generation: 1, instance: 'b' });
    expect(verdict.sentence).toMatch(/not on record/);
  });

  it('hands over without a death, and refuses the old generation afterwards', async () => {
    const a = new LockArbiter(locks, path);
    const b = new LockArbiter(locks, path);
    await a.begin();
    await a.request({ kind: 'record', generation: 1, inSync: 'b' });
    expect((await a.request({ kind: 'hand', generation: 1 })).result).toBe('ok');
    expect((await b.request({ kind: 'acquire', generation: 1, instance: 'b' })).generation).toBe(2);
    const late = await a.request({ kind: 'record', generation: 1, inSync: '' });
    expect(late).toMatchObject({ result: 'refused', generation: 2 });
  });

  it('survives a torn write: the older slot stands', async () => {
    const a = new LockArbiter(locks, path);
    await a.begin();
    await a.request({ kind: 'record', generation: 1, inSync: 'b' });
    const bytes = readFileSync(path);
    // Sequence 2 is in slot 0; a write of sequence 3 into slot 1 tears.
    bytes.fill(0xee, 512 + 20, 1024);
    writeFileSync(path, bytes);
    locks.die();
    const b = new LockArbiter(locks, path);
    expect((await b.request({ kind: 'acquire', generation: 1, instance: 'b' })).result).toBe('ok');
  });

  it('starts a higher generation each time, and says what is wrong with the path', async () => {
    const a = new LockArbiter(locks, path);
    expect(await a.begin()).toBe(1);
    locks.die();
    expect(await new LockArbiter(locks, path).begin()).toBe(2);
    expect(() => new LockArbiter(locks, join(folder, 'no', 'dir'))).toThrow(/cannot be opened/);
  });
});
