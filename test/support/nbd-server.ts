/**
 * An NBD server in this process, for tests: it can crash (and lose what was not flushed), refuse, lie and be slow. Written
 * from the protocol text, apart from the client's code.
 */
import { createServer, type Server, type Socket } from 'node:net';

export interface FakeNbdOptions {
  sizeBytes: number;
  /** Transmission flags beside HAS_FLAGS. Default: flush, FUA, trim, write zeroes. */
  flags?: number;
  /** Without: answers NBD_OPT_GO with "unknown", so that the client falls back. */
  knowsGo?: boolean;
  exportName?: string;
}

interface Request {
  flags: number;
  type: number;
  cookie: Buffer;
  offset: number;
  length: number;
  data: Buffer | undefined;
}

export class FakeNbdServer {
  readonly content: Buffer;
  /** What survives {@link crash}. */
  readonly durable: Buffer;
  readonly seen: { type: number; flags: number; offset: number; length: number }[] = [];
  /** Error code for a request, instead of doing it. */
  fault: ((type: number, offset: number) => number) | undefined;
  /** Called before each reply; true: say nothing (and the test crashes the server later). */
  swallow: ((type: number) => boolean) | undefined;
  /** How long from a request until it is done and answered, in milliseconds; asked for each. Undefined: at once. */
  delayMs: (() => number) | undefined;
  connections = 0;
  readonly #options: FakeNbdOptions;
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;

  constructor(options: FakeNbdOptions) {
    this.#options = options;
    this.content = Buffer.alloc(options.sizeBytes);
    this.durable = Buffer.alloc(options.sizeBytes);
  }

  async listen(path: string): Promise<void> {
    const server = createServer((socket) => this.#serve(socket));
    this.#server = server;
    await new Promise<void>((resolve) => server.listen(path, resolve));
  }

  /** Cuts all connections; the server goes on listening. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Dies, and loses its cache. `listen` brings it back. */
  async crash(): Promise<void> {
    this.cut();
    const server = this.#server;
    this.#server = undefined;
    await new Promise<void>((resolve) => (server ? server.close(() => resolve()) : resolve()));
    this.durable.copy(this.content);
  }

  #serve(socket: Socket): void {
    this.connections++;
    this.#sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => this.#sockets.delete(socket));
    let buffered = Buffer.alloc(0);
    let phase: 'flags' | 'options' | 'transmission' = 'flags';
    const hello = Buffer.alloc(18);
    hello.write('NBDMAGICIHAVEOPT');
    hello.writeUInt16BE(3, 16);
    socket.write(hello);
    socket.on('data', (chunk) => {
      buffered = Buffer.concat([buffered, chunk]);
      for (;;) {
        let used = 0;
        if (phase === 'flags') {
          if (buffered.length < 4) return;
          used = 4;
          phase = 'options';
        } else if (phase === 'options') {
          if (buffered.length < 16) return;
          const option = buffered.readUInt32BE(8);
          const length = buffered.readUInt32BE(12);
          if (buffered.length < 16 + length) return;
          used = 16 + length;
          if (this.#option(socket, option, buffered.subarray(16, used))) phase = 'transmission';
        } else {
          if (buffered.length < 28) return;
          const type = buffered.readUInt16BE(6);
          const length = buffered.readUInt32BE(24);
          used = 28 + (type === 1 ? length : 0);
          if (buffered.length < used) return;
          const request: Request = {
            flags: buffered.readUInt16BE(4),
            type,
            cookie: buffered.subarray(8, 16),
            offset: Number(buffered.readBigUInt64BE(16)),
            length,
            data: type === 1 ? buffered.subarray(28, used) : undefined,
          };
          if (this.delayMs === undefined) this.#request(socket, request);
          else setTimeout(() => this.#request(socket, request), this.delayMs());
        }
        buffered = buffered.subarray(used);
      }
    });
  }

  #option(socket: Socket, option: number, data: Buffer): boolean {
    const { sizeBytes, flags = 0x6d, knowsGo = true, exportName } = this.#options;
    const reply = (type: number, payload: Buffer) => {
      const header = Buffer.alloc(20);
      header.writeBigUInt64BE(0x3e889045565a9n, 0);
      header.writeUInt32BE(option, 8);
      header.writeUInt32BE(type >>> 0, 12);
      header.writeUInt32BE(payload.length, 16);
      socket.write(Buffer.concat([header, payload]));
    };
    if (option === 1) {
      const answer = Buffer.alloc(10);
      answer.writeBigUInt64BE(BigInt(sizeBytes), 0);
      answer.writeUInt16BE(flags | 1, 8);
      socket.write(answer);
      return true;
    }
    if (option !== 7 || !knowsGo) {
      reply(0x8000_0001, Buffer.alloc(0));
      return false;
    }
    const name = data.subarray(4, 4 + data.readUInt32BE(0)).toString();
    if (exportName !== undefined && name !== exportName) {
      reply(0x8000_0006, Buffer.from('no such export'));
      return false;
    }
    const info = Buffer.alloc(12);
    info.writeBigUInt64BE(BigInt(sizeBytes), 2);
    info.writeUInt16BE(flags | 1, 10);
    reply(3, info);
    const blocks = Buffer.alloc(14);
    blocks.writeUInt16BE(3, 0);
    blocks.writeUInt32BE(1, 2);
    blocks.writeUInt32BE(4096, 6);
    blocks.writeUInt32BE(65536, 10);
    reply(3, blocks);
    reply(1, Buffer.alloc(0));
    return true;
  }

  #request(socket: Socket, { flags, type, cookie, offset, length, data }: Request): void {
    if (type === 2) {
      socket.end();
      return;
    }
    this.seen.push({ type, flags, offset, length });
    const error = this.fault?.(type, offset) ?? 0;
    let payload = Buffer.alloc(0);
    if (error === 0) {
      if (type === 0) payload = Buffer.from(this.content.subarray(offset, offset + length));
      else if (type === 1) data!.copy(this.content, offset);
      else if (type === 3) this.content.copy(this.durable);
      else if (type === 4 || type === 6) this.content.fill(0, offset, offset + length);
    }
    if (this.swallow?.(type)) return;
    const header = Buffer.alloc(16);
    header.writeUInt32BE(0x67446698, 0);
    header.writeUInt32BE(error, 4);
    cookie.copy(header, 8);
    socket.write(Buffer.concat([header, payload]));
  }
}
