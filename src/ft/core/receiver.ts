/**
 * The standby's end of the transaction protocol. Frames in, staging and answers out. A transaction is staged
 * apart from the guest, validated by the shell when it is complete, acknowledged, and only then applied; so
 * the last committed state stands whatever cuts the stream (R4), and what was acknowledged is only ever
 * rolled forward. Waits for nothing: validation and application are reported back as events. Owned by
 * the standby machine (standby.ts).
 *
 * States: down - hello - ready - sync - idle - open - reject - closed. Table: docs/replication.md.
 */
import type { FrameHeader } from '../wire/codec.ts';
import type { DecodeFault } from '../wire/decoder.ts';
import { FAULT, type Fault, type FaultCode, fault, faultSentence } from '../wire/fault.ts';
import type {
  BeginMessage,
  CommitMessage,
  ContinueMessage,
  Hello,
  InitMessage,
  Limits,
  Manifest,
  Message,
} from '../wire/message.ts';
import { type Agreement, negotiate } from '../wire/negotiate.ts';
import type { EffectQueue } from './effects.ts';
import { StagedList } from './staged-list.ts';

/** What the shell does for the receiver. */
export type ReceiverEffect =
  | { readonly type: 'send'; readonly message: Message }
  | { readonly type: 'close'; readonly code: FaultCode; readonly sentence: string }
  /** Both HELLOs fit. Duty: let the decoder take bulk frames up to the agreed size. */
  | { readonly type: 'agreed'; readonly agreement: Agreement; readonly peer: Hello }
  /** A first copy begins: memory, devices and log are void until the next `committed`. */
  | { readonly type: 'reset'; readonly generation: number }
  /** Part of the first copy: apply at once. The payload is borrowed until the effect is carried out. */
  | { readonly type: 'sync'; readonly payload: Uint8Array }
  /** Keep this part of transaction `id` apart from the guest. The payload is borrowed as above. */
  | { readonly type: 'stage'; readonly id: number; readonly payload: Uint8Array }
  /**
   * Transaction `id` is complete, and all before it are validated: one at a time, in order. Duty: check everything that could stop it from being loaded (checksums,
   * sections, versions, sizes, page results, room for disk writes), then report `validated`.
   */
  | { readonly type: 'validate'; readonly id: number; readonly manifest: Manifest }
  /** Drop what is staged of `fromId` and all later transactions. */
  | { readonly type: 'discard'; readonly fromId: number }
  /** `id` is the committed state now (its ACK follows). Nothing may make it not so any more. */
  | { readonly type: 'committed'; readonly id: number; readonly generation: number }
  /** Bring the guest's memory, devices, log and disks to `id`, then report `applied`. One at a time, in order. */
  | { readonly type: 'apply'; readonly id: number }
  /** Stop reading from the connection until `read-on`: staging is full of what still has to be applied. */
  | { readonly type: 'read-pause' }
  | { readonly type: 'read-on' }
  /** END: this standby never takes over. */
  | { readonly type: 'ended'; readonly reason: number }
  /** HANDOVER: the primary stands still for good; authority is here, as `newGeneration`. */
  | { readonly type: 'handover'; readonly newGeneration: number };

/** The state of a {@link Receiver}. */
export type ReceiverState =
  | 'down'
  | 'hello'
  | 'ready'
  | 'sync'
  | 'idle'
  | 'open'
  | 'reject'
  | 'closed';

/** The receiver. Events are its methods; effects go to the queue given at construction. */
export class Receiver {
  readonly #out: EffectQueue<ReceiverEffect>;
  readonly #identity: Hello;
  readonly #staged = new StagedList();
  #state: ReceiverState = 'down';
  #limits: Limits | undefined;
  #peer: Hello | undefined;
  #generation = 0;
  #committedId = 0;
  #appliedId = 0;
  #complete = false;
  #ended = false;
  #degraded = false;
  /** How many CANCELs this connection has had: what an earlier attempt said is void. */
  #attempt = 0;
  #syncSeq = 0;
  #paused = false;

  /** @param identity what this end announces; state fields are filled in by the receiver */
  constructor(identity: Hello, out: EffectQueue<ReceiverEffect>) {
    this.#identity = identity;
    this.#out = out;
  }

