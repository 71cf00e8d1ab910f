/**
 * The primary's end of the transaction protocol. It decides what goes on the wire and when: HELLO, INIT, the
 * first copy (SYNC), transactions (BEGIN, CONTINUE, COMMIT or ATOMIC) with several of them in flight, their
 * ACKs in order, and what happens to those that are refused, cancelled or cut off. It never sees page
 * content and waits for nothing; the primary machine (primary.ts) owns it.
 *
 * Two numbers per checkpoint: its *epoch* counts captures and is never used twice; its *id* is what the wire
 * carries, and returns to use when a transaction did not commit. ids within a generation count up by one from
 * each committed transaction to the next.
 *
 * The next transaction may be begun ahead of its capture ({@link Sender.sendAhead}), so that pages which are not likely to change
 * any more are at the peer before the guest is stopped.
 *
 * States: down - hello - init - (sync) - stream - handing | ending - closed. Table: docs/replication.md.
 */
import { assert } from '../../base/assert.ts';
import type { DecodeFault } from '../wire/decoder.ts';
import { FAULT, type FaultCode, fault, faultSentence } from '../wire/fault.ts';
import type { Hello, Manifest, Message, NackMessage } from '../wire/message.ts';
import { type Agreement, negotiate } from '../wire/negotiate.ts';
import type { END_REASON } from '../wire/spec.ts';
import type { EffectQueue } from './effects.ts';

/** What the shell does for the sender. */
export type SenderEffect =
  /**
   * Put the message on the current connection, behind all earlier ones. Bulk messages (CONTINUE, SYNC) come
   * with the `chunk` handle that the shell gave; their `payload` is empty here.
   */
  | { readonly type: 'send'; readonly message: Message; readonly chunk: number }
  /** Send what was sent before, then close the connection. It counts as gone at once: no `disconnected` needed. */
  | { readonly type: 'close'; readonly code: FaultCode; readonly sentence: string }
  /** Both HELLOs are there and fit. Limits hold from here on. */
  | { readonly type: 'agreed'; readonly agreement: Agreement; readonly peer: Hello }
  /** The stream is open. `full`: begin the first copy; dirty logging must already be on. `resume`: go on. */
  | { readonly type: 'opened'; readonly mode: 'full' | 'resume' }
  /** Produce the chunks of this epoch now, then `sealed`. One epoch at a time. */
  | { readonly type: 'encode'; readonly epoch: number }
  /** The peer holds this epoch. Duty: only now may outputs it covers leave (R1). Its staging is free. */
  | {
      readonly type: 'acked';
      readonly epoch: number;
      readonly id: number;
      readonly atomic: boolean;
    }
  /**
   * These epochs (`fromEpoch` and all later ones) will not commit. Duty: their pages are dirty again, their
   * disk writes and held outputs belong to the next epoch, and no delta may be made against anything they
   * carried: the base of a page is what the last acked epoch left, or nothing.
   */
  | { readonly type: 'returned'; readonly fromEpoch: number; readonly code: FaultCode }
  /** The peer knows a higher generation: somebody else runs the guest. Duty: no output leaves any more (R3). */
  | { readonly type: 'superseded'; readonly generation: number }
  /** The peer will not have us, and trying again unchanged is pointless. */
  | { readonly type: 'refused'; readonly code: number; readonly sentence: string }
  /** The peer has confirmed END, or HANDOVER. */
  | { readonly type: 'ended' }
  | { readonly type: 'handed-over' };

/** The state of a {@link Sender}. */
export type SenderState =
  | 'down'
  | 'hello'
  | 'init'
  | 'sync'
  | 'stream'
  | 'handing'
  | 'ending'
  | 'closed';

interface Flight {
  readonly epoch: number;
  readonly id: number;
  atomic: boolean;
  bytes: number;
  /** `ahead`: begun before its capture, which is still to come. Only the last one, behind others that are `sent`. */
  stage: 'ahead' | 'queued' | 'sending' | 'sent';
  seq: number;
}

const EMPTY = new Uint8Array(0);

/** NACK codes that no retry mends. */
const HOPELESS: ReadonlySet<number> = new Set([
  FAULT.OTHER_VM,
  FAULT.OTHER_MACHINE,
  FAULT.OTHER_CPU,
  FAULT.PAGE_SIZE,
  FAULT.PROTOCOL_VERSION,
  FAULT.ROLE_CONFLICT,
  FAULT.POLICY_CONFLICT,
  FAULT.RESOURCE_MISSING,
  FAULT.LIMITS,
  FAULT.ENDED,
]);

