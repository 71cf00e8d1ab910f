import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { VmmError } from '../base/error.ts';
import { askControl, ControlServer } from './control-server.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'tsvmm-control-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('control socket', () => {
  it('answers requests, passes errors on with their code, and goes with close', async () => {
    const path = join(folder, 'sub', 'a.sock');
    const server = await ControlServer.listen(path, (request) => {
      if (request.command === 'fail') throw new VmmError('NO', 'it failed', { hint: 'do not' });
      return { echo: request.command };
    });
    await expect(askControl(path, { command: 'status' })).resolves.toEqual({
      ok: true,
      echo: 'status',
    });
    await expect(askControl(path, { command: 'fail' })).rejects.toMatchObject({
      code: 'NO',
      hint: 'do not',
    });
    await expect(ControlServer.listen(path, () => ({}))).rejects.toMatchObject({
      code: 'CONTROL_SOCKET',
    });
    server.close();
    expect(existsSync(path)).toBe(false);
    await expect(askControl(path, {})).rejects.toThrow(/no such socket/);
  });

  it('replaces what a dead process left, and survives garbage', async () => {
    const path = join(folder, 'b.sock');
    writeFileSync(path, '');
    const server = await ControlServer.listen(path, () => ({}));
    const answers = await new Promise<string>((resolve) => {
      let text = '';
      const socket = connect(path, () => socket.write('not json\n[1]\n\n{"command":1}\n'));
      socket.setEncoding('utf8');
      socket.on('data', (chunk: string) => {
        text += chunk;
        if (text.split('\n').length === 4) {
          socket.destroy();
          resolve(text);
        }
      });
    });
    const [first, second, third] = answers.split('\n');
    expect(first).toMatch(/not JSON/);
    expect(second).toMatch(/JSON object/);
    expect(JSON.parse(third!)).toEqual({ ok: true });
    const closed = await new Promise<boolean>((resolve) => {
      const flood = connect(path, () => flood.write('x'.repeat(100_000)));
      flood.on('error', () => {});
      flood.on('close', () => resolve(true));
    });
    expect(closed).toBe(true);
    server.close();
  });

  it('takes many short lines at once, and refuses one that is too long among them', async () => {
    const path = join(folder, 'c.sock');
    const server = await ControlServer.listen(path, () => ({}));
    const ask = (text: string, answers: number): Promise<number> =>
      new Promise((resolve) => {
        let got = 0;
        const socket = connect(path, () => socket.write(text));
        socket.on('data', (chunk) => {
          got += chunk.filter((byte) => byte === 10).length;
          if (got >= answers) socket.destroy();
        });
        socket.on('error', () => {});
        socket.on('close', () => resolve(got));
      });
    // More than the longest line in all.
    expect(await ask('{"command":"status"}\n'.repeat(5000), 5000)).toBe(5000);
    expect(await ask(`{}\n${'x'.repeat(70_000)}\n`, 2)).toBeLessThan(2);
    server.close();
  });

  it('reads no more than it can answer to a client that does not read', async () => {
    const path = join(folder, 'd.sock');
    let asked = 0;
    const server = await ControlServer.listen(path, () => {
      asked++;
      return { text: 'x'.repeat(1000) };
    });
    const socket = connect(path);
    socket.pause();
    socket.on('error', () => {});
    for (let i = 0; i < 20; i++) socket.write('{"command":"status"}\n'.repeat(2000));
    let before = -1;
    while (before !== asked) {
      before = asked;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(asked).toBeGreaterThan(0);
    // A buffer of the socket, and then it waits.
    expect(asked).toBeLessThan(5000);
    socket.destroy();
    server.close();
  });

  it('says so when something else answers', async () => {
    for (const said of ['hello\n', '[1]\n', 'null\n', '{}\n', 'x'.repeat(2 ** 20 + 1)]) {
      const path = join(folder, 'e.sock');
      const server = createServer((socket) => {
        socket.on('error', () => {});
        socket.write(said);
      });
      await new Promise<void>((resolve) => server.listen(path, resolve));
      await expect(askControl(path, {})).rejects.toMatchObject({
        code: 'CONTROL_SOCKET',
        message: expect.stringMatching(/no guest/),
      });
      server.close();
    }
  });
});