  get state(): ReceiverState {
    return this.#state;
  }

  /** Generation of the state held here. */
  get generation(): number {
    return this.#generation;
  }

  get committedId(): number {
    return this.#committedId;
  }

  get appliedId(): number {
    return this.#appliedId;
  }

  /** Whether a first COMMIT has completed. */
  get complete(): boolean {
    return this.#complete;
  }

  get ended(): boolean {
    return this.#ended;
  }

  get degraded(): boolean {
    return this.#degraded;
  }

  /** Payload bytes staged and not yet applied. */
  get stagedBytes(): number {
    return this.#staged.bytes;
  }

  get peer(): Hello | undefined {
    return this.#peer;
  }

  /** What this end says about itself now. */
  get hello(): Hello {
    return {
      ...this.#identity,
      generation: this.#generation,
      committedId: this.#committedId,
      // A disk that has refused needs a copy anew: a stream that went on would only add to what waits for it in memory.
      complete: this.#complete && !this.#degraded,
      ended: this.#ended,
    };
  }

  // --- the connection

  /** A connection is up; it takes the place of any earlier one, whose unfinished transactions are void. */
  connected(): void {
    if (this.#state === 'closed') {
      this.#close(FAULT.ENDED);
      return;
    }
    this.#dropUncommitted();
    this.#state = 'hello';
    this.#attempt = 0;
    this.#limits = undefined;
    this.#send({ ...this.#envelope(this.#committedId), cmd: 'HELLO', hello: this.hello });
  }

