/**
 * The event-tap: holds what the guest wants to show to the outside until the peer holds the state it follows
 * from (R1). Net frames and console bytes are copied here and are done as far as the guest is concerned;
 * block requests stay where they are (pinned in guest memory, not completed) and only their tag is kept.
 * Each output has one place, never two: frames and console bytes go into the log of the transaction that covers
 * them, block requests are found again in the saved device state.
 *
 * All outputs held before a capture's pause are covered by that epoch and leave together on its ACK, in the
 * order in which they were held. Bytes live in one ring, entries in typed arrays: holding and releasing
 * allocate nothing. Bounded (R5): a full tap refuses, the device keeps the output, and a commit starts at once.
 *
 * With `holding` false the decorators never call this (R6). Owned by the primary machine (primary.ts); the
 * decorators of ft/shell call the `hold` methods.
 */
import { assert } from '../../base/assert.ts';
import {
  LOGGED,
  LOGGED_HEADER_BYTES,
  TAP_LOG_HEADER_BYTES,
  TRIGGER_BYTES,
  writeLoggedHeader,
  writeTapLogHeader,
  writeTrigger,
} from '../wire/tap-log.ts';

/** Bounds of an {@link EventTap}, each with its reason in docs/replication.md. */
export interface TapConfig {
  /** Most bytes of held frames and console output. At least one largest frame. */
  readonly bytesMax: number;
  /** Most held outputs, block requests included. */
  readonly entriesMax: number;
  /** Most block requests held or released and not yet done. At least the sum of the disks' queue sizes. */
  readonly blockMax: number;
  /** Most triggers of one capture: one per vCPU. */
  readonly triggersMax: number;
}

/** Where released outputs go: the real backends. */
export interface TapSink {
  /** Sends one frame; the bytes are lent for the call. */
  frame(device: number, bytes: Uint8Array, start: number, end: number): void;
  /** Writes console bytes; lent as above. */
  console(device: number, bytes: Uint8Array, start: number, end: number): void;
  /** Gives the block request with this tag to the disk. {@link EventTap.blockDone} follows when it is done. */
  block(device: number, tag: number): void;
  /** All released outputs of this moment have been given: submit batches, wake writers that met a full tap. */
  released(): void;
}

/** What kind of block request is held. Reads are no output and pass. */
export const HELD_BLOCK = { write: 0, flush: 1 } as const;

const KIND_FRAME = LOGGED.frame;
const KIND_CONSOLE = LOGGED.console;
const KIND_BLOCK = 3;
const NO_EPOCH = 0;

/** The event-tap. */
export class EventTap {
  readonly #config: TapConfig;
  readonly #sink: TapSink;
  readonly #onHeld: () => void;
  /** Whether outputs are to be held. Decorators read it before every call. */
  holding = false;

  // Entries, a ring of entriesMax.
  readonly #kind: Uint8Array;
  readonly #device: Uint16Array;
  readonly #epoch: Float64Array;
  readonly #start: Uint32Array;
  readonly #length: Uint32Array;
  #head = 0;
  #count = 0;
  /** Sequence number of the entry at the head. Block requests are not numbered in the log's sequence. */
  #headSeq: number;
  #loggedHeld = 0;

  // Bytes of frames and console output.
  readonly #bytes: Uint8Array;
  #bytesHead = 0;
  #bytesTail = 0;
  #bytesUsed = 0;

  // Block requests: a slot each, from hold until done.
  readonly #blockDevice: Uint16Array;
  readonly #blockTag: Uint32Array;
  readonly #blockOp: Uint8Array;
  readonly #blockFrom: Float64Array;
  readonly #blockTo: Float64Array;
  readonly #freeSlots: Uint32Array;
  #freeCount: number;
  /** Released slots in release order, and whether each has been given to its disk. */
  readonly #queue: Uint32Array;
  readonly #queueState: Uint8Array;
  #queueCount = 0;

  // Triggers of the current capture.
  readonly #triggerNumbers: Float64Array;
  #triggerCount = 0;
  #sealedEpoch = NO_EPOCH;

