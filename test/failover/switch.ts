/**
 * A small learning Ethernet switch on unix stream sockets (4-byte big-endian length, then the frame), for demos and tests: each
 * port is a socket path that a guest's `--net stream=PATH` connects to, and the client is plugged in as a function.
 */
import { rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';

/** Larger announced frames end the connection. */
const FRAME_MAX_BYTES = 65600;
/** Unsent bytes of a port above which frames to it are dropped, as a switch drops them. */
const PORT_QUEUE_BYTES = 4 * 2 ** 20;

type Deliver = (frame: Uint8Array) => void;

/** See the module's head. */
export class Switch {
  readonly #ports = new Map<string, Deliver>();
  readonly #table = new Map<string, string>();
  readonly #servers: Server[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #framesFrom = new Map<string, number>();
  /** Sees every frame, with the port that it comes from. */
  onFrame: (from: string, frame: Uint8Array) => void = () => {};

  /** Adds a port that listens at `path`; one connection at a time, a new one replaces the old. */
  async listen(path: string): Promise<void> {
    rmSync(path, { force: true });
    let current: Socket | undefined;
    const server = createServer((socket) => {
      current?.destroy();
      current = socket;
      this.#sockets.add(socket);
      let buffered: Buffer = Buffer.alloc(0);
      socket.on('error', () => {});
      socket.on('close', () => this.#sockets.delete(socket));
      socket.on('data', (bytes: Buffer) => {
        buffered = buffered.length === 0 ? bytes : Buffer.concat([buffered, bytes]);
        while (buffered.length >= 4) {
          const length = buffered.readUInt32BE(0);
          if (length > FRAME_MAX_BYTES) {
            socket.destroy();
            return;
          }
          if (buffered.length < 4 + length) break;
          this.#forward(path, buffered.subarray(4, 4 + length));
          buffered = buffered.subarray(4 + length);
        }
      });
    });
    this.#servers.push(server);
    this.#ports.set(path, (frame) => {
      if (current === undefined || current.destroyed || current.writableLength > PORT_QUEUE_BYTES)
        return;
      const out = Buffer.allocUnsafe(4 + frame.length);
      out.writeUInt32BE(frame.length, 0);
      out.set(frame, 4);
      current.write(out);
    });
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, resolve);
    });
  }

  /** Plugs in a station of this process; returns how it sends. */
  plug(name: string, deliver: Deliver): Deliver {
    this.#ports.set(name, deliver);
    return (frame) => this.#forward(name, frame);
  }

  /** How many frames came in at a port since the start. */
  framesFrom(port: string): number {
    return this.#framesFrom.get(port) ?? 0;
  }

  #forward(from: string, frame: Uint8Array): void {
    this.#framesFrom.set(from, this.framesFrom(from) + 1);
    if (frame.length < 14) return;
    this.onFrame(from, frame);
    const hex = Buffer.from(frame.subarray(0, 12)).toString('hex');
    this.#table.set(hex.slice(12), from);
    const group = (frame[0]! & 1) !== 0;
    const to = group ? undefined : this.#table.get(hex.slice(0, 12));
    for (const [port, deliver] of this.#ports) {
      if (port !== from && (to === undefined || to === port)) deliver(frame);
    }
  }

  close(): void {
    for (const server of this.#servers) server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}
