/**
 * A TCP proxy that delivers every byte a given time after it came, in order: a link between hosts that is long. Exact to some tens of
 * microseconds beyond its own cost of two sockets; `linkTrip` measures what it really is. Bandwidth is not limited.
 */
import { connect, createServer, type Server, type Socket } from 'node:net';

/** Timers are no finer than this, ms: what is due sooner is waited for with the event loop turning. */
const TIMER_MS = 2;

interface Piece {
  readonly dueMs: number;
  readonly to: Socket;
  readonly bytes: Buffer;
}

/** See the module's head. */
export class DelayProxy {
  readonly #server: Server;
  readonly #oneWayMs: number;
  readonly #sockets = new Set<Socket>();
  /** In order of time: every piece waits equally long. */
  #waiting: Piece[] = [];
  #armed = false;

  private constructor(server: Server, oneWayMs: number) {
    this.#server = server;
    this.#oneWayMs = oneWayMs;
  }

  /** Listens on a free loopback port and forwards to `port`. */
  static async start(port: number, roundTripMs: number): Promise<DelayProxy> {
    const server = createServer();
    const proxy = new DelayProxy(server, roundTripMs / 2);
    server.on('connection', (near) => {
      const far = connect(port, '127.0.0.1');
      proxy.#pass(near, far);
      proxy.#pass(far, near);
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return proxy;
  }

  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  #pass(from: Socket, to: Socket): void {
    this.#sockets.add(from);
    from.setNoDelay(true);
    from.on('error', () => to.destroy());
    from.on('close', () => {
      this.#sockets.delete(from);
      to.destroy();
    });
    from.on('data', (bytes: Buffer) => {
      this.#waiting.push({ dueMs: performance.now() + this.#oneWayMs, to, bytes });
      this.#arm();
    });
  }

  #arm(): void {
    if (this.#armed || this.#waiting.length === 0) return;
    this.#armed = true;
    const leftMs = this.#waiting[0]!.dueMs - performance.now();
    const run = (): void => {
      this.#armed = false;
      this.#deliver();
      this.#arm();
    };
    if (leftMs > TIMER_MS) setTimeout(run, leftMs - TIMER_MS);
    else setImmediate(run);
  }

  #deliver(): void {
    const now = performance.now();
    let due = 0;
    while (due < this.#waiting.length && this.#waiting[due]!.dueMs <= now) due++;
    for (const { to, bytes } of this.#waiting.splice(0, due)) to.write(bytes);
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}

/** Median round trip of a byte through such a proxy, ms: its delay and its own cost. */
export async function linkTrip(roundTripMs: number, count = 50): Promise<number> {
  const echo = createServer((socket) => {
    socket.setNoDelay(true);
    socket.on('error', () => socket.destroy());
    socket.on('data', (bytes) => socket.write(bytes));
  });
  await new Promise<void>((resolve) => echo.listen(0, '127.0.0.1', resolve));
  const { port } = echo.address() as { port: number };
  const proxy = await DelayProxy.start(port, roundTripMs);
  const socket = connect(proxy.port, '127.0.0.1');
  socket.setNoDelay(true);
  const trips: number[] = [];
  try {
    await new Promise<void>((resolve, reject) => {
      let sentMs = 0;
      const send = (): void => {
        sentMs = performance.now();
        socket.write('x');
      };
      socket.on('error', reject);
      socket.on('close', () => reject(new Error('the link closed')));
      socket.on('connect', send);
      socket.on('data', () => {
        trips.push(performance.now() - sentMs);
        if (trips.length === count) resolve();
        else send();
      });
    });
  } finally {
    socket.destroy();
    proxy.close();
    echo.close();
  }
  return trips.sort((a, b) => a - b)[count >> 1]!;
}
