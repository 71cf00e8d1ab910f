/**
 * The connection between primary and standby: TCP without delay, or TLS 1.3 with a pre-shared key. A dialler tries when
 * it is told to; a listener serves one peer at a time and lets a newer connection replace the older. Knows bytes only; what they mean is the protocol's business. Without a key only loopback is used.
 */

import { createRequire } from 'node:module';
import {
  connect as connectTcp,
  createServer as createTcpServer,
  isIP,
  type Server,
  type Socket,
} from 'node:net';
import type { TLSSocket } from 'node:tls';
import { messageOf, VmmError } from '../../base/error.ts';
import type { Logger } from '../../base/log.ts';

/** Who hears of a link. Called from the event loop, never inside a call of the link. */
export interface LinkHandler {
  /** A connection stands, authenticated where there is a key. */
  connected(peer: string): void;
  /** Bytes from the peer, lent for the call. */
  received(bytes: Uint8Array): void;
  /** What was refused by {@link Link.congested} has drained. */
  drained(): void;
  /** The connection is gone. Only a hint: the peer may be alive (R3). */
  disconnected(why: string): void;
}

/** One end of the connection, whichever side dialled. */
export interface Link {
  /** Whether there is a connection now. */
  readonly up: boolean;
  /** Bytes written and not yet taken by the kernel. */
  readonly queuedBytes: number;
  /** Whether the writer should wait for `drained`. */
  readonly congested: boolean;
  /** Writes `parts` as one piece. They must not change until the kernel has them: see {@link onFlushed}. */
  send(parts: readonly Uint8Array[], onFlushed?: () => void): void;
  /** Stops reading from the peer (it will have to wait), or goes on. */
  setReading(on: boolean): void;
  /** Drops the current connection. */
  drop(): void;
  /** Ends for good. */
  close(): void;
}

/** Where to listen or dial, and the key if there is one. */
export interface LinkOptions {
  readonly host: string;
  readonly port: number;
  readonly key: Uint8Array | undefined;
  readonly log: Logger;
}

const load = createRequire(import.meta.url);
/** Loaded with the first link that has a key: it takes some 20 ms. */
const tls = (): typeof import('node:tls') => load('node:tls');

const IDENTITY = 'tsvmm';
/** TLS 1.3 accepts an external pre-shared key only with a SHA-256 suite. */
const TLS = {
  minVersion: 'TLSv1.3',
  maxVersion: 'TLSv1.3',
  ciphers: 'TLS_AES_128_GCM_SHA256',
} as const;
const CONNECT_TIMEOUT_MS = 5000;
/** Connections that may wait for their greeting, how long, and how often their kind is complained about. */
const DOORSTEP_MAX = 8;
const GREETING_TIMEOUT_MS = 10_000;
const COMPLAIN_EVERY_MS = 10_000;
/** Above this many unsent bytes the writer is asked to wait. */
const CONGESTED_BYTES = 8 * 2 ** 20;

/** Whether `host` names this machine only. */
export function isLoopback(host: string): boolean {
  const plain = host.replace(/^::ffff:/, '');
  if (plain === 'localhost') return true;
  return isIP(plain) === 4 ? plain.startsWith('127.') : plain === '::1';
}

/** Refuses to leave the machine without a key. @throws VmmError `FT_KEY_NEEDED` */
export function requireKey(options: Pick<LinkOptions, 'host' | 'key'>, what: string): void {
  if (options.key === undefined && !isLoopback(options.host)) {
    throw new VmmError(
      'FT_KEY_NEEDED',
      `${what} ${options.host} needs a key: the guest's memory would travel in the clear`,
      {
        hint: 'Give --ft-key FILE on both hosts (openssl rand -hex 32 makes one).',
      },
    );
  }
}

/** What dialler and listener share: the current socket and its events. */
class Connection implements Link {
  readonly #handler: LinkHandler;
  #socket: Socket | undefined;
  #closed = false;

  constructor(handler: LinkHandler) {
    this.#handler = handler;
  }

  get up(): boolean {
    return this.#socket !== undefined;
  }

