/** Connects to an NBD server, within a given time. Used by the client in nbd.ts, at the start and whenever the server was away. */
import { createConnection, type Socket } from 'node:net';
import { type NbdExport, nbdHandshake } from './nbd-handshake.ts';
import type { NbdAddress } from './nbd-url.ts';

/** A connection that has come through the handshake. */
export interface Connection {
  readonly socket: Socket;
  readonly found: NbdExport;
}

/** Whom to connect to, and how. */
export interface ConnectOptions {
  readonly address: NbdAddress;
  /** Begins a connection. Default: node's. */
  readonly dial?: (target: NbdAddress['target']) => Socket;
}

/** Connects and shakes hands. @throws Error in one sentence, also when it takes longer than `timeoutMs` */
export async function connect(options: ConnectOptions, timeoutMs: number): Promise<Connection> {
  const { address, dial = createConnection } = options;
  const socket = dial(address.target);
  // Errors are seen by whoever waits; this one keeps a late error from being thrown.
  socket.on('error', () => {});
  let timer: NodeJS.Timeout | undefined;
  try {
    const work = async () => {
      await new Promise<void>((resolve, reject) => {
        socket.once('connect', resolve);
        socket.once('error', reject);
      });
      socket.setNoDelay(true);
      socket.setKeepAlive(true, 10_000);
      return { socket, found: await nbdHandshake(socket, address.exportName) };
    };
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error('the server does not answer')), timeoutMs);
    });
    return await Promise.race([work(), late]);
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    clearTimeout(timer);
  }
}
