/**
 * The sending half of an NBD connection: puts the parts of requests one behind the other into one of two buffers, with data straight
 * from guest memory, while the socket has the other.
 */
import type { Socket } from 'node:net';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { BLOCK_OP } from './backend.ts';
import { type NbdRequests, REQUEST } from './nbd-requests.ts';
import { CMD, CMD_FLAG_NO_HOLE, REQUEST_BYTES, REQUEST_MAGIC } from './nbd-spec.ts';

const SEND_BYTES = 256 * 1024;
/** Most bytes of a request without data. */
const MAX_RANGE_BYTES = 1 << 30;

/** What is sent. */
export interface SendSource {
  /** The request that goes out now, taken off what waits; -1: none. */
  next(): number;
  /** Data that does not lie in the request's segments, but here. */
  data(tag: number): Uint8Array | undefined;
  /** The socket was given something. */
  wrote(): void;
}

/** What the server takes. */
export interface SendLimits {
  /** Bytes of data in one part. */
  readonly maxPayload: number;
  /** Whether zeroes are written by a command of their own. */
  readonly writeZeroes: boolean;
}

/** See the module's head. */
export class NbdSender {
  readonly #requests: NbdRequests;
  readonly #memory: GuestMemory;
  readonly #limits: SendLimits;
  readonly #source: SendSource;
  #socket: Socket | undefined;
  #generation = 0;
  #filling = Buffer.alloc(SEND_BYTES);
  #writing = Buffer.alloc(SEND_BYTES);
  #filled = 0;
  #busy = false;
  /** Tag whose data is being copied into send buffers, or -1, and how much of its part is still to be copied. */
  #tag = -1;
  #left = 0;
  #segment = 0;
  #offset = 0;

  constructor(requests: NbdRequests, memory: GuestMemory, limits: SendLimits, source: SendSource) {
    this.#requests = requests;
    this.#memory = memory;
    this.#limits = limits;
    this.#source = source;
  }

  /** Requests go out here from now on. @param generation what their handles begin with */
  start(socket: Socket, generation: number): void {
    this.#socket = socket;
    this.#generation = generation;
  }

  /** The connection is over; what was half sent is forgotten. */
  stop(): void {
    this.#socket = undefined;
    this.#busy = false;
    this.#filled = 0;
    this.#tag = -1;
  }

  /** Whether data of this request is still to be sent. */
  isSending(tag: number): boolean {
    return this.#tag === tag;
  }

  /** Fills the free buffer with requests and writes it, as long as there is something to send. */
  pump(): void {
    const socket = this.#socket;
    if (socket === undefined || this.#busy) return;
    while (this.#filled < SEND_BYTES) {
      if (this.#tag >= 0) {
        this.#copyData();
        continue;
      }
      if (this.#filled + REQUEST_BYTES > SEND_BYTES) break;
      const tag = this.#source.next();
      if (tag < 0) break;
      this.#putRequest(tag);
    }
    if (this.#filled === 0) return;
    const full = this.#filling;
    const bytes = this.#filled;
    this.#filling = this.#writing;
    this.#writing = full;
    this.#filled = 0;
    this.#busy = true;
    this.#source.wrote();
    socket.write(full.subarray(0, bytes), () => {
      if (this.#socket !== socket) return;
      this.#busy = false;
      this.pump();
    });
  }

  /** Sends the header of a request's next part and gets ready to send its data. */
  #putRequest(tag: number): void {
    const { kept, done, part, state } = this.#requests;
    const { maxPayload, writeZeroes } = this.#limits;
    const op = kept.op[tag]!;
    const zeroing = op === BLOCK_OP.writeZeroes || op === BLOCK_OP.writeZeroesUnmap;
    let command: number = CMD.trim;
    let flags = 0;
    if (op === BLOCK_OP.read) command = CMD.read;
    else if (op === BLOCK_OP.write) command = CMD.write;
    else if (op === BLOCK_OP.flush) command = CMD.flush;
    else if (zeroing) {
      command = writeZeroes ? CMD.writeZeroes : CMD.write;
      if (op === BLOCK_OP.writeZeroes && writeZeroes) flags = CMD_FLAG_NO_HOLE;
    }
    const hasData = command === CMD.read || command === CMD.write;
    const from = done[tag]!;
    const bytes = Math.min(kept.length[tag]! - from, hasData ? maxPayload : MAX_RANGE_BYTES);
    part[tag] = bytes;
    state[tag] = REQUEST.sent;

    const out = this.#filling;
    const at = this.#filled;
    const offset = op === BLOCK_OP.flush ? 0 : kept.offset[tag]! + from;
    out.writeUInt32BE(REQUEST_MAGIC, at);
    out.writeUInt16BE(flags, at + 4);
    out.writeUInt16BE(command, at + 6);
    out.writeUInt32BE(this.#generation, at + 8);
    out.writeUInt32BE(tag, at + 12);
    out.writeUInt32BE(Math.floor(offset / 0x1_0000_0000), at + 16);
    out.writeUInt32BE(offset % 0x1_0000_0000, at + 20);
    out.writeUInt32BE(bytes, at + 24);
    this.#filled = at + REQUEST_BYTES;
    if (command !== CMD.write) return;
    this.#tag = tag;
    this.#left = bytes;
    this.#segment = 0;
    this.#offset = from;
    if (zeroing || this.#source.data(tag) !== undefined) return;
    const lengths = kept.lengths(tag);
    while (this.#offset >= lengths[this.#segment]!) {
      this.#offset -= lengths[this.#segment]!;
      this.#segment++;
    }
  }

  #copyData(): void {
    const tag = this.#tag;
    const { kept } = this.#requests;
    const room = Math.min(this.#left, SEND_BYTES - this.#filled);
    let n = room;
    if (kept.op[tag] !== BLOCK_OP.write) {
      this.#filling.fill(0, this.#filled, this.#filled + n);
    } else {
      const data = this.#source.data(tag);
      if (data !== undefined) {
        this.#filling.set(data.subarray(this.#offset, this.#offset + n), this.#filled);
        this.#offset += n;
      } else {
        const length = kept.lengths(tag)[this.#segment]!;
        n = Math.min(room, length - this.#offset);
        const address = kept.addresses(tag)[this.#segment]! + this.#offset;
        this.#memory.read(address, this.#filling, this.#filled, n);
        this.#offset += n;
        if (this.#offset === length) {
          this.#segment++;
          this.#offset = 0;
        }
      }
    }
    this.#filled += n;
    this.#left -= n;
    if (this.#left === 0) this.#tag = -1;
  }
}
