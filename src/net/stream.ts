/**
 * Ethernet over a stream socket: each frame behind its length (4 bytes, big-endian), the protocol that passt and other
 * machine monitors' `stream` networks speak. Connects (and connects again when the other side goes away), or listens
 * for one peer at a time. No offloads: the protocol has no place for them.
 *
 * Bounded both ways: 256 KiB towards the peer (then `send` takes less), 512 KiB from it (then the socket is paused).
 */
import { rmSync, statSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { codeOf, messageOf, VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import type { FrameBatch, NetBackend, NetHandler, NetInfo } from './backend.ts';
import { FrameQueue } from './frame-queue.ts';
import { Readiness } from './readiness.ts';

/** Where the peer is: a unix socket, or a TCP address. */
export type StreamAddress =
  | { readonly path: string }
  | { readonly host: string; readonly port: number };

export interface StreamOptions {
  readonly address: StreamAddress;
  /** `connect` by default. */
  readonly mode?: 'connect' | 'listen';
  /** Pause between two attempts to connect. Default 1000. */
  readonly retryMs?: number;
  /** Begins a connection. Default: node's. */
  readonly dial?: (target: StreamAddress) => Socket;
}

const SEND_BYTES = 256 * 1024;
const RECEIVE_BYTES = 512 * 1024;
/** The socket is paused above this fill; one chunk more (64 KiB at most) still fits. */
const RECEIVE_HIGH_BYTES = 256 * 1024;

function textOf(address: StreamAddress): string {
  return 'path' in address ? address.path : `${address.host}:${address.port}`;
}

/** Connects or listens; VmmError NET_STREAM when that fails now (later failures are the link going down). */
export async function openStream(log: Logger, options: StreamOptions): Promise<StreamBackend> {
  const backend = new StreamBackend(log, options);
  try {
    await backend.open();
  } catch (error) {
    await backend.close();
    const where = textOf(options.address);
    const listens = options.mode === 'listen';
    throw new VmmError(
      'NET_STREAM',
      `cannot ${listens ? 'listen on' : 'connect to'} ${where}: ${messageOf(error)}`,
      {
        hint: listens
          ? 'Is another program using that address? Remove a stale socket file if not.'
          : 'Start the other side first; it must listen on that address.',
        cause: error,
      },
    );
  }
  return backend;
}

export class StreamBackend implements NetBackend {
  readonly info: NetInfo;
  linkUp = false;
  readonly #log: Logger;
  readonly #options: StreamOptions;
  readonly #readiness = new Readiness(() => this.#received.hasFrame());
  readonly #received = new FrameQueue(RECEIVE_BYTES);
  /** One buffer is filled while the other is being written. */
  #filling = new FrameQueue(SEND_BYTES);
  #writing = new FrameQueue(SEND_BYTES);
  #busy = false;
  #blocked = false;
  #socket: Socket | undefined;
  #server: Server | undefined;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(log: Logger, options: StreamOptions) {
    this.#log = log;
    this.#options = options;
    const where = textOf(options.address);
    this.info = { name: `stream ${where}`, sendOffloads: 0, receiveOffloads: 0, mtu: undefined };
  }

  /** The first connection, or the start of listening. See {@link openStream}. */
  async open(): Promise<void> {
    if (this.#options.mode === 'listen') await this.#listen();
    else await this.#connect();
  }

  /** The TCP port that is listened on (of interest when 0 was asked for). */
  get port(): number | undefined {
    const address = this.#server?.address();
    return typeof address === 'object' && address !== null ? address.port : undefined;
  }

  setHandler(handler: NetHandler): void {
    this.#readiness.handler = handler;
    this.#readiness.check();
  }

  send(batch: FrameBatch, from: number): number {
    const count = batch.count - from;
    if (this.#socket === undefined) return count;
    const taken = this.#filling.appendFrames(batch, from);
    if (taken < count) this.#blocked = true;
    this.#flush();
    return taken;
  }

  receive(batch: FrameBatch, maxFrames: number): number {
    const added = this.#received.takeFrames(batch, maxFrames);
    if (added < 0) {
      this.#log.warn(`${this.info.name}: the peer does not send frames; connection closed`);
      this.#received.clear();
      this.#socket?.destroy();
      return 0;
    }
    if (this.#received.length <= RECEIVE_HIGH_BYTES) this.#socket?.resume();
    return added;
  }

  setReceiveEnabled(enabled: boolean): void {
    this.#readiness.enabled = enabled;
    this.#readiness.check();
  }

  setReceiveOffloads(): void {}

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#readiness.close();
    this.#socket?.destroy();
    const server = this.#server;
    if (server !== undefined) await new Promise<void>((resolve) => server.close(() => resolve()));
  }

  async #listen(): Promise<void> {
    const { address } = this.#options;
    if ('path' in address) await removeStaleSocket(address.path);
    const server = createServer((socket) => {
      if (this.#socket !== undefined || this.#closed) {
        this.#log.warn(`${this.info.name}: a second peer was refused`);
        socket.destroy();
        return;
      }
      this.#adopt(socket);
    });
    this.#server = server;
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(address, () => {
        server.off('error', reject);
        server.on('error', (error) => this.#log.warn(`${this.info.name}: ${error.message}`));
        resolve();
      });
    });
  }

  #connect(): Promise<void> {
    return new Promise((resolve, reject) => {
      const { address, dial = createConnection } = this.#options;
      const socket = dial(address);
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        if (this.#closed) socket.destroy();
        else this.#adopt(socket);
        resolve();
      });
    });
  }

  #adopt(socket: Socket): void {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.#data(chunk));
    socket.on('error', (error) => {
      const quiet = codeOf(error) === 'ECONNRESET' || codeOf(error) === 'EPIPE';
      if (!quiet) this.#log.warn(`${this.info.name}: ${error.message}`);
    });
    socket.on('close', () => this.#disconnected(socket));
    this.#setLink(true);
  }

  #disconnected(socket: Socket): void {
    if (this.#socket !== socket) return;
    this.#socket = undefined;
    // Half a frame is worth nothing on the next connection.
    this.#received.clear();
    this.#filling.clear();
    this.#writing.clear();
    this.#busy = false;
    if (this.#closed) return;
    this.#setLink(false);
    this.#unblock();
    if (this.#options.mode !== 'listen') this.#scheduleRetry();
  }

  #scheduleRetry(): void {
    this.#retry = setTimeout(() => {
      this.#connect().catch(() => {
        if (!this.#closed) this.#scheduleRetry();
      });
    }, this.#options.retryMs ?? 1000);
    this.#retry.unref();
  }

  #setLink(up: boolean): void {
    if (this.linkUp === up) return;
    this.linkUp = up;
    this.#log.info(`${this.info.name}: ${up ? 'connected' : 'disconnected'}`);
    this.#readiness.handler?.linkChanged(up);
  }

  #unblock(): void {
    if (!this.#blocked) return;
    this.#blocked = false;
    this.#readiness.handler?.writable();
  }

  #data(chunk: Buffer): void {
    if (!this.#received.append(chunk)) {
      // Cannot happen while chunks are 64 KiB at most; if it does, a gap would be read as a length.
      this.#log.warn(
        `${this.info.name}: more than ${RECEIVE_BYTES} bytes at once; connection closed`,
      );
      this.#socket?.destroy();
      return;
    }
    if (this.#received.length > RECEIVE_HIGH_BYTES) this.#socket?.pause();
    this.#readiness.check();
  }

  #flush(): void {
    const socket = this.#socket;
    if (this.#busy || socket === undefined || this.#filling.length === 0) return;
    const full = this.#filling;
    this.#filling = this.#writing;
    this.#writing = full;
    this.#busy = true;
    socket.write(full.bytes.subarray(full.start, full.end), () => {
      if (this.#socket !== socket) return;
      full.clear();
      this.#busy = false;
      this.#flush();
      this.#unblock();
    });
  }
}

/**
 * Removes the socket file that a crashed process left behind; one that somebody answers on stays, and `listen` fails.
 */
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
