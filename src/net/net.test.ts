import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createConnection, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MemoryLog, silentLog } from '../base/log.ts';
import { Prng } from '../base/prng.ts';
import { loadAddon } from '../kvm/addon.ts';
import { loadNativeIo } from '../kvm/native-io.ts';
import {
  FrameBatch,
  MAX_FRAME_BYTES,
  type NetBackend,
  type NetHandler,
  VNET_HEADER_BYTES,
} from './backend.ts';
import { FrameQueue } from './frame-queue.ts';
import { createLoop } from './loop.ts';
import { NoNetwork } from './none.ts';
import { openCapture } from './pcap.ts';
import { openStream, type StreamBackend } from './stream.ts';
import { openTap, type TapBackend } from './tap.ts';
import { openUserNet } from './user.ts';

/** Receives everything, and can be told to hold back. */
class Receiver implements NetHandler {
  readonly frames: Buffer[] = [];
  readonly links: boolean[] = [];
  writableCount = 0;
  readonly #backend: NetBackend;
  readonly #batch = new FrameBatch();
  #waiting: (() => void)[] = [];

  constructor(backend: NetBackend) {
    this.#backend = backend;
    backend.setHandler(this);
    backend.setReceiveEnabled(true);
  }
  receivable(): void {
    this.#batch.clear();
    this.#backend.receive(this.#batch, 16);
    for (let i = 0; i < this.#batch.count; i++) this.frames.push(Buffer.from(this.#batch.frame(i)));
    this.#wake();
  }
  writable(): void {
    this.writableCount++;
    this.#wake();
  }
  linkChanged(up: boolean): void {
    this.links.push(up);
    this.#wake();
  }
  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const go of waiting) go();
  }
  async until(condition: () => boolean, ms = 5000): Promise<void> {
    const end = performance.now() + ms;
    while (!condition()) {
      if (performance.now() > end) throw new Error('timed out');
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 20);
        this.#waiting.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }
}

function batchOf(...frames: Uint8Array[]): FrameBatch {
  const batch = new FrameBatch(Math.max(1, frames.length), 2 * 1024 * 1024);
  for (const frame of frames) expect(batch.addFrame(frame)).toBe(true);
  return batch;
}

function frameOf(random: Prng, length: number): Buffer {
  const frame = Buffer.alloc(length);
  random.fill(frame);
  return frame;
}

/** Who has `target`? Asked by `sender`, from 52:54:00:12:34:56 to everybody. */
function arpRequest(sender: string, target: string): Buffer {
  const frame = Buffer.alloc(42);
  const mac = Buffer.from('525400123456', 'hex');
  frame.fill(0xff, 0, 6);
  mac.copy(frame, 6);
  Buffer.from('08060001080006040001', 'hex').copy(frame, 12);
  mac.copy(frame, 22);
  Buffer.from(sender.split('.').map(Number)).copy(frame, 28);
  Buffer.from(target.split('.').map(Number)).copy(frame, 38);
  return frame;
}

describe('FrameBatch', () => {
  it('keeps headers and lengths', () => {
    const batch = new FrameBatch(2, 70_000);
    expect(batch.addFrame(Buffer.from('hello, ethernet'))).toBe(true);
    expect(batch.lengths[0]).toBe(VNET_HEADER_BYTES + 15);
    expect(Buffer.from(batch.frame(0)).toString()).toBe('hello, ethernet');
    expect(batch.addFrame(Buffer.alloc(70_000))).toBe(false);
    expect(batch.addFrame(Buffer.alloc(60))).toBe(true);
    expect(batch.addFrame(Buffer.alloc(60))).toBe(false);
    batch.clear();
    expect(batch.room(66_000)).toBe(true);
  });
});

