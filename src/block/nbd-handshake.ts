/**
 * The opening of an NBD connection (NBD protocol, "Handshake phase"): fixed newstyle, NBD_OPT_GO, or NBD_OPT_EXPORT_NAME
 * where the server knows only that. Lengths that the server sends are limited before anything is buffered.
 */
import type { Socket } from 'node:net';
import { VmmError } from '../base/error.ts';

/** Transmission flags of an export (NBD protocol, "Transmission flags"). */
export const NBD_FLAG = {
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
} as const;

/** What the server says of the export. */
export interface NbdExport {
  readonly sizeBytes: number;
  readonly flags: number;
  readonly minBlockBytes: number;
  readonly preferredBlockBytes: number;
  readonly maxPayloadBytes: number;
}

const MAGIC = 'NBDMAGIC';
const OPTION_MAGIC = 'IHAVEOPT';
const REPLY_MAGIC = 0x3e889045565a9n;
const HANDSHAKE_FIXED = 1;
const HANDSHAKE_NO_ZEROES = 2;
const OPT_EXPORT_NAME = 1;
const OPT_GO = 7;
const REP_ACK = 1;
const REP_INFO = 3;
const REP_ERROR = 0x8000_0000;
const INFO_EXPORT = 0;
const INFO_BLOCK_SIZE = 3;
/** Longest option reply that is read; servers send tens of bytes. */
const MAX_REPLY_BYTES = 16 * 1024;
/** What a server must take without saying so. */
const DEFAULT_MAX_PAYLOAD = 32 * 1024 * 1024;

const ERRORS: Readonly<Record<number, string>> = {
  1: 'it does not know this option',
  2: 'its policy forbids it',
  3: 'it calls the request invalid',
  4: 'its platform does not support it',
  5: 'it asks for TLS, which is not supported here',
  6: 'it has no export of that name',
  7: 'it is shutting down',
  8: 'it insists on a block size negotiation',
};

function refused(why: string, hint: string): VmmError {
  return new VmmError('NBD_REFUSED', `the NBD server refused the export: ${why}`, { hint });
}

/** Reads exact amounts from a socket in paused mode. */
class Reader {
  readonly #socket: Socket;
  #buffered = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  async read(bytes: number): Promise<Buffer> {
    while (this.#buffered.length < bytes) {
      const chunk = await this.#next();
      this.#buffered = Buffer.concat([this.#buffered, chunk]);
    }
    const result = this.#buffered.subarray(0, bytes);
    this.#buffered = this.#buffered.subarray(bytes);
    return result;
  }

  /** Gives back what was read too much. */
  finish(): void {
    if (this.#buffered.length > 0) this.#socket.unshift(this.#buffered);
  }

  #next(): Promise<Buffer> {
    const socket = this.#socket;
    return new Promise((resolve, reject) => {
      const done = () => {
        socket.off('readable', tryRead);
        socket.off('close', closed);
        socket.off('error', failed);
      };
      const tryRead = () => {
        const chunk: Buffer | null = socket.read();
        if (chunk === null) return;
        done();
        resolve(chunk);
      };
      const closed = () => {
        done();
        reject(new Error('the server closed the connection'));
      };
      const failed = (error: Error) => {
        done();
        reject(error);
      };
      socket.on('readable', tryRead);
      socket.once('close', closed);
      socket.once('error', failed);
      tryRead();
      if (socket.destroyed) closed();
    });
  }
}