/** The sender. Events are its methods; effects go to the queue given at construction. */
export class Sender {
  readonly #out: EffectQueue<SenderEffect>;
  readonly #hello: Hello;
  readonly #flights: Flight[] = [];
  #state: SenderState = 'down';
  #mode: 'full' | 'resume' = 'full';
  #agreement: Agreement | undefined;
  #peer: Hello | undefined;
  #nextEpoch = 1;
  #ackedId = 0;
  #commitSentId = 0;
  #attempt = 0;
  #syncSeq = 0;
  /** Id under the last full start: only what committed after it builds on the copy that is tracked now. */
  #fullBaseId = Number.POSITIVE_INFINITY;
  #forceFull = false;
  /**
   * The standby process that may take over by policy, with nobody else to ask; '' for any. Another process in its
   * place cannot say whether that happened, so it is not accepted before an operator has spoken.
   */
  expectedInstance = '';

  /** @param hello what this end announces; its generation is the guest's */
  constructor(hello: Hello, out: EffectQueue<SenderEffect>) {
    this.#hello = hello;
    this.#out = out;
  }

  get state(): SenderState {
    return this.#state;
  }

  get generation(): number {
    return this.#hello.generation;
  }

  /** Id of the last transaction the peer is known to hold. */
  get ackedId(): number {
    return this.#ackedId;
  }

  /** What the last HELLOs settled. */
  get agreement(): Agreement | undefined {
    return this.#agreement;
  }

  /** The peer's HELLO on the current or last connection. */
  get peer(): Hello | undefined {
    return this.#peer;
  }

  /** Epochs captured and not yet acked or returned. */
  get inFlight(): number {
    return this.#flights.length - (this.#ahead === undefined ? 0 : 1);
  }