describe('FrameQueue', () => {
  it('gives back what went in, however the bytes were cut', () => {
    const random = new Prng(1);
    for (let round = 0; round < 50; round++) {
      const frames = Array.from({ length: 40 }, () => frameOf(random, 14 + random.below(3000)));
      const wire = new FrameQueue(1 << 20);
      wire.appendFrames(batchOf(...frames), 0);
      const bytes = wire.bytes.subarray(wire.start, wire.end);
      const queue = new FrameQueue(96 * 1024);
      const got: Buffer[] = [];
      const batch = new FrameBatch();
      let at = 0;
      while (got.length < frames.length) {
        const n = Math.min(bytes.length - at, 1 + random.below(20_000));
        if (queue.append(bytes.subarray(at, at + n))) at += n;
        batch.clear();
        const added = queue.takeFrames(batch, 1 + random.below(8));
        for (let i = 0; i < added; i++) got.push(Buffer.from(batch.frame(i)));
      }
      expect(Buffer.concat(got).equals(Buffer.concat(frames))).toBe(true);
    }
  });

  it('sees bytes that are no frames, after the good ones', () => {
    const queue = new FrameQueue(96 * 1024);
    queue.appendFrames(batchOf(Buffer.alloc(60, 1)), 0);
    queue.append(Buffer.from([0xff, 0xff, 0xff, 0xff]));
    const batch = new FrameBatch();
    expect(queue.takeFrames(batch, 10)).toBe(1);
    expect(queue.hasFrame()).toBe(true);
    expect(queue.takeFrames(batch, 10)).toBe(-1);
  });

  it('drops runts and survives noise', () => {
    const random = new Prng(2);
    const batch = new FrameBatch();
    for (let round = 0; round < 2000; round++) {
      const queue = new FrameQueue(MAX_FRAME_BYTES + 100);
      const noise = new Uint8Array(random.below(600));
      random.fill(noise);
      if (random.chance(0.7))
        for (let i = 0; i + 2 < noise.length; i += 40) noise.fill(0, i, i + 3);
      queue.append(noise);
      for (let i = 0; i < 100 && queue.hasFrame(); i++) {
        batch.clear();
        if (queue.takeFrames(batch, 4) < 0) break;
        for (let k = 0; k < batch.count; k++)
          expect(batch.frame(k).length).toBeGreaterThanOrEqual(14);
      }
    }
  });
});

describe('loop', () => {
  it('carries frames both ways, in order', async () => {
    const [a, b] = createLoop();
    const [ra, rb] = [new Receiver(a), new Receiver(b)];
    const random = new Prng(3);
    const frames = Array.from({ length: 100 }, () => frameOf(random, 60 + random.below(1400)));
    expect(a.send(batchOf(...frames), 0)).toBe(100);
    expect(b.send(batchOf(frames[0]!), 0)).toBe(1);
    await rb.until(() => rb.frames.length === 100);
    expect(rb.frames).toEqual(frames);
    await ra.until(() => ra.frames.length === 1);
    await a.close();
    expect(b.linkUp).toBe(false);
  });

  it('holds the sender back while the receiver does not take', async () => {
    const [a, b] = createLoop(80 * 1024);
    const ra = new Receiver(a);
    const rb = new Receiver(b);
    b.setReceiveEnabled(false);
    const batch = batchOf(...Array.from({ length: 100 }, (_, i) => Buffer.alloc(1500, i)));
    const taken = a.send(batch, 0);
    expect(taken).toBeLessThan(100);
    expect(a.send(batch, taken)).toBe(0);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(rb.frames.length).toBe(0);
    b.setReceiveEnabled(true);
    await ra.until(() => ra.writableCount > 0);
    expect(a.send(batch, taken)).toBeGreaterThan(0);
    await rb.until(() => rb.frames.length >= taken + 1);
    expect(rb.frames.every((frame, i) => frame[0] === i)).toBe(true);
    await Promise.all([a.close(), b.close()]);
  });
});

describe('none', () => {
  it('loses what is sent', () => {
    const none = new NoNetwork();
    expect(none.linkUp).toBe(false);
    expect(none.send(batchOf(Buffer.alloc(60), Buffer.alloc(60)), 1)).toBe(1);
  });
});