  /** The connection is gone: unfinished transactions are void, the committed state stands. */
  disconnected(): void {
    if (this.#state === 'closed') return;
    this.#state = 'down';
    this.#dropUncommitted();
  }

  /** Takes no connection and no frame any more; what was committed is still applied. Before a takeover. */
  detach(code: FaultCode): void {
    if (this.#state !== 'down' && this.#state !== 'closed') this.#close(code);
    this.#state = 'closed';
    this.#dropUncommitted();
  }

  /** Takes connections again, after a {@link detach} that led to no takeover. */
  reattach(): void {
    if (this.#state === 'closed') this.#state = 'down';
  }

  /** The decoder asks, before it buffers a payload (R5). */
  admit(header: FrameHeader): FaultCode | 0 {
    if (header.cmd !== 'CONTINUE') return 0;
    const open = this.#staged.open;
    if (open === undefined || this.#limits === undefined) return 0; // refused or ignored by receive()
    return this.transactionFits(open.bytes + header.payloadBytes, this.#limits)
      ? 0
      : FAULT.TRANSACTION_TOO_LARGE;
  }

  /** Whether a transaction of `bytes` is within the agreed limit. */
  protected transactionFits(bytes: number, limits: Limits): boolean {
    return bytes <= limits.transactionBytesMax;
  }

  /** The decoder found something wrong. */
  fault(found: DecodeFault): void {
    if (this.#state === 'down' || this.#state === 'closed') return;
    const inStream = this.#state === 'idle' || this.#state === 'open' || this.#state === 'reject';
    if (found.fatal || !inStream) this.#refuseStream(found.code, found.sentence);
    else if (this.#state !== 'reject') this.#nackNext(found);
  }

  /** A message from the primary. */
  receive(message: Message): void {
    const state = this.#state;
    if (state === 'down' || state === 'closed') return;
    if (message.cmd === 'HELLO') {
      this.#onHello(message.hello);
      return;
    }
    if (message.cmd === 'NACK') {
      this.#close(message.code as FaultCode, message.sentence);
      return;
    }
    if (state === 'hello') {
      this.#refuseStream(FAULT.STATE_INVALID, `${message.cmd} before HELLO`);
      return;
    }
    if (message.cmd === 'INIT') {
      this.#onInit(message);
      return;
    }
    if (message.cmd === 'HEARTBEAT') return;
    if (state === 'ready' || message.generation !== this.#generation) {
      this.#refuseStream(
        state === 'ready' ? FAULT.STATE_INVALID : FAULT.GENERATION_WRONG,
        message.cmd,
      );
      return;
    }
    if (state === 'reject' && message.cmd !== 'CANCEL') return;
    switch (message.cmd) {
      case 'SYNC':
        if (state !== 'sync') break;
        if (message.seq !== this.#syncSeq) {
          this.#refuseStream(FAULT.SEQ_WRONG, `SYNC ${message.seq} after ${this.#syncSeq}`);
          return;
        }
        this.#syncSeq++;
        this.#out.push({ type: 'sync', payload: message.payload });
        return;
      case 'BEGIN':
        this.#onBegin(message);
        return;
      case 'CONTINUE':
        this.#onContinue(message);
        return;
      case 'COMMIT':
      case 'ATOMIC':
        this.#onCommit(message);
        return;
      case 'CANCEL':
        this.#onCancel(message.id, message.seq);
        return;
      case 'END':
        if (state !== 'idle' || this.#staged.unacked !== undefined) break;
        this.onEnd(message.reason);
        return;
      case 'HANDOVER':
        if (
          state !== 'idle' ||
          this.#staged.unacked !== undefined ||
          message.newGeneration <= this.#generation
        )
          break;
        this.#ack('handover', this.#committedId);
        this.#state = 'closed';
        this.#out.push({ type: 'handover', newGeneration: message.newGeneration });
        return;
      case 'ACK':
        break;
    }
    this.#refuseStream(FAULT.STATE_INVALID, `${message.cmd} in state ${state}`);
  }

  #onHello(peer: Hello): void {
    if (this.#state !== 'hello') {
      this.#refuseStream(FAULT.STATE_INVALID, 'a second HELLO');
      return;
    }
    const settled = negotiate(this.#identity, peer);
    if ('code' in settled) {
      this.#refuseStream(settled.code, settled.sentence);
      return;
    }
    if (peer.generation < this.#generation) {
      this.#refuseStream(
        FAULT.GENERATION_WRONG,
        `${peer.generation} is older than ${this.#generation}`,
      );
      return;
    }
    this.#peer = peer;
    this.#limits = settled.limits;
    this.#state = 'ready';
    this.#out.push({ type: 'agreed', agreement: settled, peer });
  }

  #onInit(message: InitMessage): void {
    if (this.#state !== 'ready' || message.generation < this.#generation) {
      this.#refuseStream(FAULT.STATE_INVALID, 'INIT');
      return;
    }
    if (message.mode === 'resume') {
      const fits =
        this.#complete &&
        !this.#degraded &&
        !this.#ended &&
        message.generation === this.#generation &&
        message.id === this.#committedId;
      if (!fits) {
        this.#refuseStream(FAULT.BASE_UNKNOWN, `resume from ${message.id}`);
        return;
      }
      this.#state = 'idle';
      this.#syncSeq = 0;
    } else {
      this.#staged.clear();
      this.#complete = false;
      this.#ended = false;
      this.#degraded = false;
      this.#generation = message.generation;
      this.#committedId = message.id;
      this.#appliedId = message.id;
      this.#syncSeq = 0;
      this.#state = 'sync';
      this.#out.push({ type: 'reset', generation: message.generation });
      this.#flow();
    }
    this.#ack('init', this.#committedId);
  }

  // --- transactions

  #onBegin(message: BeginMessage): void {
    const { id, baseId } = message;
    if (this.#state !== 'idle' && this.#state !== 'sync') {
      const open = this.#staged.open;
      this.#nack(
        open?.id ?? this.#lastStagedId() + 1,
        FAULT.STATE_INVALID,
        'BEGIN inside a transaction',
      );
      return;
    }
    if (message.seq < this.#attempt) {
      const stale = `attempt ${message.seq} of ${this.#attempt}`;
      this.#nack(this.#lastStagedId() + 1, FAULT.ID_STALE, stale);
      return;
    }
    this.#attempt = message.seq;
    if (message.syncFrames !== this.#syncSeq) {
      this.#refuseStream(FAULT.SEQ_WRONG, `${this.#syncSeq} SYNC of ${message.syncFrames}`);
      return;
    }
    const wrong = this.beginFault(id, baseId, this.#lastStagedId());
    if (wrong !== 0) {
      this.#nack(
        this.#lastStagedId() + 1,
        wrong,
        `id ${id} base ${baseId} after ${this.#lastStagedId()}`,
      );
      return;
    }
    if (
      this.#staged.count('validating') + this.#staged.count('complete') >=
      this.#limits!.epochsInFlightMax
    ) {
      this.#nack(id, FAULT.LIMITS, 'too many transactions');
      return;
    }
    this.#staged.begin(id);
    this.#state = 'open';
  }

  /** What is wrong with a BEGIN, 0 for nothing. */
  protected beginFault(id: number, baseId: number, lastId: number): FaultCode | 0 {
    if (id <= lastId) return FAULT.ID_STALE;
    if (id > lastId + 1) return FAULT.ID_GAP;
    return baseId === lastId ? 0 : FAULT.BASE_UNKNOWN;
  }

  #onContinue(message: ContinueMessage): void {
    const open = this.#staged.open;
    if (open === undefined) {
      this.#nack(this.#lastStagedId() + 1, FAULT.STATE_INVALID, 'CONTINUE without BEGIN');
      return;
    }
    const wrong = this.partFault(message, open.id, open.frames);
    if (wrong !== 0) {
      this.#nack(
        open.id,
        wrong,
        `part ${message.id}/${message.seq} after ${open.id}/${open.frames}`,
      );
      return;
    }
    this.#staged.part(open, message.payload.length);
    this.#out.push({ type: 'stage', id: open.id, payload: message.payload });
    this.#flow();
  }

  /** What is wrong with a CONTINUE, COMMIT or ATOMIC of the open transaction, 0 for nothing. */
  protected partFault(
    message: ContinueMessage | CommitMessage,
    openId: number,
    frames: number,
  ): FaultCode | 0 {
    if (message.id < openId) return FAULT.ID_STALE;
    if (message.id > openId) return FAULT.ID_GAP;
    return message.seq === frames ? 0 : FAULT.SEQ_WRONG;
  }

  #onCommit(message: CommitMessage): void {
    const open = this.#staged.open;
    if (open === undefined) {
      this.#nack(this.#lastStagedId() + 1, FAULT.STATE_INVALID, `${message.cmd} without BEGIN`);
      return;
    }
    const wrong = this.partFault(message, open.id, open.frames);
    if (wrong !== 0) {
      this.#nack(open.id, wrong, `${message.cmd} ${message.id}/${message.seq}`);
      return;
    }
    const { frames, bytes } = message.manifest;
    if (frames !== open.frames || bytes !== open.bytes) {
      this.#nack(open.id, FAULT.MANIFEST_MISMATCH, `${open.bytes} bytes of ${bytes}`);
      return;
    }
    open.stage = 'complete';
    open.manifest = message.manifest;
    this.#state = 'idle';
    this.#validateNext();
  }