  get queuedBytes(): number {
    return this.#socket?.writableLength ?? 0;
  }

  get congested(): boolean {
    return this.queuedBytes > CONGESTED_BYTES;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** @param first bytes that were read from it already */
  adopt(socket: Socket, first?: Uint8Array): void {
    this.drop();
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 10_000);
    let why = 'the peer closed the connection';
    socket.on('data', (bytes: Buffer) => {
      if (this.#socket === socket) this.#handler.received(bytes);
    });
    socket.on('drain', () => {
      if (this.#socket === socket) this.#handler.drained();
    });
    socket.on('error', (error) => {
      why = messageOf(error);
    });
    socket.on('close', () => {
      if (this.#socket === socket) {
        this.#socket = undefined;
        this.#handler.disconnected(why);
      }
    });
    this.#handler.connected(`${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`);
    if (first !== undefined && this.#socket === socket) this.#handler.received(first);
  }

  send(parts: readonly Uint8Array[], onFlushed?: () => void): void {
    const socket = this.#socket;
    if (socket === undefined) {
      onFlushed?.();
      return;
    }
    socket.cork();
    for (const [i, part] of parts.entries()) {
      if (i === parts.length - 1) socket.write(part, () => onFlushed?.());
      else socket.write(part);
    }
    socket.uncork();
  }

  setReading(on: boolean): void {
    if (on) this.#socket?.resume();
    else this.#socket?.pause();
  }

  drop(): void {
    const socket = this.#socket;
    if (socket === undefined) return;
    this.#socket = undefined;
    socket.destroy();
    this.#handler.disconnected('this side closed the connection');
  }

  close(): void {
    this.#closed = true;
    this.drop();
  }
}

/** A dialling end: each {@link DiallingLink.connect} is one attempt. */
export interface DiallingLink extends Link {
  /** Starts an attempt to reach `to` unless there is a connection or an attempt already. */
  connect(to: LinkOptions): void;
}

/** Who hears of a dialling end. */
export interface DialHandler extends LinkHandler {
  /** An attempt came to nothing. */
  failed(why: string): void;
}

/** Makes an end that dials. */
export function dial(handler: DialHandler): DiallingLink {
  const connection = new Connection(handler);
  let pending: Socket | undefined;
  const connect = (to: LinkOptions): void => {
    if (connection.closed || connection.up || pending !== undefined) return;
    requireKey(to, 'the peer');
    const { host, port, key } = to;
    const socket: Socket =
      key === undefined
        ? connectTcp({ host, port })
        : tls().connect({
            ...TLS,
            host,
            port,
            pskCallback: () => ({ identity: IDENTITY, psk: key }),
            checkServerIdentity: () => undefined,
          });
    pending = socket;
    socket.setTimeout(CONNECT_TIMEOUT_MS, () => socket.destroy(new Error('no answer')));
    let why = 'the connection closed';
    const onError = (error: Error): void => {
      why = messageOf(error);
    };
    const onClose = (): void => {
      pending = undefined;
      if (!connection.closed) handler.failed(why);
    };
    socket.on('error', onError);
    socket.once('close', onClose);
    socket.once(key === undefined ? 'connect' : 'secureConnect', () => {
      socket.off('close', onClose);
      socket.off('error', onError);
      socket.setTimeout(0);
      pending = undefined;
      connection.adopt(socket);
    });
  };
  return {
    get up() {
      return connection.up;
    },
    get queuedBytes() {
      return connection.queuedBytes;
    },
    get congested() {
      return connection.congested;
    },
    connect,
    setReading: (on) => connection.setReading(on),
    send: (parts, onFlushed) => connection.send(parts, onFlushed),
    drop: () => connection.drop(),
    close() {
      connection.close();
      pending?.destroy();
    },
  };
}

/**
 * Connections that have not said the greeting yet. Only one that has replaces the peer that is connected, so a stranger cannot
 * push it out. The oldest has to go when there are too many.
 */
class Doorstep {
  readonly #greeting: Uint8Array;
  readonly #log: Logger;
  readonly #admit: (socket: Socket, first: Uint8Array) => void;
  readonly #waiting = new Set<Socket>();
  #complainedMs = Number.NEGATIVE_INFINITY;

  constructor(
    greeting: Uint8Array,
    log: Logger,
    admit: (socket: Socket, first: Uint8Array) => void,
  ) {
    this.#greeting = greeting;
    this.#log = log;
    this.#admit = admit;
  }

  wait(socket: Socket): void {
    const who = `${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`;
    for (const oldest of this.#waiting) {
      if (this.#waiting.size < DOORSTEP_MAX) break;
      this.#waiting.delete(oldest);
      oldest.destroy();
    }
    this.#waiting.add(socket);
    let first: Uint8Array = new Uint8Array(0);
    const onClose = (): void => {
      this.#waiting.delete(socket);
    };
    const onError = (): void => {};
    const onData = (bytes: Uint8Array): void => {
      first = first.length === 0 ? bytes : Buffer.concat([first, bytes]);
      const length = Math.min(first.length, this.#greeting.length);
      for (let i = 0; i < length; i++) {
        if (first[i] === this.#greeting[i]) continue;
        this.#complain(who);
        socket.destroy();
        return;
      }
      if (length < this.#greeting.length) return;
      this.#waiting.delete(socket);
      socket.setTimeout(0);
      socket.off('data', onData).off('close', onClose).off('error', onError);
      this.#admit(socket, first);
    };
    socket.setTimeout(GREETING_TIMEOUT_MS, () => socket.destroy());
    socket.on('close', onClose).on('error', onError).on('data', onData);
  }

  #complain(who: string): void {
    const now = performance.now();
    if (now - this.#complainedMs < COMPLAIN_EVERY_MS) return;
    this.#complainedMs = now;
    this.#log.warn(`${who} is no tsvmm primary and was turned away`);
  }

  close(): void {
    for (const socket of this.#waiting) socket.destroy();
  }
}

/** A listening end. */
export interface ListeningLink extends Link {
  /** The port that was bound (option port 0 takes a free one). */
  readonly port: number;
}

/**
 * Listens for one peer.
 * @param greeting what a peer says first; one that does not is turned away without touching the connection that stands
 * @throws VmmError `FT_KEY_NEEDED`, `FT_LISTEN`
 */
export async function listen(
  options: LinkOptions,
  handler: LinkHandler,
  greeting?: Uint8Array,
): Promise<ListeningLink> {
  requireKey(options, 'listening on');
  const { host, port, key, log } = options;
  const connection = new Connection(handler);
  const doorstep =
    greeting && new Doorstep(greeting, log, (socket, first) => connection.adopt(socket, first));
  const accept = (socket: Socket | TLSSocket): void => {
    if (connection.closed) socket.destroy();
    else if (doorstep === undefined) connection.adopt(socket);
    else doorstep.wait(socket);
  };
  const server: Server =
    key === undefined
      ? createTcpServer(accept)
      : tls().createServer(
          {
            ...TLS,
            handshakeTimeout: CONNECT_TIMEOUT_MS,
            pskCallback: (_socket, identity) => (identity === IDENTITY ? Buffer.from(key) : null),
          },
          accept,
        );
  server.on('tlsClientError', (error: Error, socket: TLSSocket) => {
    log.warn(`a peer at ${socket.remoteAddress ?? '?'} was turned away: ${messageOf(error)}`);
    socket.destroy();
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => {
      reject(
        new VmmError('FT_LISTEN', `cannot listen on ${host}:${port}: ${messageOf(error)}`, {
          hint: 'Is another standby running there? Give --listen another port.',
          cause: error,
        }),
      );
    });
    server.listen(port, host, resolve);
  });
  const address = server.address();
  return {
    port: typeof address === 'object' && address !== null ? address.port : port,
    get up() {
      return connection.up;
    },
    get queuedBytes() {
      return connection.queuedBytes;
    },
    get congested() {
      return connection.congested;
    },
    setReading: (on) => connection.setReading(on),
    send: (parts, onFlushed) => connection.send(parts, onFlushed),
    drop: () => connection.drop(),
    close() {
      connection.close();
      doorstep?.close();
      server.close();
    },
  };
}
