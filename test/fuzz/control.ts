/**
 * The fuzzer of the control socket, from both ends. A client sends lines of JSON and of anything else, in any splits, and
 * hangs up when it likes: every line gets one answer, in order, lines beyond the limit end the connection, and another
 * client is served as if nothing had been. A client that asks is answered by something that is no guest: it ends with an
 * error in one line.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { assert } from '../../src/base/assert.ts';
import { VmmError } from '../../src/base/error.ts';
import { Prng } from '../../src/base/prng.ts';
import { shown } from '../../src/base/text.ts';
import {
  askControl,
  type ControlAnswer,
  type ControlHandler,
  ControlServer,
} from '../../src/monitor/control-server.ts';
import type { Coverage } from './coverage.ts';
import { within } from './patience.ts';
import { mutated, turns } from './peer-socket.ts';

const LINE_MAX = 64 * 1024;

const handler: ControlHandler = (request) => {
  switch (request.command) {
    case 'status':
      return { state: 'running', echo: request.value };
    case 'late':
      return turns(3).then(() => ({ echo: request.value }));
    case 'refuse':
      throw new VmmError('NO', 'not now', { hint: 'Later.' });
    case 'throw':
      throw new TypeError('a mistake of ours');
    default:
      throw new VmmError(
        'CONTROL_COMMAND',
        `there is no command ${shown(String(request.command))}`,
      );
  }
};

const JSON_PIECES = [
  '{"command":"status"}',
  '{"command":"late","value":[1,{"a":null}]}',
  '{"command":"refuse"}',
  '{"command":"throw"}',
  '{"command":{"__proto__":1}}',
  '{"__proto__":{"command":"status"}}',
  '{"command":"\\u0000\\ud800"}',
  '[]',
  'null',
  '"status"',
  '1e999',
  '',
  '   ',
  '{',
  '}'.repeat(100),
  '['.repeat(5000),
  `{"command":"status","value":"${'x'.repeat(3000)}"}`,
];

function anyLine(random: Prng): string {
  const piece = random.pick(JSON_PIECES);
  if (random.chance(0.7)) return piece;
  if (random.chance(0.05)) return 'x'.repeat(random.pick([LINE_MAX, LINE_MAX + 1, 3 * LINE_MAX]));
  const bytes = Buffer.from(mutated(random, Buffer.from(piece)));
  // One line stays one line.
  return bytes.toString('utf8').replaceAll('\n', ' ').slice(0, 30_000);
}

/** A mistake made on purpose: the server answers some lines not at all, or in no order. */
export type ControlPlant = 'forgets an answer';

/** Sends `text` in pieces; what came back until `lines` answers were there or the server hung up. */
function converse(random: Prng, path: string, text: string, lines: number): Promise<string[]> {
  return new Promise((resolve) => {
    let said = '';
    const socket = connect(path);
    const done = (): void => {
      const answers = said.split('\n');
      if (answers.length > lines) socket.destroy();
    };
    socket.setEncoding('utf8');
    socket.on('error', () => {});
    socket.on('data', (chunk: string) => {
      said += chunk;
      done();
    });
    socket.on('close', () => resolve(said.split('\n').slice(0, -1)));
    const bytes = Buffer.from(text);
    for (let at = 0; at < bytes.length; ) {
      const end = at + random.between(1, random.pick([10, 1000, 100_000]));
      socket.write(bytes.subarray(at, end));
      at = end;
    }
    // Nothing that asks for an answer.
    if (lines === 0) socket.end();
  });
}

async function client(
  random: Prng,
  path: string,
  seen: Coverage,
  plant: ControlPlant | undefined,
): Promise<void> {
  const lines = Array.from({ length: random.below(20) }, () => anyLine(random));
  const asked = lines.filter((line) => line.trim() !== '');
  const tooLong = asked.some((line) => line.length > LINE_MAX);
  const text = `${lines.join('\n')}\n`;
  if (random.chance(0.1)) {
    seen.hit('hung up');
    const socket: Socket = connect(path, () => {
      socket.write(text);
      setImmediate(() => socket.destroy());
    });
    socket.on('error', () => {});
    await new Promise((resolve) => socket.once('close', resolve));
    return;
  }
  const answers = await within(converse(random, path, text, asked.length), 'an answer');
  if (plant === 'forgets an answer' && answers.length > 3) answers.splice(2, 1);
  if (tooLong) {
    seen.hit('line too long');
    assert(answers.length <= asked.length, 'no more answers than lines');
    return;
  }
  assert(answers.length === asked.length, `${answers.length} answers to ${asked.length} lines`);
  for (const [i, text] of answers.entries()) {
    const answer = JSON.parse(text) as ControlAnswer;
    const { ok, code, message } = answer;
    seen.hit(ok === true ? 'ok' : String(code));
    if (ok === true) continue;
    assert(ok === false && typeof code === 'string', `answer ${i}: ${text}`);
    assert(typeof message === 'string' && !message.includes('\n'), `answer ${i}: ${text}`);
  }
}

const STRANGERS = [
  'hello\n',
  '[1]\n',
  'null\n',
  '{}\n',
  '{"ok":false}\n',
  '{"ok":true,"state":"running"}\n',
  '{"ok":false,"code":7,"message":{"a":1}}\n',
  'x'.repeat(2 ** 20 + 10),
  '',
];

/** Something else answers a client that asks. */
async function stranger(random: Prng, path: string, seen: Coverage): Promise<void> {
  const said = mutatedText(random, random.pick(STRANGERS));
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.resume();
    socket.end(said);
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  try {
    const answer = await within(askControl(path, { command: 'status' }), 'a question');
    assert(answer.ok === true, 'a good answer');
    seen.hit('stranger believed');
  } catch (error) {
    if (!(error instanceof VmmError)) throw error;
    seen.hit(error.code === 'CONTROL_SOCKET' ? 'stranger recognised' : 'stranger refuses');
  } finally {
    await new Promise((resolve) => server.close(resolve));
  }
}

function mutatedText(random: Prng, text: string): Uint8Array {
  const bytes = Buffer.from(text);
  return random.chance(0.5) ? bytes : mutated(random, bytes);
}

/** Runs `rounds` connections from `seed`. */
export async function fuzzControl(
  seed: number,
  rounds: number,
  seen: Coverage,
  plant?: ControlPlant,
): Promise<void> {
  const random = new Prng(seed);
  const folder = mkdtempSync(join(tmpdir(), 'tsvmm-fuzz-'));
  const path = join(folder, 'control', 'sock');
  const server = await ControlServer.listen(path, handler);
  const alive = setInterval(() => {}, 1000);
  try {
    for (let round = 0; round < rounds; round++) {
      if (random.chance(0.2)) await stranger(random, join(folder, 'stranger'), seen);
      else await client(random, path, seen, plant);
      seen.cases++;
    }
    const answer = await within(askControl(path, { command: 'status' }), 'a question');
    assert(answer.state === 'running', 'another client is served');
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new Error(`seed ${seed}: ${why}`, { cause: error });
  } finally {
    clearInterval(alive);
    server.close();
    rmSync(folder, { recursive: true, force: true });
  }
}