describe('stream', () => {
  let dir: string;
  let path: string;
  const open: NetBackend[] = [];
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'tsvmm-net-'));
    path = join(dir, 's.sock');
  });
  afterEach(async () => {
    for (const backend of open.splice(0)) await backend.close();
    rmSync(dir, { recursive: true });
  });
  const pair = async (): Promise<[StreamBackend, StreamBackend]> => {
    const server = await openStream(silentLog, { address: { path }, mode: 'listen' });
    const client = await openStream(silentLog, { address: { path }, retryMs: 20 });
    open.push(server, client);
    return [server, client];
  };

  it('carries frames of every size, unix and TCP', async () => {
    const random = new Prng(4);
    const tcp = await openStream(silentLog, {
      address: { host: '127.0.0.1', port: 0 },
      mode: 'listen',
    });
    const tcpClient = await openStream(silentLog, {
      address: { host: '127.0.0.1', port: tcp.port! },
    });
    open.push(tcp, tcpClient);
    for (const [a, b] of [await pair(), [tcp, tcpClient] as const]) {
      const [ra, rb] = [new Receiver(a), new Receiver(b)];
      await ra.until(() => a.linkUp && b.linkUp);
      const frames = [14, 60, 1514, 9000, 65_000, MAX_FRAME_BYTES, 64].map((n) =>
        frameOf(random, n),
      );
      const batch = batchOf(...frames);
      let sent = 0;
      while (sent < frames.length) {
        sent += a.send(batch, sent);
        if (sent < frames.length) {
          const before = ra.writableCount;
          await ra.until(() => ra.writableCount > before);
        }
      }
      await rb.until(() => rb.frames.length === frames.length);
      expect(rb.frames.every((frame, i) => frame.equals(frames[i]!))).toBe(true);
      expect(b.send(batchOf(frames[1]!), 0)).toBe(1);
      await ra.until(() => ra.frames.length === 1);
    }
  });

  it('holds back both ways when the other side does not take', async () => {
    const [server, client] = await pair();
    const rs = new Receiver(server);
    const rc = new Receiver(client);
    await rs.until(() => server.linkUp);
    server.setReceiveEnabled(false);
    const batch = batchOf(...Array.from({ length: 64 }, (_, i) => Buffer.alloc(9000, i)));
    let accepted = 0;
    for (let turn = 0; turn < 60; turn++) {
      accepted += client.send(batch, accepted % 64);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    // Two send buffers, the socket's own, one receive buffer: some megabytes at most, then nothing is taken.
    expect(client.send(batch, accepted % 64)).toBe(0);
    expect(accepted * 9000).toBeLessThan(4 << 20);
    expect(rs.frames.length).toBe(0);
    server.setReceiveEnabled(true);
    await rs.until(() => rs.frames.length === accepted);
    expect(rs.frames.every((frame, i) => frame[0] === i % 64 && frame.length === 9000)).toBe(true);
    expect(rc.writableCount).toBeGreaterThan(0);
  });

  it('connects again when the other side was away, and says so by the link', async () => {
    const server = await openStream(silentLog, { address: { path }, mode: 'listen' });
    const client = await openStream(silentLog, { address: { path }, retryMs: 20 });
    open.push(client);
    const rc = new Receiver(client);
    await server.close();
    await rc.until(() => !client.linkUp);
    expect(client.send(batchOf(Buffer.alloc(60)), 0)).toBe(1);
    const again = await openStream(silentLog, { address: { path }, mode: 'listen' });
    open.push(again);
    const rs = new Receiver(again);
    await rc.until(() => client.linkUp);
    client.send(batchOf(Buffer.alloc(60, 7)), 0);
    await rs.until(() => rs.frames.length === 1);
    expect(rc.links).toEqual([false, true]);
  });

  it('drops a peer that does not speak frames', async () => {
    const log = new MemoryLog();
    const server = await openStream(log, { address: { path }, mode: 'listen' });
    open.push(server);
    const receiver = new Receiver(server);
    const socket = createConnection(path);
    socket.on('error', () => {});
    socket.write('GET / HTTP/1.0\r\n\r\n');
    await new Promise((resolve) => socket.once('close', resolve));
    await receiver.until(() => !server.linkUp);
    expect(log.lines.join()).toContain('does not send frames');
    expect(receiver.frames).toEqual([]);
  });

  it('reads frames that arrive byte by byte', async () => {
    const server = await openStream(silentLog, { address: { path }, mode: 'listen' });
    open.push(server);
    const receiver = new Receiver(server);
    const socket = createConnection(path);
    socket.setNoDelay(true);
    const wire = Buffer.concat([Buffer.from([0, 0, 0, 20]), Buffer.alloc(20, 5)]);
    for (const byte of wire) {
      socket.write(Buffer.from([byte]));
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await receiver.until(() => receiver.frames.length === 1);
    expect(receiver.frames[0]!.equals(Buffer.alloc(20, 5))).toBe(true);
    socket.destroy();
  });

  it('explains an address that nobody answers on, or that is taken', async () => {
    await expect(openStream(silentLog, { address: { path } })).rejects.toThrow(/cannot connect to/);
    const server = createServer((socket: Socket) => socket.destroy());
    await new Promise<void>((resolve) => server.listen(path, resolve));
    await expect(openStream(silentLog, { address: { path }, mode: 'listen' })).rejects.toThrow(
      /cannot listen on/,
    );
    await new Promise((resolve) => server.close(resolve));
  });

  it('takes over the socket file of a crashed process', async () => {
    const script = `require('net').createServer().listen(${JSON.stringify(path)},()=>process.kill(process.pid,'SIGKILL'))`;
    spawnSync(process.execPath, ['-e', script]);
    open.push(await openStream(silentLog, { address: { path }, mode: 'listen' }));
  });
});

