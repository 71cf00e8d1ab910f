/**
 * A console on a unix socket: listens, serves one client at a time (`socat - UNIX-CONNECT:path`). While nobody is
 * connected, output is dropped, as on an open line.
 */
import { rmSync, statSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { codeOf, messageOf, VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import type { ConsoleBackend, ConsoleHandler } from './backend.ts';
import { ConsoleInput } from './input.ts';
import { ConsoleOutput } from './output.ts';

/** Starts listening; VmmError CONSOLE_SOCKET when the address cannot be had. */
export async function openUnixConsole(log: Logger, path: string): Promise<UnixConsole> {
  const console = new UnixConsole(log, path);
  try {
    await console.open();
  } catch (error) {
    throw new VmmError('CONSOLE_SOCKET', `cannot listen on ${path}: ${messageOf(error)}`, {
      hint:
        codeOf(error) === 'EADDRINUSE'
          ? 'Another program listens there; choose another path.'
          : 'Check that the folder exists and can be written, and that the path is at most 107 bytes.',
      cause: error,
    });
  }
  return console;
}

export class UnixConsole implements ConsoleBackend {
  readonly name: string;
  readonly #path: string;
  readonly #server: Server;
  readonly #input = new ConsoleInput((on) => {
    if (on) this.#client?.resume();
    else this.#client?.pause();
  });
  readonly #output = new ConsoleOutput((bytes, start, end) => this.#send(bytes, start, end));
  #client: Socket | undefined;
  #writing = false;
  #closed = false;

  constructor(log: Logger, path: string) {
    this.name = `unix ${path}`;
    this.#path = path;
    this.#server = createServer((socket) => {
      if (this.#client !== undefined || this.#closed) {
        socket.end('another client is connected to this console\r\n');
        return;
      }
      this.#client = socket;
      socket.on('data', (bytes) => this.#input.push(bytes));
      socket.on('error', (error) => log.debug(`${this.name}: ${error.message}`));
      socket.on('close', () => {
        this.#client = undefined;
        this.#writing = false;
        this.#output.clear();
      });
    });
  }

  async open(): Promise<void> {
    await removeStaleSocket(this.#path);
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen({ path: this.#path }, () => {
        this.#server.off('error', reject);
        resolve();
      });
    });
  }

  setHandler(handler: ConsoleHandler): void {
    this.#output.handler = handler;
    this.#input.setHandler(handler);
  }

  write(byte: number): boolean {
    return this.#output.write(byte);
  }

  read(): number {
    return this.#input.read();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (!this.#writing) this.#output.flush();
    const client = this.#client;
    if (client !== undefined) {
      const late = setTimeout(() => client.destroy(), 1000);
      await new Promise<void>((resolve) => {
        client.once('close', () => resolve());
        client.end();
        client.resume();
      });
      clearTimeout(late);
    }
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #send(bytes: Uint8Array, start: number, end: number): number {
    const client = this.#client;
    if (client === undefined) return end - start;
    if (this.#writing) return 0;
    this.#writing = true;
    // A copy: the buffer is compacted while the socket still has it.
    client.write(Buffer.from(bytes.subarray(start, end)), () => {
      if (this.#client !== client) return;
      this.#writing = false;
      this.#output.ready();
    });
    return end - start;
  }
}

/** Removes the socket file of a crashed process; one that somebody answers on stays, and `listen` fails. */
async function removeStaleSocket(path: string): Promise<void> {
  if (statSync(path, { throwIfNoEntry: false })?.isSocket() !== true) return;
  const refused = await new Promise<boolean>((resolve) => {
    const probe = createConnection({ path });
    probe.once('connect', () => {
      probe.destroy();
      resolve(false);
    });
    probe.once('error', (error) => resolve(codeOf(error) === 'ECONNREFUSED'));
  });
  if (refused) rmSync(path, { force: true });
}