  /**
   * @param onHeld called after an output was held (the policy wants to know)
   * @param firstSeq number of the first output; a new primary goes on behind its log
   */
  constructor(config: TapConfig, sink: TapSink, onHeld: () => void = () => {}, firstSeq = 1) {
    this.#config = config;
    this.#sink = sink;
    this.#onHeld = onHeld;
    this.#headSeq = firstSeq;
    const { entriesMax, blockMax } = config;
    this.#kind = new Uint8Array(entriesMax);
    this.#device = new Uint16Array(entriesMax);
    this.#epoch = new Float64Array(entriesMax);
    this.#start = new Uint32Array(entriesMax);
    this.#length = new Uint32Array(entriesMax);
    this.#bytes = new Uint8Array(config.bytesMax);
    this.#blockDevice = new Uint16Array(blockMax);
    this.#blockTag = new Uint32Array(blockMax);
    this.#blockOp = new Uint8Array(blockMax);
    this.#blockFrom = new Float64Array(blockMax);
    this.#blockTo = new Float64Array(blockMax);
    this.#freeSlots = new Uint32Array(blockMax);
    for (let i = 0; i < blockMax; i++) this.#freeSlots[i] = i;
    this.#freeCount = blockMax;
    this.#queue = new Uint32Array(blockMax);
    this.#queueState = new Uint8Array(blockMax);
    this.#triggerNumbers = new Float64Array(config.triggersMax * 5);
  }

  /** Outputs held and not released. */
  get heldCount(): number {
    return this.#count;
  }

  /** Bytes in use of the byte ring, padding included. */
  get heldBytes(): number {
    return this.#bytesUsed;
  }

  /** Block requests held, or released and not yet done. */
  get blockCount(): number {
    return this.#config.blockMax - this.#freeCount;
  }

  /** Number the next logged output will get. */
  get nextSeq(): number {
    return this.#headSeq + this.#loggedHeld;
  }

  /** Whether any output waits that no epoch covers yet. */
  get uncovered(): boolean {
    return this.#count > 0 && this.#epoch[this.#index(this.#count - 1)] === NO_EPOCH;
  }

  // --- holding