describe('pcap', () => {
  it('goes on under a clock that no capture file can show', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'tsvmm-pcap-'));
    let now = 0;
    const path = join(dir, 'x.pcap');
    const filter = openCapture(new NoNetwork(), silentLog, { path, wallNs: () => now });
    const batch = new FrameBatch();
    batch.addFrame(new Uint8Array(60));
    const clocks = [-1, -1.7e18, 2 ** 62, 1e30, Number.NaN];
    for (now of clocks) expect(filter.send(batch, 0)).toBe(1);
    await filter.close();
    expect(readFileSync(path)).toHaveLength(24 + clocks.length * (16 + 60));
    rmSync(dir, { recursive: true });
  });

  it('writes what passes, both ways, as a capture file', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'tsvmm-pcap-'));
    const path = join(dir, 'x.pcap');
    const [a, b] = createLoop();
    let now = 1_700_000_000_000_000_000;
    const filter = openCapture(a, silentLog, { path, wallNs: () => (now += 1000) });
    const ra = new Receiver(filter);
    const rb = new Receiver(b);
    filter.send(batchOf(Buffer.alloc(60, 1), Buffer.alloc(100, 2)), 0);
    b.send(batchOf(Buffer.alloc(80, 3)), 0);
    await ra.until(() => ra.frames.length === 1 && rb.frames.length === 2);
    await filter.close();
    const file = readFileSync(path);
    expect(file.readUInt32LE(0)).toBe(0xa1b23c4d);
    expect(file.readUInt32LE(20)).toBe(1);
    const seen: [number, number][] = [];
    for (let at = 24; at < file.length; ) {
      expect(file.readUInt32LE(at)).toBe(1_700_000_000);
      const length = file.readUInt32LE(at + 8);
      seen.push([length, file[at + 16]!]);
      at += 16 + length;
    }
    expect(seen).toEqual([
      [60, 1],
      [100, 2],
      [80, 3],
    ]);
    expect(() =>
      openCapture(a, silentLog, { path: join(dir, 'no', 'x'), wallNs: () => 0 }),
    ).toThrow(/capture file/);
    const full = openCapture(a, silentLog, { path: '/dev/full', wallNs: () => 0 });
    expect(full.send(batchOf(Buffer.alloc(60)), 0)).toBe(1);
    rmSync(dir, { recursive: true });
  });
});

const native = loadNativeIo();

function mayMakeTap(): boolean {
  try {
    new native.TapDevice('tsvtest%d', true).close();
    return true;
  } catch {
    return false;
  }
}