  #validateNext(): void {
    if (this.#staged.count('validating') > 0) return;
    const next = this.#staged.in('complete');
    if (next === undefined) return;
    next.stage = 'validating';
    this.validate(next.id, next.manifest!);
  }

  /** A transaction has arrived whole, and those before it are validated. */
  protected validate(id: number, manifest: Manifest): void {
    this.#out.push({ type: 'validate', id, manifest });
  }

  /**
   * The shell has looked at transaction `id`.
   * @param wrong what makes it impossible to load, or undefined
   */
  validated(id: number, wrong: Fault | undefined): void {
    const first = this.#staged.in('validating');
    if (first === undefined || first.id !== id) return; // dropped meanwhile
    if (wrong !== undefined) {
      this.#nack(id, wrong.code, wrong.sentence);
      return;
    }
    first.stage = 'acked';
    this.#committedId = id;
    this.#complete = true;
    this.#out.push({ type: 'committed', id, generation: this.#generation });
    this.#ack('commit', id);
    this.#applyNext();
    this.#validateNext();
  }

  /**
   * Transaction `id` is applied.
   * @param degraded a disk refused writes, which stay in the overlay
   */
  applied(id: number, degraded: boolean): void {
    const { first } = this.#staged;
    if (first === undefined || first.id !== id || first.stage !== 'applying') return;
    this.#staged.shift();
    this.#appliedId = id;
    this.#degraded = degraded;
    this.#applyNext();
    this.#flow();
  }

