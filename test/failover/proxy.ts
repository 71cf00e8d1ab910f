/** A TCP proxy that can cut a connection after a number of bytes, hold it up, or refuse new ones: a link between hosts that fails. */
import { connect, createServer, type Server, type Socket } from 'node:net';

/** See the module's head. */
export class CuttingProxy {
  readonly #server: Server;
  readonly #pairs = new Set<[Socket, Socket]>();
  /** Where connections go; a new standby gets a new port. */
  #to: number;
  #cutAfter = Number.POSITIVE_INFINITY;
  #passed = 0;
  #refuse = false;
  #answersHeld = false;
  #silent = false;
  /** How often a connection was cut. */
  cuts = 0;
  /** Called at the cut, before either end can notice it. */
  onCut: () => void = () => {};

  private constructor(server: Server, to: number) {
    this.#server = server;
    this.#to = to;
  }

  /** Listens on a free loopback port and forwards to `port`. */
  static async start(port: number): Promise<CuttingProxy> {
    const server = createServer();
    const proxy = new CuttingProxy(server, port);
    server.on('connection', (near) => proxy.#forward(near));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return proxy;
  }

  /** The port that a primary connects to; setting it changes where connections go. */
  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  set port(to: number) {
    this.#to = to;
  }

  #forward(near: Socket): void {
    if (this.#refuse) {
      near.destroy();
      return;
    }
    const far = connect(this.#to, '127.0.0.1');
    const pair: [Socket, Socket] = [near, far];
    this.#pairs.add(pair);
    const end = (): void => {
      this.#pairs.delete(pair);
      near.destroy();
      far.destroy();
    };
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      from.setNoDelay(true);
      from.on('error', end);
      from.on('close', end);
      from.on('data', (bytes: Buffer) => {
        this.#passed += bytes.length;
        if (this.#passed < this.#cutAfter) {
          to.write(bytes);
          return;
        }
        // Part of the piece still arrives: the cut is at a byte, not at a message.
        to.write(bytes.subarray(0, Math.max(0, bytes.length - (this.#passed - this.#cutAfter))));
        this.#cutAfter = Number.POSITIVE_INFINITY;
        this.cuts++;
        this.onCut();
        setImmediate(end);
      });
    }
    if (this.#answersHeld || this.#silent) far.pause();
    if (this.#silent) near.pause();
  }

  /** Lets nothing through either way and closes nothing, as a network does that loses its middle; or heals. */
  setSilent(silent: boolean): void {
    this.#silent = silent;
    for (const pair of this.#pairs) {
      for (const socket of pair) {
        if (silent) socket.pause();
        else socket.resume();
      }
    }
  }

  /** Cuts the connection when `bytes` more have passed, either way. */
  cutAfter(bytes: number): void {
    this.#passed = 0;
    this.#cutAfter = bytes;
  }

  /** Lets nothing through from the standby to the primary, or goes on with what was held up. */
  holdAnswers(hold: boolean): void {
    this.#answersHeld = hold;
    for (const [, far] of this.#pairs) {
      if (hold) far.pause();
      else far.resume();
    }
  }

  /** Refuses new connections, or takes them again; cuts those there are. */
  setDown(down: boolean): void {
    this.#refuse = down;
    if (!down) return;
    for (const [near, far] of this.#pairs) {
      near.destroy();
      far.destroy();
    }
  }

  close(): void {
    this.#server.close();
    this.setDown(true);
  }
}
