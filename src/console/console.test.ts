import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, Writable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MemoryLog, silentLog } from '../base/log.ts';
import { loadNativeIo } from '../kvm/native-io.ts';
import type { ConsoleBackend } from './backend.ts';
import { FileConsole, openFileConsole } from './file.ts';
import { MemoryConsole, NullConsole } from './memory.ts';
import { openPtyConsole } from './pty.ts';
import { StdioConsole, type StdioStreams } from './stdio.ts';
import { openUnixConsole } from './unix.ts';

/** A device: writes as far as it is let, reads all there is. */
class Line {
  readonly input: number[] = [];
  writableCount = 0;
  readonly #backend: ConsoleBackend;

  constructor(backend: ConsoleBackend) {
    this.#backend = backend;
    backend.setHandler(this);
  }
  readable(): void {
    for (let byte = this.#backend.read(); byte >= 0; byte = this.#backend.read())
      this.input.push(byte);
  }
  writable(): void {
    this.writableCount++;
  }
  /** How many bytes were taken. */
  write(text: string | Uint8Array): number {
    let count = 0;
    for (const byte of typeof text === 'string' ? Buffer.from(text) : text) {
      if (!this.#backend.write(byte)) break;
      count++;
    }
    return count;
  }
  get text(): string {
    return Buffer.from(this.input).toString('utf8');
  }
}

async function until(condition: () => boolean, what: string): Promise<void> {
  const end = performance.now() + 5000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`timed out: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'tsvmm-console-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

describe('memory and null console', () => {
  it('keeps output, takes typed input, holds back at its limit', () => {
    const memory = new MemoryConsole(4, 3);
    const line = new Line(memory);
    expect(line.write('abcdef')).toBe(4);
    expect(memory.drain()).toBe('abcd');
    expect(line.writableCount).toBe(1);
    expect(memory.type('xyz!')).toBe(3);
    expect(line.text).toBe('xyz');
    expect(new NullConsole().write()).toBe(true);
    expect(new NullConsole().read()).toBe(-1);
  });
});

describe('file console', () => {
  it('writes everything, in order, by the end of a turn and by close', async () => {
    const path = join(dir, 'serial.log');
    const file = openFileConsole(silentLog, path);
    const line = new Line(file);
    const text = 'line of text\r\n'.repeat(5000);
    expect(line.write(text)).toBe(text.length);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(readFileSync(path, 'utf8')).toBe(text);
    line.write('last');
    await file.close();
    expect(readFileSync(path, 'utf8')).toBe(`${text}last`);
  });

  it('says once that the disk is full, and never stops the guest', async () => {
    const log = new MemoryLog();
    const file = new FileConsole(log, '/dev/full');
    const line = new Line(file);
    expect(line.write(new Uint8Array(100_000))).toBe(100_000);
    await file.close();
    expect(log.lines.filter((text) => text.includes('ENOSPC')).length).toBe(1);
    expect(() => openFileConsole(silentLog, join(dir, 'no', 'file'))).toThrow(
      /cannot write console file/,
    );
  });
});

describe('unix console', () => {
  it('serves one client at a time, and drops output while there is none', async () => {
    const path = join(dir, 'c.sock');
    const unix = await openUnixConsole(silentLog, path);
    const line = new Line(unix);
    expect(line.write(new Uint8Array(100_000))).toBe(100_000);
    await new Promise((resolve) => setTimeout(resolve, 10));
    const client = createConnection(path);
    let received = '';
    client.on('data', (bytes) => {
      received += bytes.toString();
    });
    client.write('root\r');
    await until(() => line.text === 'root\r', 'input');
    line.write('# ');
    await until(() => received.length > 0, 'output');
    expect(received).toBe('# ');
    const second = createConnection(path);
    let refusal = '';
    second.on('data', (bytes) => {
      refusal += bytes.toString();
    });
    await new Promise((resolve) => second.on('close', resolve));
    expect(refusal).toContain('another client');
    client.destroy();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(line.write(new Uint8Array(50_000))).toBe(50_000);
    await expect(openUnixConsole(silentLog, path)).rejects.toThrow(/cannot listen/);
    await unix.close();
    const again = await openUnixConsole(silentLog, path);
    await again.close();
  });

  it('holds the guest back while the client does not read, and loses nothing', async () => {
    const path = join(dir, 'c.sock');
    const unix = await openUnixConsole(silentLog, path);
    const line = new Line(unix);
    const client = createConnection(path);
    await new Promise((resolve) => client.once('connect', resolve));
    client.pause();
    await new Promise((resolve) => setTimeout(resolve, 10));
    const bytes = Buffer.alloc(4 << 20, 'x');
    let sent = 0;
    for (let turn = 0; turn < 100; turn++) {
      sent += line.write(bytes.subarray(sent, sent + 50_000));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(line.write('y')).toBe(0);
    expect(sent).toBeLessThan(bytes.length);
    let received = 0;
    client.on('data', (chunk) => {
      received += chunk.length;
    });
    client.resume();
    await until(() => received === sent, 'all bytes');
    expect(line.writableCount).toBeGreaterThan(0);
    client.destroy();
    await unix.close();
  });

  it('holds the client back while the guest does not read', async () => {
    const path = join(dir, 'c.sock');
    const unix = await openUnixConsole(silentLog, path);
    let readable = 0;
    unix.setHandler({ readable: () => readable++, writable() {} });
    const client = createConnection(path);
    const bytes = Buffer.alloc(8 << 20, 'z');
    client.write(bytes);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(client.writableLength).toBeGreaterThan(0);
    expect(readable).toBe(1);
    let count = 0;
    await until(() => {
      for (let byte = unix.read(); byte >= 0; byte = unix.read()) count++;
      return count === bytes.length;
    }, 'all input');
    client.destroy();
    await unix.close();
  });
});

describe('pty console', () => {
  const native = loadNativeIo();

  it('is a terminal that can be opened, closed and opened again', async () => {
    const pty = openPtyConsole(native);
    const line = new Line(pty);
    line.write('login: ');
    for (const word of ['one', 'two']) {
      const fd = openSync(pty.path, 'r+');
      writeSync(fd, `${word}\r`);
      await until(() => line.text.endsWith(`${word}\r`), 'input');
      line.write(`\n${word}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
      const buffer = Buffer.alloc(100);
      const n = readSync(fd, buffer);
      expect(buffer.toString('utf8', 0, n)).toContain(`\n${word}`);
      closeSync(fd);
    }
    await pty.close();
  });

  it('drops output that nobody reads after a while, instead of stopping the guest', async () => {
    const pty = openPtyConsole(native);
    const line = new Line(pty);
    let sent = 0;
    await until(() => {
      sent += line.write(new Uint8Array(20_000).fill(46));
      return sent > 200_000;
    }, 'output going on');
    expect(line.writableCount).toBeGreaterThan(0);
    await pty.close();
  });
});

