import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { silentLog } from '../../base/log.ts';
import { readKey } from './key.ts';
import {
  type DialHandler,
  type DiallingLink,
  dial,
  isLoopback,
  type Link,
  listen,
  requireKey,
} from './link.ts';

class End implements DialHandler {
  readonly events: string[] = [];
  readonly received_: Uint8Array[] = [];
  #waiters: { test: () => boolean; done: () => void }[] = [];

  #check(): void {
    this.#waiters = this.#waiters.filter(({ test, done }) => {
      if (!test()) return true;
      done();
      return false;
    });
  }
  until(test: () => boolean): Promise<void> {
    return new Promise((done) => {
      this.#waiters.push({ test, done });
      this.#check();
    });
  }
  connected(): void {
    this.events.push('connected');
    this.#check();
  }
  received(bytes: Uint8Array): void {
    this.received_.push(Uint8Array.from(bytes));
    this.#check();
  }
  drained(): void {
    this.#check();
  }
  disconnected(): void {
    this.events.push('disconnected');
    this.#check();
  }
  failed(why: string): void {
    this.events.push(`failed: ${why}`);
    this.#check();
  }
  get total(): number {
    return this.received_.reduce((sum, part) => sum + part.length, 0);
  }
}

const open: Link[] = [];
afterEach(() => {
  for (const link of open.splice(0)) link.close();
});

const key = new Uint8Array(32).fill(9);

for (const withKey of [undefined, key]) {
  describe(`link ${withKey === undefined ? 'without' : 'with'} a key`, () => {
    it('carries bytes both ways, and can dial again after a loss', async () => {
      const standby = new End();
      const primary = new End();
      const common = { host: '127.0.0.1', key: withKey, log: silentLog };
      const server = await listen({ ...common, port: 0 }, standby);
      const client = dial(primary);
      const to = { ...common, port: server.port };
      open.push(server, client);
      client.connect(to);
      await standby.until(() => standby.events.length === 1);
      await primary.until(() => primary.events.length === 1);
      let flushed = false;
      client.send([new Uint8Array([1, 2]), new Uint8Array(300_000).fill(3)], () => {
        flushed = true;
      });
      await standby.until(() => standby.total === 300_002);
      expect(flushed).toBe(true);
      server.send([new Uint8Array([7])]);
      await primary.until(() => primary.total === 1);
      server.drop();
      await primary.until(() => primary.events.length === 2);
      client.connect(to);
      await primary.until(() => primary.events.join() === 'connected,disconnected,connected');
      expect(client.up).toBe(true);
    });
  });
}

describe('who may connect', () => {
  it('keeps the peer that is connected when strangers come, and takes one that greets', async () => {
    const standby = new End();
    const common = { host: '127.0.0.1', key: undefined, log: silentLog };
    const greeting = Uint8Array.of(1, 2, 3);
    const server = await listen({ ...common, port: 0 }, standby, greeting);
    open.push(server);
    const ends = Array.from({ length: 12 }, () => new End());
    const [first, garbage, silent, ...more] = ends.map((end) => {
      const link = dial(end);
      open.push(link);
      return link;
    });
    const connected = async (i: number, link: DiallingLink): Promise<void> => {
      link.connect({ ...common, port: server.port });
      await ends[i]!.until(() => ends[i]!.events.length > 0);
    };
    await connected(0, first!);
    // Byte by byte, with more behind it.
    for (const byte of [1, 2, 3, 9]) first!.send([Uint8Array.of(byte)]);
    await standby.until(() => standby.total === 4);
    await connected(1, garbage!);
    garbage!.send([Uint8Array.of(1, 2, 4)]);
    await ends[1]!.until(() => ends[1]!.events.length === 2);
    await connected(2, silent!);
    // More newcomers than may wait: the oldest of them has to go, the peer stays.
    for (const [i, link] of more.entries()) await connected(i + 3, link);
    await ends[2]!.until(() => ends[2]!.events.length === 2);
    expect([standby.events, first!.up]).toEqual([['connected'], true]);
    more.at(-1)!.send([Uint8Array.of(1, 2, 3)]);
    await ends[0]!.until(() => ends[0]!.events.length === 2);
    expect(standby.events).toEqual(['connected', 'disconnected', 'connected']);
  });

  it('gives back what was to be sent when the connection is gone', async () => {
    const standby = new End();
    const common = { host: '127.0.0.1', key: undefined, log: silentLog };
    const server = await listen({ ...common, port: 0 }, standby);
    const end = new End();
    const client = dial(end);
    open.push(server, client);
    client.connect({ ...common, port: server.port });
    await end.until(() => end.events.length === 1);
    await standby.until(() => standby.events.length === 1);
    server.setReading(false);
    let back = 0;
    const parts = 40;
    for (let i = 0; i < parts; i++) client.send([new Uint8Array(2 ** 20)], () => back++);
    client.drop();
    client.send([new Uint8Array(1)], () => back++);
    for (let i = 0; i < 200 && back <= parts; i++)
      await new Promise((done) => setTimeout(done, 10));
    expect(back).toBe(parts + 1);
  });

  it('turns away a peer with another key, and one without', async () => {
    const standby = new End();
    const warnings: string[] = [];
    const log = { ...silentLog, warn: (line: string) => warnings.push(line) };
    const server = await listen({ host: '127.0.0.1', port: 0, key, log }, standby);
    const wrong = new End();
    const common = { host: '127.0.0.1', port: server.port, log: silentLog };
    const stranger = dial(wrong);
    const plain = dial(new End());
    open.push(server, stranger, plain);
    stranger.connect({ ...common, key: new Uint8Array(32) });
    plain.connect({ ...common, key: undefined });
    for (let i = 0; i < 200 && warnings.length < 1; i++)
      await new Promise((done) => setTimeout(done, 10));
    expect(warnings.length).toBeGreaterThan(0);
    expect(standby.events).toEqual([]);
    await wrong.until(() => wrong.events.length > 0);
    expect(wrong.events.every((event) => event.startsWith('failed: '))).toBe(true);
  });

  it('needs a key for anything but loopback', async () => {
    const handler = new End();
    const options = { host: '192.0.2.1', port: 1, key: undefined, log: silentLog };
    expect(() => requireKey(options, 'the peer')).toThrow(/needs a key/);
    await expect(listen({ ...options, host: '0.0.0.0' }, handler)).rejects.toThrow(/needs a key/);
    expect(['127.0.0.1', '::1', 'localhost', '::ffff:127.9.9.9'].every(isLoopback)).toBe(true);
    expect(['10.0.0.1', 'example.org', '::', '128.0.0.1'].some(isLoopback)).toBe(false);
  });
});

describe('key files', () => {
  it('hold 64 hexadecimal digits and belong to one user', () => {
    const folder = mkdtempSync(join(tmpdir(), 'tsvmm-key-'));
    try {
      const path = join(folder, 'key');
      writeFileSync(path, `${'0a'.repeat(32)}\n`, { mode: 0o600 });
      expect(readKey(path)).toEqual(new Uint8Array(32).fill(10));
      chmodSync(path, 0o644);
      expect(() => readKey(path)).toThrow(/other users/);
      const short = join(folder, 'short');
      writeFileSync(short, '0a0a', { mode: 0o600 });
      expect(() => readKey(short)).toThrow(/64 hexadecimal digits/);
      expect(() => readKey(join(folder, 'none'))).toThrow(/cannot be read/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
