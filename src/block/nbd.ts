/**
 * A disk on a network block device server (NBD protocol, transmission phase with simple replies): qemu-nbd, nbdkit and
 * qemu-storage-daemon bring qcow2, Ceph and others this way.
 *
 * When the connection breaks, or the server owes answers and says nothing for half of `failAfterMs`, requests stay in flight and are sent again on the next one (the guest waits); after
 * `failAfterMs` without a server they fail with EIO, and later ones at once, until it is back. Writes that were
 * acknowledged but not flushed are remembered (bounded; at the bound this client flushes on its own) and written again
 * first, so that a flush that the guest sees done covers them even if the server lost its cache.
 *
 * Bounded: `maxRequests` requests, two send buffers, nothing buffered on the receiving side (data goes straight to guest
 * memory).
 */
import type { Socket } from 'node:net';
import { assert } from '../base/assert.ts';
import { messageOf, VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import {
  BLOCK_OP,
  type BlockBackend,
  type BlockHandler,
  type BlockInfo,
  type BlockOp,
  ERRNO,
} from './backend.ts';
import { Completions } from './completions.ts';
import { type Connection, connect } from './nbd-connect.ts';
import { NBD_FLAG } from './nbd-handshake.ts';
import type { NbdOptions } from './nbd-options.ts';
import {
  CMD,
  CMD_FLAG_NO_HOLE,
  ESHUTDOWN,
  REPLY_BYTES,
  REPLY_MAGIC,
  REQUEST_BYTES,
  REQUEST_MAGIC,
} from './nbd-spec.ts';
import { type LoggedWrite, WriteLog } from './write-log.ts';

const SEND_BYTES = 256 * 1024;
const RETRY_MAX_MS = 5000;
const FAIL_AFTER_MS = 60_000;
/** A server that has not answered by then is not waited for when the disk is closed. */
const CLOSE_PATIENCE_MS = 5000;
const ABILITIES =
  NBD_FLAG.readOnly | NBD_FLAG.sendFlush | NBD_FLAG.sendTrim | NBD_FLAG.sendWriteZeroes;
/** Most bytes of a request without data. */
const MAX_RANGE_BYTES = 1 << 30;
const MAX_SEGMENTS = 1024;
const LOG_ENTRIES = 16 * 1024;

/** Life of a request. */
const FREE = 0;
/** Queued by the device, waiting for `submit`, for the wire, or for the next connection. */
const WAITING = 1;
/** On the wire; its reply is outstanding. */
const SENT = 2;
/** Acknowledged, but the log has no room: done when a flush is. */
const UNLOGGED = 3;

/** Connects; VmmError NBD_* when the server is not there, refuses, or is not NBD. */
export async function openNbd(
  memory: GuestMemory,
  log: Logger,
  options: NbdOptions,
): Promise<NbdDisk> {
  const { name } = options;
  try {
    const connection = await connect(options, options.connectMs ?? 10_000);
    return new NbdDisk(memory, log, options, connection);
  } catch (error) {
    if (error instanceof VmmError) throw error;
    throw new VmmError('NBD_CONNECT', `cannot open disk ${name}: ${messageOf(error)}`, {
      hint: 'Is the server running on that address? For example: qemu-nbd --socket=/tmp/disk.sock --persistent disk.qcow2',
      cause: error,
    });
  }
}

export class NbdDisk implements BlockBackend {
  readonly info: BlockInfo;
  readonly #memory: GuestMemory;
  readonly #log: Logger;
  readonly #options: NbdOptions;
  readonly #completions: Completions;
  readonly #flags: number;
  readonly #maxPayload: number;

  // Requests, by tag. Two more belong to this client: its own flush, and the replay of a remembered write.
  readonly #flushTag: number;
  readonly #replayTag: number;
  readonly #state: Uint8Array;
  readonly #op: Uint8Array;
  readonly #offset: Float64Array;
  readonly #length: Float64Array;
  readonly #done: Float64Array;
  /** Bytes of the part that is on the wire. */
  readonly #part: Float64Array;
  readonly #order: Float64Array;
  readonly #logEnd: Float64Array;
  /** When a write that waits for a flush was acknowledged, and when a flush was sent (numbers of {@link #sequence}). */
  readonly #stamp: Float64Array;
  readonly #segmentCount: Uint32Array;
  readonly #addresses: (Float64Array | undefined)[];
  readonly #lengths: (Uint32Array | undefined)[];
  #sequence = 0;

  /** Tags that wait for the wire, oldest first, in a ring. */
  readonly #pending: Uint32Array;
  #pendingHead = 0;
  #pendingCount = 0;
  #batched: number[] = [];
  readonly #failedTags: number[] = [];
  readonly #failedResults: number[] = [];
  #failing = false;

  // Sending.
  #socket: Socket | undefined;
  #filling = Buffer.alloc(SEND_BYTES);
  #writing = Buffer.alloc(SEND_BYTES);
  #filled = 0;
  #busy = false;
  /** Tag whose data is being copied into send buffers, or -1, and how much of its part is still to be copied. */
  #sendTag = -1;
  #sendLeft = 0;
  #sendSegment = 0;
  #sendOffset = 0;
  #replayData: Uint8Array | undefined;

  // Receiving.
  readonly #header = Buffer.alloc(REPLY_BYTES);
  #headerBytes = 0;
  #readTag = -1;
  #readLeft = 0;
  #readSegment = 0;
  #readOffset = 0;

  // Writes not yet durable, connection life.
  readonly #writes: WriteLog;
  readonly #logged: LoggedWrite = { op: 0, offsetBytes: 0, lengthBytes: 0 };
  #replayNext = 0;
  #replayEnd = 0;
  #lostWrites = false;
  #generation = 0;
  #retryMs: number;
  #retry: NodeJS.Timeout | undefined;
  #giveUp: NodeJS.Timeout | undefined;
  /** Runs from the last byte either way; a server that owes answers when it ends counts as away. */
  #silence: NodeJS.Timeout | undefined;
  readonly #silenceMs: number;
  #away = false;
  #closed = false;

  constructor(memory: GuestMemory, log: Logger, options: NbdOptions, connection: Connection) {
    const { found } = connection;
    const maxRequests = options.maxRequests ?? 128;
    const blockSizeBytes = Math.max(512, found.minBlockBytes);
    const sizeBytes = found.sizeBytes - (found.sizeBytes % blockSizeBytes);
    if (sizeBytes === 0) {
      connection.socket.destroy();
      throw new VmmError('DISK_EMPTY', `${options.name} has no content: less than one sector`);
    }
    if (options.readonly !== true && (found.flags & NBD_FLAG.readOnly) !== 0) {
      connection.socket.destroy();
      throw new VmmError('DISK_READONLY', `the server offers ${options.name} read-only`, {
        hint: 'Add readonly to the disk option, or let the server export it for writing.',
      });
    }
    this.#memory = memory;
    this.#log = log;
    this.#options = options;
    this.#silenceMs = Math.min(options.failAfterMs ?? FAIL_AFTER_MS, FAIL_AFTER_MS) / 2;
    this.#flags = found.flags & ABILITIES;
    this.#maxPayload = found.maxPayloadBytes - (found.maxPayloadBytes % blockSizeBytes);
    this.#retryMs = options.retryMs ?? 100;
    this.info = {
      name: options.name,
      sizeBytes,
      blockSizeBytes,
      physicalBlockSizeBytes: Math.max(blockSizeBytes, Math.min(found.preferredBlockBytes, 65536)),
      readonly: options.readonly === true,
      volatileCache: (found.flags & NBD_FLAG.sendFlush) !== 0,
      discard: (found.flags & NBD_FLAG.sendTrim) !== 0,
      writeZeroes: (found.flags & NBD_FLAG.sendWriteZeroes) !== 0,
      maxRequests,
      maxSegments: MAX_SEGMENTS,
      maxTransferBytes: 64 * 1024 * 1024,
    };
    const slots = maxRequests + 2;
    this.#flushTag = maxRequests;
    this.#replayTag = maxRequests + 1;
    this.#state = new Uint8Array(slots);
    this.#op = new Uint8Array(slots);
    this.#offset = new Float64Array(slots);
    this.#length = new Float64Array(slots);
    this.#done = new Float64Array(slots);
    this.#part = new Float64Array(slots);
    this.#order = new Float64Array(slots);
    this.#logEnd = new Float64Array(slots);
    this.#stamp = new Float64Array(slots);
    this.#segmentCount = new Uint32Array(slots);
    this.#addresses = new Array<Float64Array | undefined>(slots).fill(undefined);
    this.#lengths = new Array<Uint32Array | undefined>(slots).fill(undefined);
    this.#pending = new Uint32Array(slots);
    this.#completions = new Completions(maxRequests);
    this.#writes = new WriteLog(options.logBytes ?? 32 * 1024 * 1024, LOG_ENTRIES);
    this.#adopt(connection.socket);
  }

  get inFlight(): number {
    return this.#completions.inFlight;
  }

  /** Whether the server is there now. */
  get connected(): boolean {
    return this.#socket !== undefined;
  }

  setHandler(handler: BlockHandler): void {
    this.#completions.setHandler(handler);
  }

  queue(
    tag: number,
    op: BlockOp,
    offsetBytes: number,
    lengthBytes: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void {
    this.#completions.begin(tag);
    this.#op[tag] = op;
    this.#offset[tag] = offsetBytes;
    this.#length[tag] = lengthBytes;
    this.#done[tag] = 0;
    this.#state[tag] = WAITING;
    this.#segmentCount[tag] = count;
    if ((this.#addresses[tag]?.length ?? 0) < count) {
      const room = Math.max(8, 2 ** Math.ceil(Math.log2(count)));
      this.#addresses[tag] = new Float64Array(room);
      this.#lengths[tag] = new Uint32Array(room);
    }
    for (let i = 0; i < count; i++) {
      this.#addresses[tag]![i] = addresses[first + i]!;
      this.#lengths[tag]![i] = lengths[first + i]!;
    }
    const wrong = this.#check(tag);
    if (wrong !== ERRNO.OK) this.#fail(tag, wrong);
    else if (this.#isDoneAlready(tag)) this.#fail(tag, ERRNO.OK);
    else if (this.#failing) this.#fail(tag, ERRNO.EIO);
    else this.#batched.push(tag);
  }

  submit(): void {
    for (const tag of this.#batched) this.#enqueue(tag);
    this.#batched.length = 0;
    this.#pump();
    this.#deliverFailed();
  }

  poll(): number {
    return 0;
  }

  drain(done: () => void): void {
    this.#completions.drain(done);
  }

  /** Ends the connection, so that no answer can come any more; remembered writes go out again on the next one. */
  abandon(): void {
    const socket = this.#socket;
    if (socket !== undefined) {
      if (this.inFlight === 0) return;
      this.#log.warn(`${this.info.name}: the server does not answer; its requests are given up`);
      socket.destroy();
      this.#disconnected(socket);
    }
    this.#failAll(ERRNO.ECANCELED);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    if (this.#socket === undefined) this.#giveUpNow();
    const patience = setTimeout(() => this.abandon(), CLOSE_PATIENCE_MS);
    await this.#completions.close();
    clearTimeout(patience);
    this.#closed = true;
    clearTimeout(this.#retry);
    clearTimeout(this.#giveUp);
    clearTimeout(this.#silence);
    const socket = this.#socket;
    this.#socket = undefined;
    if (socket === undefined) return;
    const goodbye = Buffer.alloc(REQUEST_BYTES);
    goodbye.writeUInt32BE(REQUEST_MAGIC, 0);
    goodbye.writeUInt16BE(CMD.disconnect, 6);
    await new Promise<void>((resolve) => {
      const late = setTimeout(resolve, 1000);
      socket.once('close', () => {
        clearTimeout(late);
        resolve();
      });
      socket.resume();
      socket.end(goodbye);
    });
    socket.destroy();
  }

  // Requests

  #check(tag: number): number {
    const op = this.#op[tag]!;
    const offset = this.#offset[tag]!;
    const length = this.#length[tag]!;
    const { sizeBytes, blockSizeBytes, readonly, maxTransferBytes } = this.info;
    if (op !== BLOCK_OP.read && op !== BLOCK_OP.flush && readonly) return ERRNO.EROFS;
    if (op === BLOCK_OP.flush) return ERRNO.OK;
    if (!(offset >= 0 && length >= 0 && offset + length <= sizeBytes)) return ERRNO.EINVAL;
    if (offset % blockSizeBytes !== 0 || length % blockSizeBytes !== 0) return ERRNO.EINVAL;
    if (op !== BLOCK_OP.read && op !== BLOCK_OP.write) return ERRNO.OK;
    if (length > maxTransferBytes) return ERRNO.EINVAL;
    let total = 0;
    for (let i = 0; i < this.#segmentCount[tag]!; i++) {
      const bytes = this.#lengths[tag]![i]!;
      if (bytes > 0 && !this.#memory.contains(this.#addresses[tag]![i]!, bytes))
        return ERRNO.EFAULT;
      total += bytes;
    }
    return total === length ? ERRNO.OK : ERRNO.EINVAL;
  }

  /** Requests that need nothing from the server. */
  #isDoneAlready(tag: number): boolean {
    const op = this.#op[tag]!;
    if (op === BLOCK_OP.flush) return !this.info.volatileCache;
    if (this.#length[tag] === 0) return true;
    return op === BLOCK_OP.discard && !this.info.discard;
  }

  /** Completes a request at the end of this turn of the loop. */
  #fail(tag: number, result: number): void {
    this.#failedTags.push(tag);
    this.#failedResults.push(result);
  }

  #deliverFailed(): void {
    if (this.#failedTags.length === 0) return;
    setImmediate(() => {
      if (this.#failedTags.length === 0) return;
      const tags = this.#failedTags.splice(0);
      const results = this.#failedResults.splice(0);
      this.#completions.start();
      for (let i = 0; i < tags.length; i++) this.#complete(tags[i]!, results[i]!);
      this.#completions.end();
    });
  }

  #complete(tag: number, result: number): void {
    this.#state[tag] = FREE;
    this.#completions.deliver(tag, result);
  }

  #enqueue(tag: number): void {
    if (this.#done[tag] === 0) this.#order[tag] = this.#sequence++;
    this.#state[tag] = WAITING;
    this.#pending[(this.#pendingHead + this.#pendingCount) % this.#pending.length] = tag;
    this.#pendingCount++;
  }

  // Sending

  /** Fills the free buffer with requests and writes it, as long as there is something to send. */
  #pump(): void {
    const socket = this.#socket;
    if (socket === undefined || this.#busy) return;
    while (this.#filled < SEND_BYTES) {
      if (this.#sendTag >= 0) {
        this.#copyData();
        continue;
      }
      if (this.#pendingCount === 0 || this.#filled + REQUEST_BYTES > SEND_BYTES) break;
      // While remembered writes are written again, nothing else goes out: it could overtake them.
      const tag = this.#pending[this.#pendingHead]!;
      if (this.#replaying && tag !== this.#replayTag) break;
      this.#pendingHead = (this.#pendingHead + 1) % this.#pending.length;
      this.#pendingCount--;
      this.#putRequest(tag);
    }
    if (this.#filled === 0) return;
    const full = this.#filling;
    const bytes = this.#filled;
    this.#filling = this.#writing;
    this.#writing = full;
    this.#filled = 0;
    this.#busy = true;
    this.#silence ??= setTimeout(() => this.#silent(), this.#silenceMs).unref();
    this.#silence.refresh();
    socket.write(full.subarray(0, bytes), () => {
      if (this.#socket !== socket) return;
      this.#busy = false;
      this.#pump();
    });
  }

  get #replaying(): boolean {
    return this.#replayNext < this.#replayEnd;
  }

  /** Sends the header of a request's next part and gets ready to send its data. */
  #putRequest(tag: number): void {
    const op = this.#op[tag]!;
    const zeroing = op === BLOCK_OP.writeZeroes || op === BLOCK_OP.writeZeroesUnmap;
    let command: number = CMD.trim;
    let flags = 0;
    if (op === BLOCK_OP.read) command = CMD.read;
    else if (op === BLOCK_OP.write) command = CMD.write;
    else if (op === BLOCK_OP.flush) command = CMD.flush;
    else if (zeroing) {
      command = this.info.writeZeroes ? CMD.writeZeroes : CMD.write;
      if (op === BLOCK_OP.writeZeroes && this.info.writeZeroes) flags = CMD_FLAG_NO_HOLE;
    }
    const hasData = command === CMD.read || command === CMD.write;
    const done = this.#done[tag]!;
    const part = Math.min(this.#length[tag]! - done, hasData ? this.#maxPayload : MAX_RANGE_BYTES);
    this.#part[tag] = part;
    this.#state[tag] = SENT;
    if (op === BLOCK_OP.flush) {
      this.#logEnd[tag] = this.#writes.end;
      this.#stamp[tag] = this.#sequence++;
    }

    const out = this.#filling;
    const at = this.#filled;
    const offset = op === BLOCK_OP.flush ? 0 : this.#offset[tag]! + done;
    out.writeUInt32BE(REQUEST_MAGIC, at);
    out.writeUInt16BE(flags, at + 4);
    out.writeUInt16BE(command, at + 6);
    out.writeUInt32BE(this.#generation, at + 8);
    out.writeUInt32BE(tag, at + 12);
    out.writeUInt32BE(Math.floor(offset / 0x1_0000_0000), at + 16);
    out.writeUInt32BE(offset % 0x1_0000_0000, at + 20);
    out.writeUInt32BE(part, at + 24);
    this.#filled = at + REQUEST_BYTES;
    if (command !== CMD.write) return;
    this.#sendTag = tag;
    this.#sendLeft = part;
    this.#sendSegment = 0;
    this.#sendOffset = done;
    if (zeroing || tag === this.#replayTag) return;
    while (this.#sendOffset >= this.#lengths[tag]![this.#sendSegment]!) {
      this.#sendOffset -= this.#lengths[tag]![this.#sendSegment]!;
      this.#sendSegment++;
    }
  }

  #copyData(): void {
    const tag = this.#sendTag;
    const op = this.#op[tag]!;
    const room = Math.min(this.#sendLeft, SEND_BYTES - this.#filled);
    let n = room;
    if (op !== BLOCK_OP.write) {
      this.#filling.fill(0, this.#filled, this.#filled + n);
    } else if (tag === this.#replayTag) {
      const from = this.#sendOffset;
      this.#filling.set(this.#replayData!.subarray(from, from + n), this.#filled);
      this.#sendOffset += n;
    } else {
      const length = this.#lengths[tag]![this.#sendSegment]!;
      n = Math.min(room, length - this.#sendOffset);
      const address = this.#addresses[tag]![this.#sendSegment]! + this.#sendOffset;
      this.#memory.read(address, this.#filling, this.#filled, n);
      this.#sendOffset += n;
      if (this.#sendOffset === length) {
        this.#sendSegment++;
        this.#sendOffset = 0;
      }
    }
    this.#filled += n;
    this.#sendLeft -= n;
    if (this.#sendLeft === 0) this.#sendTag = -1;
  }

  // Receiving

  #data(chunk: Buffer): void {
    this.#silence?.refresh();
    if (this.#giveUp !== undefined) this.#heard();
    this.#completions.start();
    let at = 0;
    while (at < chunk.length && this.#socket !== undefined) {
      if (this.#readTag >= 0) {
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
    this.#completions.end();
    this.#pump();
  }

  #reply(): void {
    const error = this.#header.readUInt32BE(4);
    const tag = this.#header.readUInt32BE(12);
    const known =
      this.#header.readUInt32BE(0) === REPLY_MAGIC &&
      this.#header.readUInt32BE(8) === this.#generation &&
      tag < this.#state.length &&
      this.#state[tag] === SENT &&
      tag !== this.#sendTag;
    if (!known) {
      this.#log.warn(`${this.info.name}: the server answers what was not asked; connecting again`);
      this.#socket!.destroy();
      this.#disconnected(this.#socket!);
      return;
    }
    if (error === ESHUTDOWN) {
      this.#socket!.destroy();
      this.#disconnected(this.#socket!);
      return;
    }
    if (error !== 0) {
      this.#finish(tag, error < 4096 ? error : ERRNO.EIO);
      return;
    }
    if (this.#op[tag] === BLOCK_OP.read) {
      this.#readTag = tag;
      this.#readLeft = this.#part[tag]!;
      this.#readSegment = 0;
      this.#readOffset = this.#done[tag]!;
      while (this.#readOffset >= this.#lengths[tag]![this.#readSegment]!) {
        this.#readOffset -= this.#lengths[tag]![this.#readSegment]!;
        this.#readSegment++;
      }
      return;
    }
    this.#partDone(tag);
  }

  /** Moves received data straight into guest memory; how many bytes it took. */
  #takeData(chunk: Buffer, at: number): number {
    const tag = this.#readTag;
    const length = this.#lengths[tag]![this.#readSegment]!;
    const n = Math.min(this.#readLeft, chunk.length - at, length - this.#readOffset);
    const address = this.#addresses[tag]![this.#readSegment]! + this.#readOffset;
    this.#memory.write(address, chunk, at, n);
    this.#readOffset += n;
    this.#readLeft -= n;
    if (this.#readOffset === length) {
      this.#readSegment++;
      this.#readOffset = 0;
    }
    if (this.#readLeft === 0) {
      this.#readTag = -1;
      this.#partDone(tag);
    }
    return n;
  }

  #partDone(tag: number): void {
    this.#done[tag]! += this.#part[tag]!;
    if (this.#done[tag]! < this.#length[tag]!) this.#enqueue(tag);
    else this.#finish(tag, ERRNO.OK);
  }

  #finish(tag: number, result: number): void {
    if (tag === this.#replayTag) {
      this.#replayed(result);
      return;
    }
    const op = this.#op[tag]!;
    if (op === BLOCK_OP.flush) {
      this.#flushed(tag, result);
      return;
    }
    if (result === ERRNO.OK && op !== BLOCK_OP.read && this.info.volatileCache) {
      const dataBytes = op === BLOCK_OP.write ? this.#length[tag]! : 0;
      if (!this.#writes.fits(dataBytes)) {
        this.#state[tag] = UNLOGGED;
        this.#stamp[tag] = this.#sequence++;
        this.#ownFlush();
        return;
      }
      this.#remember(tag);
    }
    this.#complete(tag, result);
  }

  // Durability

  #remember(tag: number): void {
    this.#writes.add(this.#op[tag]!, this.#offset[tag]!, this.#length[tag]!);
    if (this.#op[tag] !== BLOCK_OP.write) return;
    for (let i = 0; i < this.#segmentCount[tag]!; i++)
      this.#writes.addData(this.#memory, this.#addresses[tag]![i]!, this.#lengths[tag]![i]!);
  }

  #ownFlush(): void {
    if (this.#state[this.#flushTag] !== FREE) return;
    this.#op[this.#flushTag] = BLOCK_OP.flush;
    this.#length[this.#flushTag] = 0;
    this.#done[this.#flushTag] = 0;
    this.#enqueue(this.#flushTag);
  }

  #flushed(tag: number, result: number): void {
    if (result === ERRNO.OK) this.#writes.drop(this.#logEnd[tag]!);
    if (tag !== this.#flushTag) {
      const failed = this.#lostWrites ? ERRNO.EIO : result;
      if (result === ERRNO.OK) this.#lostWrites = false;
      this.#complete(tag, failed);
      return;
    }
    // Our own: lets the writes go that it covers. One that was acknowledged after the flush was sent fits into the log
    // now, or waits for the next flush.
    this.#state[tag] = FREE;
    for (let waiting = 0; waiting < this.info.maxRequests; waiting++) {
      if (this.#state[waiting] !== UNLOGGED) continue;
      const dataBytes = this.#op[waiting] === BLOCK_OP.write ? this.#length[waiting]! : 0;
      if (result !== ERRNO.OK || this.#stamp[waiting]! < this.#stamp[tag]!) {
        this.#complete(waiting, result);
      } else if (this.#writes.fits(dataBytes)) {
        this.#remember(waiting);
        this.#complete(waiting, ERRNO.OK);
      } else {
        this.#ownFlush();
      }
    }
  }

  #replayed(result: number): void {
    this.#state[this.#replayTag] = FREE;
    if (result !== ERRNO.OK) {
      this.#log.error(
        `${this.info.name}: a write from before the connection was lost could not be repeated (error ${result}); the guest's next flush reports it`,
      );
      this.#lostWrites = true;
    }
    this.#replayNext++;
    this.#startReplay();
  }

  #startReplay(): void {
    this.#replayData = undefined;
    if (!this.#replaying) return;
    const tag = this.#replayTag;
    this.#writes.entry(this.#replayNext, this.#logged);
    this.#op[tag] = this.#logged.op;
    this.#offset[tag] = this.#logged.offsetBytes;
    this.#length[tag] = this.#logged.lengthBytes;
    this.#done[tag] = 0;
    if (this.#logged.op === BLOCK_OP.write) this.#replayData = this.#writes.data(this.#replayNext);
    // Before everything else that waits.
    this.#state[tag] = WAITING;
    this.#pendingHead = (this.#pendingHead + this.#pending.length - 1) % this.#pending.length;
    this.#pending[this.#pendingHead] = tag;
    this.#pendingCount++;
  }

  // Connection

  #adopt(socket: Socket): void {
    this.#socket = socket;
    this.#generation = (this.#generation + 1) >>> 0;
    this.#retryMs = this.#options.retryMs ?? 100;
    this.#failing = false;
    // With requests that wait, only an answer shows that the server is back.
    if (this.inFlight === 0) this.#heard();
    socket.on('data', (chunk: Buffer) => {
      if (this.#socket === socket) this.#data(chunk);
    });
    socket.on('close', () => this.#disconnected(socket));
    socket.resume();
    if (this.#away) {
      this.#away = false;
      this.#log.info(`${this.info.name}: connected again`);
    }
    this.#pump();
  }

  /** A host that is gone says nothing, and the system would wait for it for a quarter of an hour. */
  #silent(): void {
    this.#silence = undefined;
    const socket = this.#socket;
    if (socket === undefined || !this.#state.includes(SENT)) return;
    socket.destroy();
    this.#disconnected(socket, this.#silenceMs);
  }

  /** @param waitedMs how long its requests have waited already */
  #disconnected(socket: Socket, waitedMs = 0): void {
    if (this.#socket !== socket || this.#closed) return;
    this.#socket = undefined;
    this.#away = true;
    this.#log.warn(`${this.info.name}: the server is away; requests wait`);
    this.#busy = false;
    this.#filled = 0;
    this.#sendTag = -1;
    this.#readTag = -1;
    this.#headerBytes = 0;
    this.#requeue();
    const wait = this.#options.failAfterMs ?? FAIL_AFTER_MS;
    if (wait !== Number.POSITIVE_INFINITY && this.#giveUp === undefined) {
      this.#giveUp = setTimeout(() => this.#giveUpNow(), wait - waitedMs);
      this.#giveUp.unref();
    }
    this.#scheduleRetry();
  }

  /** Everything that was sent, or waits, goes out again in the order it was queued, after the remembered writes. */
  #requeue(): void {
    const tags: number[] = [];
    const batched = new Set(this.#batched);
    for (let tag = 0; tag <= this.#flushTag; tag++) {
      if (this.#state[tag] === FREE || batched.has(tag) || this.#failedTags.includes(tag)) continue;
      this.#done[tag] = 0;
      tags.push(tag);
    }
    tags.sort((a, b) => this.#order[a]! - this.#order[b]!);
    this.#pendingHead = 0;
    this.#pendingCount = 0;
    this.#state[this.#replayTag] = FREE;
    for (const tag of tags) this.#enqueue(tag);
    this.#replayNext = this.#writes.first;
    this.#replayEnd = this.#writes.end;
    this.#startReplay();
  }

  #scheduleRetry(): void {
    this.#retry = setTimeout(() => void this.#reconnect(), this.#retryMs);
    this.#retry.unref();
    this.#retryMs = Math.min(this.#retryMs * 2, RETRY_MAX_MS);
  }

  async #reconnect(): Promise<void> {
    try {
      const { socket, found } = await connect(this.#options, 5000);
      if (this.#closed) {
        socket.destroy();
        return;
      }
      const size = found.sizeBytes - (found.sizeBytes % this.info.blockSizeBytes);
      if (size !== this.info.sizeBytes || (found.flags & ABILITIES) !== this.#flags) {
        socket.destroy();
        throw new Error('the export is not the same any more (size or abilities differ)');
      }
      this.#adopt(socket);
    } catch (error) {
      this.#log.debug(`${this.info.name}: ${messageOf(error)}`);
      if (!this.#closed) this.#scheduleRetry();
    }
  }

  #heard(): void {
    clearTimeout(this.#giveUp);
    this.#giveUp = undefined;
  }

  #giveUpNow(): void {
    const socket = this.#socket;
    if (socket !== undefined) {
      socket.destroy();
      this.#disconnected(socket);
    }
    this.#heard();
    this.#log.error(`${this.info.name}: no server; the guest's requests fail until it is back`);
    this.#failing = true;
    this.#failAll(ERRNO.EIO);
  }

  /** Every request that was given to this client completes with `result`. */
  #failAll(result: number): void {
    assert(this.#socket === undefined, 'gives up only while the server is away');
    this.#pendingHead = 0;
    this.#pendingCount = 0;
    this.#state[this.#flushTag] = FREE;
    const batched = new Set(this.#batched);
    for (let tag = 0; tag < this.info.maxRequests; tag++) {
      if (this.#state[tag] === FREE || batched.has(tag) || this.#failedTags.includes(tag)) continue;
      this.#fail(tag, result);
    }
    this.#state[this.#replayTag] = FREE;
    this.#startReplay();
    this.#deliverFailed();
  }
}