describe('stdio console', () => {
  const fake = (tty: boolean) => {
    const input = new PassThrough();
    const modes: boolean[] = [];
    let written = '';
    const output = new Writable({
      write(chunk, _encoding, done) {
        written += chunk.toString();
        done();
      },
    });
    const streams = {
      input: Object.assign(
        input,
        tty ? { isTTY: true, setRawMode: (on: boolean) => modes.push(on) } : {},
      ),
      output,
    } as unknown as StdioStreams;
    return { streams, input, modes, text: () => written };
  };

  it('passes every key in raw mode, and keeps the escape', async () => {
    const { streams, input, modes, text } = fake(true);
    let quits = 0;
    const stdio = new StdioConsole({ streams, onQuit: () => quits++ });
    const line = new Line(stdio);
    expect(modes).toEqual([true]);
    input.write('a\x03\x01\x01b\x01');
    input.write('hc');
    await until(() => line.text === 'a\x03\x01bc', 'keys');
    await until(() => text().includes('Ctrl-A x: quit'), 'help');
    input.write('\x01x');
    await until(() => quits === 1, 'quit');
    line.write('bye');
    await stdio.close();
    expect(text()).toContain('bye');
    expect(modes).toEqual([true, false]);
    await stdio.close();
    expect(modes).toEqual([true, false]);
  });

  it('leaves a pipe alone', async () => {
    const { streams, input } = fake(false);
    const stdio = new StdioConsole({ streams, onQuit: () => expect.unreachable() });
    const line = new Line(stdio);
    input.write('\x01x');
    await until(() => line.text === '\x01x', 'bytes');
    await stdio.close();
  });

  it('restores the terminal when the process exits without closing it', async () => {
    // Node emits `exit` after process.exit() and after an uncaught exception alike.
    const before = new Set(process.listeners('exit'));
    const { streams, modes } = fake(true);
    const stdio = new StdioConsole({ streams, onQuit() {} });
    const added = process.listeners('exit').filter((listener) => !before.has(listener));
    expect(added.length).toBe(1);
    added[0]!(0);
    expect(modes).toEqual([true, false]);
    await stdio.close();
    expect(process.listeners('exit').length).toBe(before.size);
  });

  it('survives a reader that goes away', async () => {
    const { streams } = fake(false);
    const stdio = new StdioConsole({ streams, onQuit() {} });
    const line = new Line(stdio);
    streams.output.emit('error', Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }));
    for (let i = 0; i < 10; i++) {
      expect(line.write(new Uint8Array(10_000))).toBe(10_000);
      await new Promise((resolve) => setImmediate(resolve));
    }
    await stdio.close();
  });
});
