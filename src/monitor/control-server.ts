/**
 * The control socket of a running guest: a unix socket on which each line is one request and gets one answer, both
 * JSON objects. `{"command":"status"}` -> `{"ok":true, ...}` or `{"ok":false,"code":..,"message":..}`. Only the
 * socket's owner can connect (mode 0600 in a 0700 directory). Used by `tsvmm status`, `save` and their kin.
 */
import { chmodSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { userInfo } from 'node:os';
import { dirname, join } from 'node:path';
import { codeOf, messageOf, VmmError } from '../base/error.ts';

/** One request's fields. */
export type ControlRequest = Readonly<Record<string, unknown>>;
/** What a command answers with; `ok` is added. */
export type ControlAnswer = Readonly<Record<string, unknown>>;
/** Carries out one command. A throw becomes an answer with `ok: false`. */
export type ControlHandler = (request: ControlRequest) => ControlAnswer | Promise<ControlAnswer>;

/** Longest request line. */
const LINE_MAX_CHARS = 64 * 1024;
/** Longest answer that a client waits for. */
const ANSWER_MAX_CHARS = 2 ** 20;
const CLIENTS_MAX = 16;

/** Where the control socket of the guest `name` is. */
export function controlPath(name: string): string {
  const { uid } = userInfo();
  const runtime =
    process.env.XDG_RUNTIME_DIR ?? (uid === 0 ? '/run' : join('/tmp', `tsvmm-${uid}`));
  return join(runtime, 'tsvmm', `${name}.sock`);
}

/** Whether somebody answers at `path`. */
function isAlive(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path, () => {
      probe.destroy();
      resolve(true);
    });
    probe.on('error', () => resolve(false));
  });
}

/** A listening control socket. */
export class ControlServer {
  readonly path: string;
  readonly #server: Server;
  readonly #clients = new Set<Socket>();

  private constructor(path: string, server: Server) {
    this.path = path;
    this.#server = server;
  }

  /**
   * Listens at `path`; a socket that a dead process left there is replaced.
   * @throws VmmError `CONTROL_SOCKET`
   */
  static async listen(path: string, handler: ControlHandler): Promise<ControlServer> {
    try {
      // Not recursively: on file systems that refuse folders (/proc) Node would try for ever.
      const folder = dirname(path);
      for (const each of [dirname(folder), folder]) {
        try {
          mkdirSync(each, { mode: 0o700 });
        } catch (error) {
          if (!existsSync(each)) throw error;
        }
      }
    } catch (error) {
      throw new VmmError(
        'CONTROL_SOCKET',
        `the control socket '${path}' cannot be made: ${messageOf(error)}`,
      );
    }
    if (await isAlive(path)) {
      throw new VmmError(
        'CONTROL_SOCKET',
        `another guest answers at the control socket '${path}'`,
        {
          hint: 'Give this guest another --name.',
        },
      );
    }
    rmSync(path, { force: true });
    const server = createServer();
    const control = new ControlServer(path, server);
    server.on('connection', (socket) => control.#serve(socket, handler));
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => {
        const why = codeOf(error) === 'EINVAL' ? 'the path is too long' : messageOf(error);
        reject(
          new VmmError('CONTROL_SOCKET', `the control socket '${path}' cannot be made: ${why}`),
        );
      });
      server.listen(path, resolve);
    });
    chmodSync(path, 0o600);
    server.unref();
    return control;
  }

  #serve(socket: Socket, handler: ControlHandler): void {
    if (this.#clients.size >= CLIENTS_MAX) {
      socket.destroy();
      return;
    }
    this.#clients.add(socket);
    socket.unref();
    let buffered = '';
    socket.setEncoding('utf8');
    socket.on('close', () => this.#clients.delete(socket));
    socket.on('error', () => socket.destroy());
    socket.on('data', (text: string) => {
      const lines = (buffered + text).split('\n');
      buffered = lines.pop()!;
      if (buffered.length > LINE_MAX_CHARS || lines.some((line) => line.length > LINE_MAX_CHARS)) {
        socket.destroy();
        return;
      }
      // Nothing more is read before these are answered and the answers taken: a client cannot fill memory with either.
      socket.pause();
      void answerAll(socket, lines, handler).then(() => socket.resume());
    });
  }

  /** Stops listening and removes the socket; answers under way are still sent. */
  close(): void {
    this.#server.close();
    for (const client of this.#clients) client.end();
    rmSync(this.path, { force: true });
  }
}

/** Answers `lines` in their order, as fast as the client reads. */
async function answerAll(
  socket: Socket,
  lines: readonly string[],
  handler: ControlHandler,
): Promise<void> {
  for (const line of lines) {
    if (line.trim() === '') continue;
    const answer = await answerTo(line, handler);
    if (!socket.writable) return;
    if (socket.write(`${JSON.stringify(answer)}\n`)) continue;
    await new Promise<void>((resolve) => {
      const go = (): void => {
        socket.off('drain', go);
        socket.off('close', go);
        resolve();
      };
      socket.once('drain', go);
      socket.once('close', go);
    });
  }
}

async function answerTo(line: string, handler: ControlHandler): Promise<ControlAnswer> {
  try {
    const request: unknown = JSON.parse(line);
    if (typeof request !== 'object' || request === null || Array.isArray(request)) {
      throw new VmmError('CONTROL_REQUEST', 'a request is a JSON object on one line');
    }
    return { ok: true, ...(await handler(request as ControlRequest)) };
  } catch (error) {
    if (error instanceof SyntaxError) {
      return { ok: false, code: 'CONTROL_REQUEST', message: 'the request is not JSON' };
    }
    const hint = error instanceof VmmError ? error.hint : undefined;
    return {
      ok: false,
      code: codeOf(error) ?? 'INTERNAL',
      message: messageOf(error),
      ...(hint && { hint }),
    };
  }
}

/**
 * Sends one request to a control socket and waits for the answer.
 * @throws VmmError `CONTROL_SOCKET` when nobody answers, or the guest's own error
 */
export function askControl(path: string, request: ControlRequest): Promise<ControlAnswer> {
  return new Promise((resolve, reject) => {
    let buffered = '';
    const socket = connect(path, () => socket.write(`${JSON.stringify(request)}\n`));
    const gone = (why: string): void => {
      reject(
        new VmmError('CONTROL_SOCKET', `no guest answers at '${path}': ${why}`, {
          hint: 'Give the --name that the guest was started with, or the path by --control.',
        }),
      );
    };
    socket.setEncoding('utf8');
    socket.on('error', (error) =>
      gone(codeOf(error) === 'ENOENT' ? 'there is no such socket' : messageOf(error)),
    );
    socket.on('close', () => gone('it closed the connection'));
    socket.on('data', (text: string) => {
      buffered += text;
      const end = buffered.indexOf('\n');
      const answer = end < 0 ? undefined : answerIn(buffered.slice(0, end));
      if (end < 0 && buffered.length <= ANSWER_MAX_CHARS) return;
      if (answer === undefined) gone('what answers is no guest');
      else if (answer.ok === true) resolve(answer);
      else {
        const hint = typeof answer.hint === 'string' ? { hint: answer.hint } : {};
        reject(new VmmError(String(answer.code), String(answer.message), hint));
      }
      socket.destroy();
    });
  });
}

/** The answer in a line, or undefined when it is none. */
function answerIn(line: string): ControlAnswer | undefined {
  try {
    const answer: unknown = JSON.parse(line);
    const isObject = typeof answer === 'object' && answer !== null && 'ok' in answer;
    return isObject ? (answer as ControlAnswer) : undefined;
  } catch {
    return undefined;
  }
}
