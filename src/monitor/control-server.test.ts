import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
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
});