function option(code: number, data: Buffer): Buffer {
  const header = Buffer.alloc(16);
  header.write(OPTION_MAGIC, 0, 'latin1');
  header.writeUInt32BE(code, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

function sizeOf(bytes: Buffer, offset: number): number {
  const size = Number(bytes.readBigUInt64BE(offset));
  if (!Number.isSafeInteger(size)) throw new Error('the export has an absurd size');
  return size;
}

/** Speaks the handshake on a connected, paused socket. Throws on anything that is not NBD. */
export async function nbdHandshake(socket: Socket, exportName: string): Promise<NbdExport> {
  const reader = new Reader(socket);
  const hello = await reader.read(18);
  if (hello.toString('latin1', 0, 8) !== MAGIC) throw new Error('the server does not speak NBD');
  if (hello.toString('latin1', 8, 16) !== OPTION_MAGIC)
    throw new Error('the server speaks only the old NBD handshake');
  const serverFlags = hello.readUInt16BE(16);
  const clientFlags = Buffer.alloc(4);
  const noZeroes = serverFlags & HANDSHAKE_NO_ZEROES;
  clientFlags.writeUInt32BE((serverFlags & HANDSHAKE_FIXED) | noZeroes);
  const name = Buffer.from(exportName);

  let found: NbdExport | undefined;
  if ((serverFlags & HANDSHAKE_FIXED) !== 0) {
    const data = Buffer.alloc(8 + name.length);
    data.writeUInt32BE(name.length, 0);
    name.copy(data, 4);
    data.writeUInt16BE(1, 4 + name.length);
    data.writeUInt16BE(INFO_BLOCK_SIZE, 6 + name.length);
    socket.write(Buffer.concat([clientFlags, option(OPT_GO, data)]));
    found = await readGo(reader);
  } else {
    socket.write(clientFlags);
  }
  if (found === undefined) {
    // An unknown name is answered by closing the connection (NBD protocol, NBD_OPT_EXPORT_NAME).
    socket.write(option(OPT_EXPORT_NAME, name));
    const reply = await reader.read(noZeroes !== 0 ? 10 : 134);
    found = {
      sizeBytes: sizeOf(reply, 0),
      flags: reply.readUInt16BE(8),
      minBlockBytes: 1,
      preferredBlockBytes: 4096,
      maxPayloadBytes: DEFAULT_MAX_PAYLOAD,
    };
  }
  reader.finish();
  return found;
}

/** Replies to NBD_OPT_GO; undefined when the server does not know it. */
async function readGo(reader: Reader): Promise<NbdExport | undefined> {
  let sizeBytes: number | undefined;
  let flags = 0;
  let blocks = [1, 4096, DEFAULT_MAX_PAYLOAD];
  for (;;) {
    const header = await reader.read(20);
    if (header.readBigUInt64BE(0) !== REPLY_MAGIC || header.readUInt32BE(8) !== OPT_GO)
      throw new Error('the server answers with something that is not NBD');
    const type = header.readUInt32BE(12);
    const length = header.readUInt32BE(16);
    if (length > MAX_REPLY_BYTES) throw new Error('the server sends an absurdly long answer');
    const data = await reader.read(length);
    if (type >= REP_ERROR) {
      const code = type - REP_ERROR;
      if (code === 1) return undefined;
      const said = data.toString('utf8').replace(/[^\x20-\x7e]/g, '?');
      throw refused(
        ERRORS[code] ?? said,
        code === 6 ? 'Check the export name in the address.' : 'Check the server’s configuration.',
      );
    }
    if (type === REP_ACK) break;
    if (type !== REP_INFO || length < 2) continue;
    const info = data.readUInt16BE(0);
    if (info === INFO_EXPORT && length >= 12) {
      sizeBytes = sizeOf(data, 2);
      flags = data.readUInt16BE(10);
    } else if (info === INFO_BLOCK_SIZE && length >= 14) {
      blocks = [data.readUInt32BE(2), data.readUInt32BE(6), data.readUInt32BE(10)];
    }
  }
  if (sizeBytes === undefined) throw new Error('the server did not tell the size of the export');
  const [min, preferred, max] = blocks as [number, number, number];
  return {
    sizeBytes,
    flags,
    minBlockBytes: Math.max(1, min),
    preferredBlockBytes: preferred,
    maxPayloadBytes: Math.min(DEFAULT_MAX_PAYLOAD, Math.max(max, 65536)),
  };
}
