/**
 * A disk on a network block device server (NBD protocol, transmission phase with simple replies): qemu-nbd, nbdkit and
 * qemu-storage-daemon bring qcow2, Ceph and others this way.
 *
 * When the connection breaks, or the server owes answers and says nothing for half of `failAfterMs`, requests stay in flight and are sent again on the next one (the guest waits); after
 * `failAfterMs` without a server they fail with EIO, and later ones at once, until it is back. Writes that were
 * acknowledged but not flushed are remembered (bounded; at the bound this client flushes on its own) and written again
 * first, so that a flush that the guest sees done covers them even if the server lost its cache.
 *
 * Bounded: `maxRequests` requests, two send buffers, nothing buffered on the receiving side. What goes over the wire is made in
 * nbd-sender.ts and read in nbd-receiver.ts.
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
import { NbdReceiver } from './nbd-receiver.ts';
import { NbdRequests, REQUEST } from './nbd-requests.ts';
import { NbdSender } from './nbd-sender.ts';
import { CMD, REQUEST_BYTES, REQUEST_MAGIC } from './nbd-spec.ts';
import { type LoggedWrite, WriteLog } from './write-log.ts';

const RETRY_MAX_MS = 5000;
const FAIL_AFTER_MS = 60_000;
/** A server that has not answered by then is not waited for when the disk is closed. */
const CLOSE_PATIENCE_MS = 5000;
const ABILITIES =
  NBD_FLAG.readOnly | NBD_FLAG.sendFlush | NBD_FLAG.sendTrim | NBD_FLAG.sendWriteZeroes;