  /** Holds a copy of `bytes[start, end)`. False, and nothing held, when the tap is full. */
  holdFrame(device: number, bytes: Uint8Array, start: number, end: number): boolean {
    const length = end - start;
    assert(length <= this.#config.bytesMax, 'the tap holds at least one largest frame');
    if (!this.hasRoom(length)) return false;
    const at = this.#reserve(length);
    if (at < 0) return false;
    this.#bytes.set(bytes.subarray(start, end), at);
    this.#add(KIND_FRAME, device, at, length);
    return true;
  }

  /** Holds one byte of console output. False, and nothing held, when the tap is full. */
  holdConsole(device: number, byte: number): boolean {
    if (this.#count > 0) {
      const last = this.#index(this.#count - 1);
      const joins =
        this.#kind[last] === KIND_CONSOLE &&
        this.#device[last] === device &&
        this.#epoch[last] === NO_EPOCH &&
        this.#start[last]! + this.#length[last]! === this.#bytesTail &&
        this.#bytesTail < this.#config.bytesMax &&
        this.hasRoom(1);
      if (joins) {
        this.#bytes[this.#bytesTail++] = byte;
        this.#bytesUsed++;
        this.#length[last] = this.#length[last]! + 1;
        return true;
      }
    }
    if (!this.hasRoom(1)) return false;
    const at = this.#reserve(1);
    if (at < 0) return false;
    this.#bytes[at] = byte;
    this.#add(KIND_CONSOLE, device, at, 1);
    return true;
  }

  /**
   * Holds a block request: `tag` of disk `device`, which stays pinned and uncompleted.
   * @param op one of {@link HELD_BLOCK}
   */
  holdBlock(device: number, tag: number, op: number, offset: number, length: number): boolean {
    if (this.#freeCount === 0 || !this.hasRoom(0)) return false;
    const slot = this.#freeSlots[--this.#freeCount]!;
    this.#blockDevice[slot] = device;
    this.#blockTag[slot] = tag;
    this.#blockOp[slot] = op;
    this.#blockFrom[slot] = offset;
    this.#blockTo[slot] = offset + length;
    this.#add(KIND_BLOCK, device, slot, 0);
    return true;
  }

  /** Whether an output of `bytes` may be held. */
  hasRoom(bytes: number): boolean {
    return (
      this.#count < this.#config.entriesMax && this.#bytesUsed + bytes <= this.#config.bytesMax
    );
  }

  // --- epochs

  /**
   * The vCPUs stand still for the capture of `epoch`: it covers every output held so far that no earlier epoch
   * covers. Triggers of the last capture are forgotten.
   */
  seal(epoch: number): void {
    assert(epoch > NO_EPOCH, 'epochs count from 1');
    for (let i = this.#count - 1; i >= 0; i--) {
      const at = this.#index(i);
      if (this.#epoch[at] !== NO_EPOCH) break;
      this.#epoch[at] = epoch;
    }
    this.#triggerCount = 0;
    this.#sealedEpoch = epoch;
  }

  /**
   * Adds a guest write that a vCPU has made and no device has seen yet to the capture in progress; it is
   * dispatched here afterwards, and at a takeover from this capture there. Never for a write whose vCPU state
   * was rewound: that one is executed again.
   * @param space TRIGGER_SPACE
   * @param valueLo low and high half: all eight bytes of an 8-byte write
   */
  addTrigger(space: number, size: number, address: number, valueLo: number, valueHi: number): void {
    assert(this.#triggerCount < this.#config.triggersMax, 'one pending write per vCPU');
    const at = this.#triggerCount++ * 5;
    this.#triggerNumbers[at] = space;
    this.#triggerNumbers[at + 1] = size;
    this.#triggerNumbers[at + 2] = address;
    this.#triggerNumbers[at + 3] = valueLo;
    this.#triggerNumbers[at + 4] = valueHi;
  }

  /** Bytes that {@link writeLog} will write for the epoch just sealed. */
  get logBytes(): number {
    let bytes = TAP_LOG_HEADER_BYTES + this.#triggerCount * TRIGGER_BYTES;
    for (let i = this.#count - 1; i >= 0; i--) {
      const at = this.#index(i);
      if (this.#epoch[at] === NO_EPOCH) continue;
      if (this.#epoch[at] !== this.#sealedEpoch) break;
      if (this.#kind[at] !== KIND_BLOCK) bytes += LOGGED_HEADER_BYTES + this.#length[at]!;
    }
    return bytes;
  }

  /**
   * Writes the log of the epoch just sealed (layout: wire/tap-log.ts) into `out`; before the vCPUs run on or
   * after, as long as no later epoch is sealed. @returns the offset behind it
   */
  writeLog(out: Uint8Array, at: number): number {
    let first = 0;
    let firstSeq = this.#headSeq;
    while (first < this.#count) {
      const index = this.#index(first);
      if (this.#epoch[index] === this.#sealedEpoch) break;
      assert(this.#epoch[index] !== NO_EPOCH, 'the sealed epoch precedes what is uncovered');
      if (this.#kind[index] !== KIND_BLOCK) firstSeq++;
      first++;
    }
    let outputs = 0;
    let end = at + TAP_LOG_HEADER_BYTES;
    for (let i = first; i < this.#count; i++) {
      const index = this.#index(i);
      if (this.#epoch[index] !== this.#sealedEpoch) break;
      const kind = this.#kind[index]!;
      if (!this.logs(kind)) continue;
      const start = this.#start[index]!;
      const length = this.#length[index]!;
      end = writeLoggedHeader(out, end, kind, this.#device[index]!, length);
      out.set(this.#bytes.subarray(start, start + length), end);
      end += length;
      outputs++;
    }
    const t = this.#triggerNumbers;
    for (let i = 0; i < this.#triggerCount * 5; i += 5) {
      end = writeTrigger(out, end, t[i]!, t[i + 1]!, t[i + 2]!, t[i + 3]!, t[i + 4]!);
    }
    writeTapLogHeader(out, at, this.#headSeq - 1, firstSeq, outputs, this.#triggerCount);
    return end;
  }

  /** Whether outputs of `kind` go into the log. */
  protected logs(kind: number): boolean {
    return kind !== KIND_BLOCK;
  }

  /**
   * The peer holds `epoch`: everything it and earlier epochs cover leaves now, in order.
   * @returns how many outputs left
   */
  release(epoch: number): number {
    let released = 0;
    while (this.#count > 0) {
      const covered = this.#epoch[this.#head]!;
      if (covered === NO_EPOCH || covered > epoch) break;
      this.#releaseHead();
      released++;
    }
    if (released > 0) {
      this.#pump();
      this.#sink.released();
    }
    return released;
  }

  /** Everything leaves: the guest goes on without protection. Duty of the caller: the arbiter knows (R3). */
  releaseAll(): number {
    let released = 0;
    for (; this.#count > 0; released++) this.#releaseHead();
    if (released > 0) {
      this.#pump();
      this.#sink.released();
    }
    return released;
  }

  /** Epochs from `epoch` on will not commit: what they cover waits for the next one. */
  returnFrom(epoch: number): void {
    for (let i = this.#count - 1; i >= 0; i--) {
      const at = this.#index(i);
      if (this.#epoch[at] === NO_EPOCH) continue;
      if (this.#epoch[at]! < epoch) break;
      this.#epoch[at] = NO_EPOCH;
    }
  }

  /** Forgets everything: this side is fenced. */
  drop(): void {
    while (this.#count > 0) this.#dropHead();
  }

  // --- block requests after their release

  /** Whether this request was released through the tap and is not done; one that passed by is not known here. */
  isReleased(device: number, tag: number): boolean {
    for (let i = 0; i < this.#queueCount; i++) {
      const slot = this.#queue[i]!;
      if (this.#queueState[i] === 0) continue;
      if (this.#blockDevice[slot] === device && this.#blockTag[slot] === tag) return true;
    }
    return false;
  }

  /** The disk is done with a released request: what waited for it goes to the disk now. */
  blockDone(device: number, tag: number): void {
    let from = 0;
    while (from < this.#queueCount) {
      const slot = this.#queue[from]!;
      const given = this.#queueState[from] === 1;
      if (given && this.#blockDevice[slot] === device && this.#blockTag[slot] === tag) break;
      from++;
    }
    assert(from < this.#queueCount, 'a request that is done was released');
    this.#freeSlots[this.#freeCount++] = this.#queue[from]!;
    for (let i = from + 1; i < this.#queueCount; i++) {
      this.#queue[i - 1] = this.#queue[i]!;
      this.#queueState[i - 1] = this.#queueState[i]!;
    }
    this.#queueCount--;
    if (this.#pump()) this.#sink.released();
  }

  /** Gives to the disks what nothing earlier stands in the way of. */
  #pump(): boolean {
    let gave = false;
    for (let i = 0; i < this.#queueCount; i++) {
      if (this.#queueState[i] === 1 || !this.mayGive(i)) continue;
      this.#queueState[i] = 1;
      gave = true;
      const slot = this.#queue[i]!;
      this.#sink.block(this.#blockDevice[slot]!, this.#blockTag[slot]!);
    }
    return gave;
  }

  /**
   * Whether released request number `i` may go to its disk: a flush waits for everything earlier, everything
   * waits for an earlier flush, and overlapping writes keep their order.
   */
  protected mayGive(i: number): boolean {
    const slot = this.#queue[i]!;
    const flush = this.#blockOp[slot] === HELD_BLOCK.flush;
    for (let j = 0; j < i; j++) {
      const other = this.#queue[j]!;
      if (this.#blockDevice[other] !== this.#blockDevice[slot]) continue;
      if (flush || this.#blockOp[other] === HELD_BLOCK.flush) return false;
      const apart =
        this.#blockTo[other]! <= this.#blockFrom[slot]! ||
        this.#blockFrom[other]! >= this.#blockTo[slot]!;
      if (!apart) return false;
    }
    return true;
  }

  // --- rings

  #index(i: number): number {
    const at = this.#head + i;
    return at < this.#config.entriesMax ? at : at - this.#config.entriesMax;
  }

  #add(kind: number, device: number, start: number, length: number): void {
    const at = this.#index(this.#count++);
    this.#kind[at] = kind;
    this.#device[at] = device;
    this.#epoch[at] = NO_EPOCH;
    this.#start[at] = start;
    this.#length[at] = length;
    if (kind !== KIND_BLOCK) this.#loggedHeld++;
    this.#onHeld();
  }

  /** `length` bytes in one piece, or -1. Bytes skipped at the ring's end belong to the piece behind them. */
  #reserve(length: number): number {
    const size = this.#config.bytesMax;
    if (this.#bytesUsed === 0) {
      this.#bytesHead = 0;
      this.#bytesTail = 0;
    }
    const wrapped = this.#bytesTail < this.#bytesHead || this.#bytesUsed === size;
    if (!wrapped && this.#bytesTail + length > size) {
      const skipped = size - this.#bytesTail;
      if (length > this.#bytesHead) return -1;
      this.#bytesUsed += skipped + length;
      this.#bytesTail = length;
      return 0;
    }
    if (wrapped && this.#bytesTail + length > this.#bytesHead) return -1;
    const at = this.#bytesTail;
    this.#bytesTail += length;
    this.#bytesUsed += length;
    return at;
  }

  #releaseHead(): void {
    const at = this.#head;
    const kind = this.#kind[at]!;
    const device = this.#device[at]!;
    const start = this.#start[at]!;
    if (kind === KIND_FRAME) {
      this.#sink.frame(device, this.#bytes, start, start + this.#length[at]!);
    } else if (kind === KIND_CONSOLE) {
      this.#sink.console(device, this.#bytes, start, start + this.#length[at]!);
    } else {
      this.#queue[this.#queueCount] = start;
      this.#queueState[this.#queueCount] = 0;
      this.#queueCount++;
    }
    this.#forgetHead(false);
  }

  #dropHead(): void {
    this.#forgetHead(true);
  }

  #forgetHead(dropBlock: boolean): void {
    const at = this.#head;
    const start = this.#start[at]!;
    if (this.#kind[at] === KIND_BLOCK) {
      if (dropBlock) this.#freeSlots[this.#freeCount++] = start;
    } else {
      const end = start + this.#length[at]!;
      const skipped = start < this.#bytesHead ? this.#config.bytesMax - this.#bytesHead : 0;
      this.#bytesUsed -= skipped + this.#length[at]!;
      this.#bytesHead = end;
      this.#headSeq++;
      this.#loggedHeld--;
    }
    this.#head = this.#index(1);
    this.#count--;
  }
}