describe.skipIf(!mayMakeTap())('tap (needs the right to make interfaces)', () => {
  const taps: TapBackend[] = [];
  const make = (log = silentLog) => {
    const tap = openTap(native, log, { name: 'tsvtest%d', create: true, watchMs: 20 });
    taps.push(tap);
    return tap;
  };
  afterEach(async () => {
    for (const tap of taps.splice(0)) await tap.close();
  });
  /** A packet socket would need code of its own: the kernel itself is the other side, asked by ARP. */
  const address = (tap: TapBackend, cidr: string) =>
    execFileSync('ip', ['addr', 'add', cidr, 'dev', tap.interfaceName]);
  it('sends to the kernel and receives its answer', async () => {
    const tap = make();
    const receiver = new Receiver(tap);
    address(tap, '10.99.7.1/24');
    expect(tap.linkUp).toBe(true);
    expect(tap.info.mtu).toBe(1500);
    await receiver.until(() => {
      tap.send(batchOf(arpRequest('10.99.7.2', '10.99.7.1')), 0);
      return receiver.frames.some(
        (frame) => frame.readUInt16BE(12) === 0x0806 && frame.readUInt16BE(20) === 2,
      );
    });
  });

  it('sends frames that go on in guest memory, and checks where that is', async () => {
    const { MemoryMap } = loadAddon() as {
      MemoryMap: new () => { addRange(at: number, b: ArrayBuffer, o: number, n: number): void };
    };
    const map = new MemoryMap();
    const guest = new Uint8Array(8192);
    // Two ranges that touch: a segment may cross from one to the other.
    map.addRange(0x10000, guest.buffer, 0, 4096);
    map.addRange(0x11000, guest.buffer, 4096, 4096);
    const tap = openTap(native, silentLog, {
      ...{ name: 'tsvtest%d', create: true, watchMs: 20, memoryMap: map },
    });
    taps.push(tap);
    const receiver = new Receiver(tap);
    address(tap, '10.99.9.1/24');
    const frame = arpRequest('10.99.9.2', '10.99.9.1');
    guest.set(frame.subarray(14), 4096 - 10);
    const batch = new FrameBatch(4, undefined, 8);
    const put = (tail: number, bytes: number) => {
      const at = batch.add(12 + 14);
      batch.bytes.fill(0, at, at + 12);
      batch.bytes.set(frame.subarray(0, 14), at + 12);
      batch.addTail(tail, bytes);
    };
    // What is not memory is lost; what follows it is not.
    put(0x4_0000, 20);
    put(0x11000 - 10, frame.length - 14);
    await receiver.until(() => {
      expect(tap.send(batch, 1)).toBe(1);
      expect(tap.send(batch, 0)).toBe(2);
      return receiver.frames.some((f) => f.readUInt16BE(12) === 0x0806 && f.readUInt16BE(20) === 2);
    });
    batch.tailAddresses[0] = 2 ** 60;
    expect(() => tap.send(batch, 0)).toThrow(RangeError);
    batch.tailEnds[0] = 7;
    expect(() => tap.send(batch, 0)).toThrow(RangeError);
  });

  it('stays quiet while receiving is disabled', async () => {
    const tap = make();
    const receiver = new Receiver(tap);
    address(tap, '10.99.8.1/24');
    await new Promise((resolve) => setTimeout(resolve, 50));
    tap.setReceiveEnabled(false);
    const before = receiver.frames.length;
    for (let i = 0; i < 20; i++) tap.send(batchOf(arpRequest('10.99.8.2', '10.99.8.1')), 0);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(receiver.frames.length).toBe(before);
  });

  it('follows the interface: down, up, removed, back', async () => {
    const name = `tsvtest${process.pid % 10000}`;
    execFileSync('ip', ['tuntap', 'add', 'dev', name, 'mode', 'tap']);
    try {
      const log = new MemoryLog();
      const tap = openTap(native, log, { name, watchMs: 20 });
      taps.push(tap);
      const receiver = new Receiver(tap);
      expect(() => openTap(native, log, { name })).toThrow(/in use by another process/);
      execFileSync('ip', ['link', 'set', name, 'down']);
      await receiver.until(() => !tap.linkUp);
      expect(tap.send(batchOf(Buffer.alloc(60)), 0)).toBe(1);
      execFileSync('ip', ['link', 'set', name, 'up']);
      await receiver.until(() => tap.linkUp);
      execFileSync('ip', ['link', 'del', name]);
      await receiver.until(() => !tap.linkUp);
      expect(tap.send(batchOf(Buffer.alloc(60)), 0)).toBe(1);
      execFileSync('ip', ['tuntap', 'add', 'dev', name, 'mode', 'tap']);
      execFileSync('ip', ['link', 'set', name, 'up']);
      await receiver.until(() => tap.linkUp);
      expect(receiver.links).toEqual([false, true, false, true]);
      expect(log.lines.join()).toContain('is gone');
    } finally {
      spawnSync('ip', ['link', 'del', name]);
    }
  });

  it('explains a missing interface', () => {
    expect(() => openTap(native, silentLog, { name: 'tsvnone0' })).toThrow(
      /there is no interface tsvnone0/,
    );
    expect(() => openTap(native, silentLog, { name: 'lo' })).toThrow(/not a TAP/);
    expect(() => openTap(native, silentLog, { name: 'x'.repeat(40) })).toThrow();
  });
});

function hasPasst(): boolean {
  return spawnSync('passt', ['--version'], { stdio: 'ignore' }).status === 0;
}

describe('user network', () => {
  it('says how to get passt', async () => {
    await expect(openUserNet(silentLog, { program: '/nonexistent/passt' })).rejects.toThrow(
      /not installed/,
    );
    const dir = mkdtempSync(join(tmpdir(), 'tsvmm-user-'));
    const script = join(dir, 'passt');
    writeFileSync(script, '#!/bin/sh\necho "cannot do that" >&2\nexit 3\n', { mode: 0o755 });
    await expect(openUserNet(silentLog, { program: script })).rejects.toThrow(/cannot do that/);
    rmSync(dir, { recursive: true });
  });

  // Another program answers, on a machine that may be busy: once more before it counts.
  it.skipIf(!hasPasst())(
    'gets an ARP answer from passt (package passt)',
    { retry: 2 },
    async () => {
      const user = await openUserNet(silentLog);
      const receiver = new Receiver(user);
      const arp = arpRequest('10.0.2.15', '10.0.2.2');
      try {
        await receiver.until(() => {
          user.send(batchOf(arp), 0);
          return receiver.frames.some((frame) => frame.readUInt16BE(12) === 0x0806);
        });
      } finally {
        await user.close();
      }
    },
  );
});