const MAX_SEGMENTS = 1024;
const LOG_ENTRIES = 16 * 1024;

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

  // Requests, by tag. Two more belong to this client: its own flush, and the replay of a remembered write.
  readonly #flushTag: number;
  readonly #replayTag: number;
  readonly #requests: NbdRequests;
  readonly #logEnd: Float64Array;
  /** When a write that waits for a flush was acknowledged, and when a flush was sent (numbers of {@link NbdRequests.stamp}). */
  readonly #stamp: Float64Array;
  #batched: number[] = [];
  readonly #failedTags: number[] = [];
  readonly #failedResults: number[] = [];
  #failing = false;

  // The wire.
  #socket: Socket | undefined;
  readonly #sender: NbdSender;
  readonly #receiver: NbdReceiver;
  #replayData: Uint8Array | undefined;

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
    this.#requests = new NbdRequests(slots);
    this.#logEnd = new Float64Array(slots);
    this.#stamp = new Float64Array(slots);
    const maxPayload = found.maxPayloadBytes - (found.maxPayloadBytes % blockSizeBytes);
    const limits = { maxPayload, writeZeroes: this.info.writeZeroes };
    this.#sender = new NbdSender(this.#requests, memory, limits, {
      next: () => this.#next(),
      data: (tag) => (tag === this.#replayTag ? this.#replayData : undefined),
      wrote: () => {
        this.#silence ??= setTimeout(() => this.#silent(), this.#silenceMs).unref();
        this.#silence.refresh();
      },
    });
    this.#receiver = new NbdReceiver(this.#requests, memory, {
      expects: (tag) => this.#requests.state[tag] === REQUEST.sent && !this.#sender.isSending(tag),
      partDone: (tag) => this.#partDone(tag),
      failed: (tag, error) => this.#finish(tag, error),
      broken: (isNonsense) => this.#broken(isNonsense),
    });
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
    const { kept, state, done } = this.#requests;
    kept.keep(tag, op, offsetBytes, lengthBytes, addresses, lengths, first, count);
    done[tag] = 0;
    state[tag] = REQUEST.waiting;
    const wrong = this.#requests.check(tag, this.info, this.#memory);
    if (wrong !== ERRNO.OK) this.#fail(tag, wrong);
    else if (this.#isDoneAlready(tag)) this.#fail(tag, ERRNO.OK);
    else if (this.#failing) this.#fail(tag, ERRNO.EIO);
    else this.#batched.push(tag);
  }

  submit(): void {
    for (const tag of this.#batched) this.#requests.push(tag);
    this.#batched.length = 0;
    this.#sender.pump();
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
    this.#sender.stop();
    this.#receiver.stop();
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

  /** Requests that need nothing from the server. */
  #isDoneAlready(tag: number): boolean {
    const op = this.#requests.kept.op[tag]!;
    if (op === BLOCK_OP.flush) return !this.info.volatileCache;
    if (this.#requests.kept.length[tag] === 0) return true;
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
    this.#requests.state[tag] = REQUEST.free;
    this.#completions.deliver(tag, result);
  }

  // The wire

  /** The request that goes out now. */
  #next(): number {
    const requests = this.#requests;
    const tag = requests.next;
    // While remembered writes are written again, nothing else goes out: it could overtake them.
    if (tag < 0 || (this.#replaying && tag !== this.#replayTag)) return -1;
    requests.shift();
    if (requests.kept.op[tag] === BLOCK_OP.flush) {
      this.#logEnd[tag] = this.#writes.end;
      this.#stamp[tag] = requests.stamp();
    }
    return tag;
  }

  get #replaying(): boolean {
    return this.#replayNext < this.#replayEnd;
  }

  #data(chunk: Buffer): void {
    this.#silence?.refresh();
    if (this.#giveUp !== undefined) this.#heard();
    this.#completions.start();
    this.#receiver.take(chunk);
    this.#completions.end();
    this.#sender.pump();
  }

  #broken(isNonsense: boolean): void {
    if (isNonsense) {
      this.#log.warn(`${this.info.name}: the server answers what was not asked; connecting again`);
    }
    const socket = this.#socket!;
    socket.destroy();
    this.#disconnected(socket);
  }

  #partDone(tag: number): void {
    const { kept, done, part } = this.#requests;
    done[tag]! += part[tag]!;
    if (done[tag]! < kept.length[tag]!) this.#requests.push(tag);
    else this.#finish(tag, ERRNO.OK);
  }

  #finish(tag: number, result: number): void {
    if (tag === this.#replayTag) {
      this.#replayed(result);
      return;
    }
    const op = this.#requests.kept.op[tag]!;
    if (op === BLOCK_OP.flush) {
      this.#flushed(tag, result);
      return;
    }
    if (result === ERRNO.OK && op !== BLOCK_OP.read && this.info.volatileCache) {
      const dataBytes = op === BLOCK_OP.write ? this.#requests.kept.length[tag]! : 0;
      if (!this.#writes.fits(dataBytes)) {
        this.#requests.state[tag] = REQUEST.unlogged;
        this.#stamp[tag] = this.#requests.stamp();
        this.#ownFlush();
        return;
      }
      this.#remember(tag);
    }
    this.#complete(tag, result);
  }

  // Durability

  #remember(tag: number): void {
    const { kept } = this.#requests;
    this.#writes.add(kept.op[tag]!, kept.offset[tag]!, kept.length[tag]!);
    if (kept.op[tag] !== BLOCK_OP.write) return;
    const addresses = kept.addresses(tag);
    const lengths = kept.lengths(tag);
    for (let i = 0; i < kept.count[tag]!; i++)
      this.#writes.addData(this.#memory, addresses[i]!, lengths[i]!);
  }

  #ownFlush(): void {
    if (this.#requests.state[this.#flushTag] !== REQUEST.free) return;
    this.#requests.kept.note(this.#flushTag, BLOCK_OP.flush, 0, 0);
    this.#requests.done[this.#flushTag] = 0;
    this.#requests.push(this.#flushTag);
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
    this.#requests.state[tag] = REQUEST.free;
    for (let waiting = 0; waiting < this.info.maxRequests; waiting++) {
      if (this.#requests.state[waiting] !== REQUEST.unlogged) continue;
      const dataBytes =
        this.#requests.kept.op[waiting] === BLOCK_OP.write
          ? this.#requests.kept.length[waiting]!
          : 0;
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
    this.#requests.state[this.#replayTag] = REQUEST.free;
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
    const { op, offsetBytes, lengthBytes } = this.#logged;
    this.#requests.kept.note(tag, op, offsetBytes, lengthBytes);
    this.#requests.done[tag] = 0;
    if (op === BLOCK_OP.write) this.#replayData = this.#writes.data(this.#replayNext);
    // Before everything else that waits.
    this.#requests.pushFirst(tag);
  }

  // Connection

  #adopt(socket: Socket): void {
    this.#socket = socket;
    this.#generation = (this.#generation + 1) >>> 0;
    this.#retryMs = this.#options.retryMs ?? 100;
    this.#failing = false;
    // With requests that wait, only an answer shows that the server is back.
    if (this.inFlight === 0) this.#heard();
    this.#sender.start(socket, this.#generation);
    this.#receiver.start(this.#generation);
    socket.on('data', (chunk: Buffer) => {
      if (this.#socket === socket) this.#data(chunk);
    });
    socket.on('close', () => this.#disconnected(socket));
    socket.resume();
    if (this.#away) {
      this.#away = false;
      this.#log.info(`${this.info.name}: connected again`);
    }
    this.#sender.pump();
  }

  /** A host that is gone says nothing, and the system would wait for it for a quarter of an hour. */
  #silent(): void {
    this.#silence = undefined;
    const socket = this.#socket;
    if (socket === undefined || !this.#requests.state.includes(REQUEST.sent)) return;
    socket.destroy();
    this.#disconnected(socket, this.#silenceMs);
  }

  /** @param waitedMs how long its requests have waited already */
  #disconnected(socket: Socket, waitedMs = 0): void {
    if (this.#socket !== socket || this.#closed) return;
    this.#socket = undefined;
    this.#away = true;
    this.#log.warn(`${this.info.name}: the server is away; requests wait`);
    this.#sender.stop();
    this.#receiver.stop();
    this.#requeue();
    const wait = this.#options.failAfterMs ?? FAIL_AFTER_MS;
    if (wait !== Number.POSITIVE_INFINITY && this.#giveUp === undefined) {
      this.#giveUp = setTimeout(() => this.#giveUpNow(), wait - waitedMs);
      this.#giveUp.unref();
    }
    this.#scheduleRetry();
  }

  /** Tags up to `last` of requests that were submitted and have no result yet. */
  #begun(last: number): number[] {
    const batched = new Set(this.#batched);
    const tags: number[] = [];
    for (let tag = 0; tag <= last; tag++) {
      if (this.#requests.state[tag] === REQUEST.free) continue;
      if (!batched.has(tag) && !this.#failedTags.includes(tag)) tags.push(tag);
    }
    return tags;
  }

  /** Everything that was sent, or waits, goes out again in the order it was queued, after the remembered writes. */
  #requeue(): void {
    const tags = this.#begun(this.#flushTag);
    for (const tag of tags) this.#requests.done[tag] = 0;
    tags.sort((a, b) => this.#requests.order[a]! - this.#requests.order[b]!);
    this.#requests.clear();
    this.#requests.state[this.#replayTag] = REQUEST.free;
    for (const tag of tags) this.#requests.push(tag);
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
    this.#requests.clear();
    this.#requests.state[this.#flushTag] = REQUEST.free;
    for (const tag of this.#begun(this.info.maxRequests - 1)) this.#fail(tag, result);
    this.#requests.state[this.#replayTag] = REQUEST.free;
    this.#startReplay();
    this.#deliverFailed();
  }
}
