/** The receiving half of an NBD connection: reads replies, and moves data straight into guest memory; buffers nothing. */
import type { GuestMemory } from '../memory/guest-memory.ts';
import { BLOCK_OP, ERRNO } from './backend.ts';
import type { NbdRequests } from './nbd-requests.ts';
import { ESHUTDOWN, REPLY_BYTES, REPLY_MAGIC } from './nbd-spec.ts';

/** Who hears of replies. May call {@link NbdReceiver.stop}. */
export interface ReplySink {
  /** Whether the server may answer this request now. */
  expects(tag: number): boolean;
  /** The part that was on the wire is done. */
  partDone(tag: number): void;
  /** The server could not do it. @param error an errno code, not 0 */
  failed(tag: number, error: number): void;
  /** No more replies can come: the server is going, or says what makes no sense. */
  broken(isNonsense: boolean): void;
}

/** See the module's head. */
export class NbdReceiver {
  readonly #requests: NbdRequests;
  readonly #memory: GuestMemory;
  readonly #sink: ReplySink;
  readonly #header = Buffer.alloc(REPLY_BYTES);
  #headerBytes = 0;
  #generation = 0;
  #running = false;
  /** The read whose data comes, or -1, and how much of its part is still to come. */
  #tag = -1;
  #left = 0;
  #segment = 0;
  #offset = 0;

  constructor(requests: NbdRequests, memory: GuestMemory, sink: ReplySink) {
    this.#requests = requests;
    this.#memory = memory;
    this.#sink = sink;
  }

  /** A connection begins. @param generation what the handles of its requests begin with */
  start(generation: number): void {
    this.#generation = generation;
    this.#headerBytes = 0;
    this.#tag = -1;
    this.#running = true;
  }

  /** The connection is over: what else it has delivered is not looked at. */
  stop(): void {
    this.#running = false;
  }

  /** What the server sent. */
  take(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length && this.#running) {
      if (this.#tag >= 0) {
        at += this.#takeData(chunk, at);
        continue;
      }
      const n = Math.min(REPLY_BYTES - this.#headerBytes, chunk.length - at);
      chunk.copy(this.#header, this.#headerBytes, at, at + n);
      this.#headerBytes += n;
      at += n;
      if (this.#headerBytes === REPLY_BYTES) {
        this.#headerBytes = 0;
        this.#reply();
      }
    }
  }

  #reply(): void {
    const error = this.#header.readUInt32BE(4);
    const tag = this.#header.readUInt32BE(12);
    const known =
      this.#header.readUInt32BE(0) === REPLY_MAGIC &&
      this.#header.readUInt32BE(8) === this.#generation &&
      this.#sink.expects(tag);
    if (!known || error === ESHUTDOWN) {
      this.#sink.broken(!known);
      return;
    }
    if (error !== 0) {
      this.#sink.failed(tag, error < 4096 ? error : ERRNO.EIO);
      return;
    }
    const { kept, part, done } = this.#requests;
    if (kept.op[tag] !== BLOCK_OP.read) {
      this.#sink.partDone(tag);
      return;
    }
    this.#tag = tag;
    this.#left = part[tag]!;
    this.#segment = 0;
    this.#offset = done[tag]!;
    const lengths = kept.lengths(tag);
    while (this.#offset >= lengths[this.#segment]!) {
      this.#offset -= lengths[this.#segment]!;
      this.#segment++;
    }
  }

  /** Moves received data into guest memory; how many bytes it took. */
  #takeData(chunk: Buffer, at: number): number {
    const tag = this.#tag;
    const { kept } = this.#requests;
    const length = kept.lengths(tag)[this.#segment]!;
    const n = Math.min(this.#left, chunk.length - at, length - this.#offset);
    const address = kept.addresses(tag)[this.#segment]! + this.#offset;
    this.#memory.write(address, chunk, at, n);
    this.#offset += n;
    this.#left -= n;
    if (this.#offset === length) {
      this.#segment++;
      this.#offset = 0;
    }
    if (this.#left === 0) {
      this.#tag = -1;
      this.#sink.partDone(tag);
    }
    return n;
  }
}