  /** Says that this end is alive and how far it is. */
  heartbeat(): void {
    const { state } = this;
    if (state === 'down' || state === 'closed' || state === 'hello' || state === 'ready') return;
    const { appliedId, degraded } = this;
    this.#send({ ...this.#envelope(this.#committedId), cmd: 'HEARTBEAT', appliedId, degraded });
  }

  #onCancel(id: number, attempt: number): void {
    // Of an attempt that is over: it says nothing about this one, which may have been refused meanwhile.
    if (attempt < this.#attempt) return;
    this.#attempt = attempt + 1;
    const open = this.#staged.open;
    if (this.#state === 'reject') {
      this.#state = 'idle';
      return;
    }
    if (open !== undefined && open.id === id) {
      this.#dropFrom(id);
      this.#state = 'idle';
      return;
    }
    // The BEGIN it cancels may have been damaged on the way; what is complete is not cancelled any more.
    if (open === undefined && id === this.#lastStagedId() + 1) return;
    this.#refuseStream(FAULT.STATE_INVALID, `CANCEL of ${id}`);
  }

  /** END has come at a point where nothing is unacknowledged. */
  protected onEnd(reason: number): void {
    this.#ended = true;
    this.#out.push({ type: 'ended', reason });
    this.#ack('end', this.#committedId);
  }

  // --- inside

  #applyNext(): void {
    const { first } = this.#staged;
    if (first?.stage !== 'acked') return;
    first.stage = 'applying';
    this.#out.push({ type: 'apply', id: first.id });
  }

  /** Back-pressure: only what still has to be applied makes the reader wait, so it always ends. */
  #flow(): void {
    const room = this.#limits?.transactionBytesMax ?? 0;
    const pending = this.#staged.count('acked') + this.#staged.count('applying') > 0;
    const queued = this.#staged.count('acked') > (this.#limits?.epochsInFlightMax ?? 0);
    const pause = pending && (queued || this.#staged.bytes > room);
    if (pause === this.#paused) return;
    this.#paused = pause;
    this.#out.push({ type: pause ? 'read-pause' : 'read-on' });
  }

  #lastStagedId(): number {
    return this.#staged.lastId ?? this.#committedId;
  }

  #dropUncommitted(): void {
    const first = this.#staged.unacked;
    if (first !== undefined) this.#dropFrom(first.id);
    if (this.#paused && this.#state === 'down') {
      this.#paused = false;
      this.#out.push({ type: 'read-on' });
    }
  }

  #dropFrom(id: number): void {
    if (!this.#staged.dropFrom(id)) return;
    this.#out.push({ type: 'discard', fromId: id });
    this.#flow();
  }

  /** A fault of one frame whose framing is sound: refuse the transaction it belongs to. */
  #nackNext(found: Fault): void {
    const open = this.#staged.open;
    this.#nack(open?.id ?? this.#lastStagedId() + 1, found.code, found.sentence);
  }

  /** Refuses `id` and everything after it; ignores the stream until the sender has said CANCEL. */
  #nack(id: number, code: FaultCode, detail: string): void {
    this.#dropFrom(id);
    this.#state = 'reject';
    const { sentence } = fault(code, detail);
    this.#send({ ...this.#envelope(id), cmd: 'NACK', seq: this.#attempt, code, sentence });
  }

  /** Refuses the connection as a whole. */
  #refuseStream(code: FaultCode, detail = ''): void {
    const { sentence } = fault(code, detail);
    // Id 0: it says nothing about any transaction. The last one may be committed and its ACK lost.
    this.#send({ ...this.#envelope(0), cmd: 'NACK', code, sentence });
    this.#close(code, sentence);
  }

  #ack(of: 'init' | 'commit' | 'handover' | 'end', id: number): void {
    this.#send({ ...this.#envelope(id), cmd: 'ACK', of, degraded: this.#degraded });
  }

  #envelope(id: number): { generation: number; id: number; seq: number } {
    return { generation: this.#generation, id, seq: 0 };
  }

  #send(message: Message): void {
    this.#out.push({ type: 'send', message });
  }

  #close(code: FaultCode, sentence = faultSentence(code)): void {
    this.#state = 'down';
    this.#dropUncommitted();
    this.#out.push({ type: 'close', code, sentence });
  }
}