  /** The transaction that was begun ahead of its capture. */
  get #ahead(): Flight | undefined {
    const last = this.#flights.at(-1);
    return last?.stage === 'ahead' ? last : undefined;
  }

  /** Payload bytes of those, as announced at {@link open}. */
  get inFlightBytes(): number {
    let sum = 0;
    for (const flight of this.#flights) sum += flight.bytes;
    return sum;
  }

  /** Whether one more epoch may be captured now. */
  get canOpen(): boolean {
    return (
      (this.#state === 'stream' || this.#state === 'sync') &&
      this.inFlight < this.#agreement!.limits.epochsInFlightMax &&
      !this.#flights.some((flight) => flight.atomic)
    );
  }

  /** Whether the next transaction may be begun now, before its capture: everything before it is on its way. */
  get canSendAhead(): boolean {
    return (
      this.#state === 'stream' &&
      this.canOpen &&
      this.#flights.every((flight) => flight.stage === 'sent')
    );
  }

  // --- the connection

  /** A connection to the standby is up; the previous one is gone. */
  connected(): void {
    if (this.#state === 'closed') {
      this.#close(FAULT.ENDED);
      return;
    }
    this.#state = 'hello';
    this.#attempt = 0;
    this.#send({ ...this.#envelope(this.#ackedId), cmd: 'HELLO', hello: this.#hello });
  }

  /**
   * The connection is gone. Epochs in flight stay: the next HELLO, or {@link abandonPeer}, settles what became
   * of them.
   */
  disconnected(): void {
    if (this.#state !== 'closed') this.#state = 'down';
  }

  /** The decoder of the current connection found something wrong. What the standby says is never bulk: reconnect. */
  fault(found: DecodeFault): void {
    if (this.#state === 'down' || this.#state === 'closed') return;
    this.#fail(found.code);
  }

  /** A message from the standby. */
  receive(message: Message): void {
    if (this.#state === 'down' || this.#state === 'closed') return;
    if (message.cmd === 'HELLO') {
      this.#onHello(message.hello);
      return;
    }
    if (message.cmd === 'NACK') {
      this.#onNack(message);
      return;
    }
    if (!this.generationFits(message)) {
      this.#fail(FAULT.GENERATION_WRONG);
      return;
    }
    if (message.cmd === 'HEARTBEAT') return;
    if (message.cmd === 'ACK') {
      switch (message.of) {
        case 'init':
          if (this.#state !== 'init') break;
          this.#opened();
          return;
        case 'commit':
          if (this.#state !== 'stream') break;
          this.#onAck(message.id);
          return;
        case 'handover':
          if (this.#state !== 'handing') break;
          this.#state = 'closed';
          this.#out.push({ type: 'handed-over' });
          return;
        case 'end':
          if (this.#state !== 'ending') break;
          this.#state = 'closed';
          this.#out.push({ type: 'ended' });
          return;
      }
    }
    this.#fail(FAULT.STATE_INVALID, `${message.cmd} in state ${this.#state}`);
  }

  /** Whether a message belongs to this generation (an ACK of another one says nothing about our outputs). */
  protected generationFits(message: Message): boolean {
    return message.generation === this.#hello.generation;
  }

  /** Whether the standby's HELLO shows the state of this very run of the guest, so that it counts as an ACK. */
  protected continues(peer: Hello): boolean {
    return (
      peer.complete &&
      peer.committedId > this.#fullBaseId &&
      peer.generation === this.#hello.generation &&
      peer.committedId >= this.#ackedId &&
      peer.committedId <= this.#commitSentId
    );
  }

  #onHello(peer: Hello): void {
    if (this.#state !== 'hello') {
      this.#fail(FAULT.STATE_INVALID, 'a second HELLO');
      return;
    }
    if (peer.vm === this.#hello.vm && peer.generation > this.#hello.generation) {
      this.#out.push({ type: 'superseded', generation: peer.generation });
      this.#fail(FAULT.TAKEN_OVER, `generation ${peer.generation}`);
      return;
    }
    const settled = negotiate(this.#hello, peer);
    if ('code' in settled) {
      this.#out.push({ type: 'refused', code: settled.code, sentence: settled.sentence });
      this.#fail(settled.code, '', settled.sentence);
      return;
    }
    if (this.expectedInstance !== '' && peer.instance !== this.expectedInstance) {
      this.#fail(FAULT.STANDBY_CHANGED);
      return;
    }
    this.#peer = peer;
    this.#agreement = settled;
    this.#out.push({ type: 'agreed', agreement: settled, peer });
    if (peer.ended && peer.generation === this.#hello.generation) {
      // It has END; only its ACK was lost.
      this.#state = 'closed';
      this.#out.push({ type: 'ended' });
      this.#close(FAULT.ENDED);
      return;
    }
    const resume = !this.#forceFull && this.continues(peer);
    this.#mode = resume ? 'resume' : 'full';
    if (resume) this.#ackThrough(peer.committedId);
    this.#return(FAULT.SUPERSEDED);
    this.#state = 'init';
    // A later full start passes over an id, so that no earlier standby has what this copy is as of, or more: its disks would
    // count as brought up to date by what is tracked since this copy.
    const first = this.#fullBaseId === Number.POSITIVE_INFINITY;
    const base = resume ? peer.committedId : this.#commitSentId + (first ? 0 : 1);
    this.#ackedId = base;
    this.#commitSentId = base;
    if (!resume) this.#fullBaseId = base;
    this.#send({ ...this.#envelope(base), cmd: 'INIT', mode: this.#mode });
  }

  #opened(): void {
    this.#state = this.#mode === 'full' ? 'sync' : 'stream';
    this.#syncSeq = 0;
    this.#forceFull = false;
    this.#out.push({ type: 'opened', mode: this.#mode });
  }

  // --- transactions

  /** A chunk of the first copy, `bytes` long. */
  syncChunk(chunk: number): void {
    assert(
      this.#state === 'sync',
      'the first copy runs between INIT(full) and the first transaction',
    );
    const seq = this.#syncSeq++;
    this.#send({ ...this.#envelope(this.#ackedId), cmd: 'SYNC', seq, payload: EMPTY }, chunk);
  }

  /**
   * Begins the transaction of the next capture ahead of it: pages may be sent with {@link chunk} while the guest runs. Nothing
   * of it counts before its COMMIT, and what the capture finds changed since is sent again behind it.
   * @returns the epoch that the capture will have
   */
  sendAhead(): number {
    assert(this.canSendAhead, 'a transaction is begun ahead when nothing is in its way');
    const flight: Flight = {
      epoch: this.#nextEpoch,
      id: this.nextId,
      atomic: false,
      bytes: 0,
      stage: 'ahead',
      seq: 0,
    };
    this.#flights.push(flight);
    this.#begin(flight);
    return flight.epoch;
  }

  /**
   * A checkpoint was captured into staging.
   * @param bytes what it occupies there
   * @param atomic the guest stays stopped until the ACK
   * @returns its epoch
   */
  open(bytes: number, atomic: boolean): number {
    assert(this.canOpen, 'an epoch is opened when there is room for it');
    this.#state = 'stream';
    const id = this.nextId;
    const epoch = this.#nextEpoch++;
    const ahead = this.#ahead;
    if (ahead !== undefined) {
      ahead.bytes = bytes;
      ahead.atomic = atomic;
      ahead.stage = 'sending';
      this.#out.push({ type: 'encode', epoch });
      return epoch;
    }
    this.#flights.push({ epoch, id, atomic, bytes, stage: 'queued', seq: 0 });
    this.#startNext();
    return epoch;
  }

  /** The epoch the next {@link open} will return. */
  get nextEpoch(): number {
    return this.#nextEpoch;
  }

  /** The wire id the next {@link open} will use. */
  get nextId(): number {
    return this.#ahead?.id ?? (this.#flights.at(-1)?.id ?? this.#ackedId) + 1;
  }

  /** An epoch was captured but cannot be sent: its number is used up. */
  skipEpoch(epoch: number): void {
    assert(epoch === this.#nextEpoch, 'epochs are captured in order');
    this.#nextEpoch++;
  }

  /** The next chunk of the epoch being encoded, or sent ahead, is ready. False (drop the chunk) when that epoch is gone. */
  chunk(epoch: number, chunk: number): boolean {
    const ahead = this.#state === 'stream' ? this.#ahead : undefined;
    const flight = ahead?.epoch === epoch ? ahead : this.#sending(epoch);
    if (flight === undefined) return false;
    const seq = flight.seq++;
    this.#send({ ...this.#envelope(flight.id), cmd: 'CONTINUE', seq, payload: EMPTY }, chunk);
    return true;
  }

  /** All chunks of the epoch have been given. False when that epoch is gone. */
  sealed(epoch: number, manifest: Manifest): boolean {
    const flight = this.#sending(epoch);
    if (flight === undefined) return false;
    if (manifest.bytes > this.#agreement!.limits.transactionBytesMax) {
      this.cancel(epoch, FAULT.TRANSACTION_TOO_LARGE);
      return false;
    }
    flight.stage = 'sent';
    this.#commitSentId = flight.id;
    const cmd = flight.atomic ? 'ATOMIC' : 'COMMIT';
    this.#send({ ...this.#envelope(flight.id), cmd, seq: flight.seq, manifest });
    this.#startNext();
    return true;
  }

  /** Gives up `epoch` and all later ones, where its COMMIT has not gone out yet. */
  cancel(epoch: number, code: FaultCode): void {
    const index = this.#flights.findIndex((f) => f.epoch >= epoch && f.stage !== 'sent');
    if (index < 0) return;
    const first = this.#flights[index]!;
    const begun = first.stage !== 'queued';
    this.#flights.length = index;
    this.#out.push({ type: 'returned', fromEpoch: first.epoch, code });
    if (begun && this.#state === 'stream') {
      this.#send({ ...this.#envelope(first.id), cmd: 'CANCEL', seq: this.#attempt++, code });
    }
  }

  /** The guest goes on without this peer: everything in flight returns, and its ACKs count no more. */
  abandonPeer(): void {
    this.#return(FAULT.PEER_SILENT);
    if (this.#state !== 'down' && this.#state !== 'closed') this.#fail(FAULT.PEER_SILENT);
  }

  /** The next stream starts from nothing, whatever the peer holds. */
  forceFull(): void {
    this.#forceFull = true;
  }

  /** Passes the guest on. Everything is acked and the guest stands still, for good. */
  handOver(newGeneration: number): void {
    assert(
      this.#state === 'stream' && this.#flights.length === 0,
      'handover follows an ATOMIC commit',
    );
    this.#state = 'handing';
    this.#send({ ...this.#envelope(this.#ackedId), cmd: 'HANDOVER', newGeneration });
  }

  /** The guest has ended. Everything is acked, or given up. */
  end(reason: (typeof END_REASON)[keyof typeof END_REASON]): void {
    assert(this.#state === 'stream' && this.#flights.length === 0, 'END follows the last commit');
    this.#state = 'ending';
    this.#send({ ...this.#envelope(this.#ackedId), cmd: 'END', reason });
  }

  /** Nothing more is sent or believed. */
  shutDown(): void {
    const open = this.#state !== 'down' && this.#state !== 'closed';
    this.#state = 'closed';
    if (open) this.#close(FAULT.ENDED);
  }

  /** Says that this end is alive. */
  heartbeat(): void {
    if (this.#state === 'down' || this.#state === 'closed' || this.#state === 'hello') return;
    const appliedId = this.#ackedId;
    this.#send({ ...this.#envelope(this.#ackedId), cmd: 'HEARTBEAT', appliedId, degraded: false });
  }

  // --- inside

  #onAck(id: number): void {
    const first = this.#flights[0];
    if (first === undefined || first.stage !== 'sent' || first.id !== id) {
      const code = id <= this.#ackedId ? FAULT.ID_STALE : FAULT.ID_GAP;
      this.#fail(code, `ACK of ${id} after ${this.#ackedId}`);
      return;
    }
    this.#ackThrough(id);
  }

  #ackThrough(id: number): void {
    while (this.#flights[0] !== undefined && this.#flights[0].id <= id) {
      const { epoch, id: ackedId, atomic } = this.#flights.shift()!;
      this.#ackedId = ackedId;
      this.#out.push({ type: 'acked', epoch, id: ackedId, atomic });
    }
    this.#ackedId = Math.max(this.#ackedId, id);
  }

  #onNack(message: NackMessage): void {
    const { code, sentence, id } = message;
    if (code === FAULT.TAKEN_OVER && message.generation > this.#hello.generation) {
      this.#out.push({ type: 'superseded', generation: message.generation });
      this.#state = 'closed';
      this.#close(FAULT.TAKEN_OVER);
      return;
    }
    if (HOPELESS.has(code)) {
      this.#out.push({ type: 'refused', code, sentence });
      this.#close(code as FaultCode);
      return;
    }
    const ours = id !== 0 && message.generation === this.#hello.generation;
    if (this.#state !== 'stream' || !ours) {
      this.#close(FAULT.STATE_INVALID, id === 0 ? sentence : faultSentence(code));
      return;
    }
    if (message.seq !== this.#attempt) return; // about transactions that were cancelled before it came
    const index = this.#flights.findIndex((f) => f.id === id && f.stage !== 'queued');
    if (index < 0) {
      this.#fail(FAULT.STATE_INVALID, `NACK of ${id}`);
      return;
    }
    const fromEpoch = this.#flights[index]!.epoch;
    this.#flights.length = index;
    this.#commitSentId = Math.min(this.#commitSentId, id - 1);
    if (code === FAULT.TRANSACTION_TOO_LARGE) this.#forceFull = true;
    this.#out.push({ type: 'returned', fromEpoch, code: code as FaultCode });
    this.#send({
      ...this.#envelope(id),
      cmd: 'CANCEL',
      seq: this.#attempt++,
      code: FAULT.CANCELLED,
    });
    if (this.#forceFull) this.#fail(FAULT.TRANSACTION_TOO_LARGE);
  }

  #return(code: FaultCode): void {
    const first = this.#flights[0];
    if (first === undefined) return;
    this.#flights.length = 0;
    this.#out.push({ type: 'returned', fromEpoch: first.epoch, code });
  }

  #startNext(): void {
    if (this.#flights.some((f) => f.stage === 'sending')) return;
    const next = this.#flights.find((f) => f.stage === 'queued');
    if (next === undefined) return;
    next.stage = 'sending';
    this.#begin(next);
    this.#out.push({ type: 'encode', epoch: next.epoch });
  }

  #begin({ id }: Flight): void {
    const baseId = id - 1;
    const syncFrames = this.#syncSeq;
    this.#send({ ...this.#envelope(id), cmd: 'BEGIN', seq: this.#attempt, baseId, syncFrames });
  }

  #sending(epoch: number): Flight | undefined {
    if (this.#state !== 'stream') return undefined;
    return this.#flights.find((f) => f.epoch === epoch && f.stage === 'sending');
  }

  #envelope(id: number): { generation: number; id: number; seq: number } {
    return { generation: this.#hello.generation, id, seq: 0 };
  }

  #send(message: Message, chunk = -1): void {
    this.#out.push({ type: 'send', message, chunk });
  }

  /** Tells the peer and closes. */
  #fail(code: FaultCode, detail = '', sentence = fault(code, detail).sentence): void {
    this.#send({ ...this.#envelope(0), cmd: 'NACK', code, sentence });
    this.#close(code, sentence);
  }

  #close(code: FaultCode, sentence = faultSentence(code)): void {
    if (this.#state !== 'closed') this.#state = 'down';
    this.#out.push({ type: 'close', code, sentence });
  }
}
