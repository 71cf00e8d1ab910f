/**
 * The simulated guest: a few pages of memory, one CPU, a network card, a disk. A pure function of its state and
 * of what comes in (requests, completions, entropy), small enough that a whole run takes milliseconds, and
 * strict enough that a client on the outside notices any state that was lost, invented or run twice:
 * requests are counted, every answer carries a hash over all inputs so far, unrequested beacons are numbered,
 * and every second request is answered only after a write and a flush.
 */
import { crc32c } from '../../src/base/crc32c.ts';

export const PAGE_BYTES = 64;
export const PAGES = 16;
export const SECTORS = 8;
export const FRAME_WORDS = 6;
export const FRAME_BYTES = FRAME_WORDS * 4;
/** Requests the card buffers. */
const RX_MAX = 4;
const SLOTS = 4;
const WORDS = PAGE_BYTES / 4;

/** First word of a frame. */
export const FRAME = { reply: 1, beacon: 2, lost: 3 } as const;

/** Operation of a disk slot. */
export const SLOT_OP = { none: 0, write: 1, flush: 2 } as const;

// Words of page 0.
const W_COUNTER = 0;
const W_HASH = 1;
const W_BEACON = 2;
const W_JOB = 3;
const W_JOB_SLOT = 4;
const W_INCARNATION = 5;
const W_AVAIL = 6;
// Page 1: four slots of {op, sector, value, done}.
const W_SLOTS = WORDS;
const SCRATCH_PAGE = 2;

const JOB = { idle: 0, writing: 1, flushing: 2 } as const;

/** What a running guest does to the outside. */
export interface GuestDevices {
  /** Sends a frame; false: no room, the card keeps it. */
  send(frame: Uint32Array, step: number): boolean;
  /** A slot of the disk queue is ready; false: no room, the disk looks again later. */
  disk(slot: number, op: number, sector: number, value: number, step: number): boolean;
}

/** Mixes two 32-bit numbers. */
export function mix(a: number, b: number): number {
  let h = Math.imul(a ^ (b + 0x9e3779b9), 0x85ebca6b);
  h ^= h >>> 13;
  h = Math.imul(h, 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** Everything about a guest, copied: what a checkpoint should hold. */
export interface Ghost {
  readonly steps: number;
  readonly memoryCrc: number;
  readonly regs: readonly number[];
  readonly nic: readonly number[];
  readonly disk: readonly number[];
}

export class SimGuest {
  readonly memory = new Uint8Array(PAGES * PAGE_BYTES);
  readonly words = new Uint32Array(this.memory.buffer);
  readonly dirty = new Uint8Array(PAGES);
  /** CPU: steps, accumulator. */
  readonly regs = new Uint32Array(2);
  /** Card: the frame that found no room, and requests received. */
  tx: Uint32Array | undefined;
  readonly rx: number[] = [];
  /** Disk: slots taken from the queue and not completed; the slot to look at next. */
  readonly inFlight: number[] = [];
  lastAvail = 0;
  #devices: GuestDevices | undefined;
  readonly #writes: boolean;

  /** @param writes whether every second request is answered only after a write and a flush */
  constructor(writes: boolean) {
    this.#writes = writes;
  }

  attach(devices: GuestDevices): void {
    this.#devices = devices;
  }

  boot(incarnation: number): void {
    this.#set(W_INCARNATION, incarnation);
    this.dirty.fill(1);
  }

  get steps(): number {
    return this.regs[0]!;
  }

  get counter(): number {
    return this.words[W_COUNTER]!;
  }

  get incarnation(): number {
    return this.words[W_INCARNATION]!;
  }

  #set(word: number, value: number): void {
    this.words[word] = value;
    this.dirty[Math.floor(word / WORDS)] = 1;
  }

  /** A request arrives at the card; lost when its buffer is full. */
  receive(request: number): void {
    if (this.rx.length < RX_MAX) this.rx.push(request);
  }

  /** One turn of the guest's program. */
  step(entropy: number): void {
    if (this.tx !== undefined) {
      if (!this.#devices!.send(this.tx, this.tx[4]!)) return;
      this.tx = undefined;
    }
    this.#kickDisk();
    this.regs[0] = this.regs[0]! + 1;
    const acc = mix(this.regs[1]!, entropy);
    this.regs[1] = acc;
    // Some scratch memory changes every turn, sometimes to zero.
    const word = SCRATCH_PAGE * WORDS + (acc % ((PAGES - SCRATCH_PAGE) * WORDS));
    this.#set(word, acc & 0x10000 ? acc : 0);
    const job = this.words[W_JOB]!;
    if (job !== JOB.idle) this.#work(job);
    else if (this.rx.length > 0) this.#request(this.rx.shift()!, acc);
    else if (acc % 5 === 0) {
      const n = this.words[W_BEACON]! + 1;
      this.#set(W_BEACON, n);
      this.#send(FRAME.beacon, n, mix(this.words[W_HASH]!, acc));
    }
  }

  #request(request: number, acc: number): void {
    const counter = this.words[W_COUNTER]!;
    if (request === counter) {
      this.#send(FRAME.reply, request, this.words[W_HASH]!);
    } else if (request === counter + 1) {
      this.#set(W_COUNTER, request);
      this.#set(W_HASH, mix(mix(this.words[W_HASH]!, request), acc));
      if (this.#writes && request % 2 === 0) this.#submit(JOB.writing, SLOT_OP.write);
      else this.#send(FRAME.reply, request, this.words[W_HASH]!);
    } else if (request > counter) {
      this.#send(FRAME.lost, request, counter);
    }
  }

  #work(job: number): void {
    const slot = this.words[W_JOB_SLOT]!;
    const done = this.words[W_SLOTS + slot * 4 + 3]!;
    if (done === 0) return;
    if (done === 2)
      this.#submit(JOB.writing, SLOT_OP.write); // the disk said no: again
    else if (job === JOB.writing) this.#submit(JOB.flushing, SLOT_OP.flush);
    else {
      this.#set(W_JOB, JOB.idle);
      this.#send(FRAME.reply, this.words[W_COUNTER]!, this.words[W_HASH]!);
    }
  }

  #submit(job: number, op: number): void {
    const avail = this.words[W_AVAIL]!;
    const slot = avail % SLOTS;
    const at = W_SLOTS + slot * 4;
    this.#set(at, op);
    this.#set(at + 1, this.words[W_COUNTER]! % SECTORS);
    this.#set(at + 2, this.words[W_HASH]!);
    this.#set(at + 3, 0);
    this.#set(W_AVAIL, avail + 1);
    this.#set(W_JOB, job);
    this.#set(W_JOB_SLOT, slot);
    this.#kickDisk();
  }

  /** The disk pops what the guest made available. */
  #kickDisk(): void {
    while (this.lastAvail < this.words[W_AVAIL]!) {
      const slot = this.lastAvail % SLOTS;
      if (!this.#give(slot)) return;
      this.inFlight.push(slot);
      this.lastAvail++;
    }
  }

  #give(slot: number): boolean {
    const at = W_SLOTS + slot * 4;
    const w = this.words;
    return this.#devices!.disk(slot, w[at]!, w[at + 1]!, w[at + 2]!, this.steps);
  }

  /** The disk completes a slot; its write into guest memory is the device's, so it marks the page itself. */
  complete(slot: number, ok: boolean): void {
    const index = this.inFlight.indexOf(slot);
    if (index < 0) return;
    this.inFlight.splice(index, 1);
    this.#set(W_SLOTS + slot * 4 + 3, ok ? 1 : 2);
  }

  /** After a restore: requests in flight at the capture are issued again. */
  repop(): void {
    for (const slot of this.inFlight) this.#give(slot);
  }

  #send(type: number, n: number, hash: number): void {
    const { steps } = this;
    const frame = Uint32Array.of(type, this.incarnation, n, hash, steps, this.words[W_COUNTER]!);
    if (!this.#devices!.send(frame, steps)) this.tx = frame;
  }

  /** The card's state as numbers. */
  saveNic(): number[] {
    return [this.tx === undefined ? 0 : 1, ...(this.tx ?? []), ...this.rx];
  }

  saveDisk(): number[] {
    return [this.lastAvail, ...this.inFlight];
  }

  loadNic(state: readonly number[]): void {
    const held = state[0] === 1;
    this.tx = held ? Uint32Array.from(state.slice(1, 1 + FRAME_WORDS)) : undefined;
    this.rx.length = 0;
    for (const request of state.slice(held ? 1 + FRAME_WORDS : 1)) this.rx.push(request);
  }

  loadDisk(state: readonly number[]): void {
    this.lastAvail = state[0]!;
    this.inFlight.length = 0;
    for (const slot of state.slice(1)) this.inFlight.push(slot);
  }

  ghost(): Ghost {
    return {
      steps: this.steps,
      memoryCrc: crc32c(this.memory),
      regs: [...this.regs],
      nic: this.saveNic(),
      disk: this.saveDisk(),
    };
  }
}

/** Bytes of a list of numbers. */
export function packWords(words: readonly number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(words).buffer);
}

/** The numbers in `bytes[start, end)`. */
export function unpackWords(bytes: Uint8Array, start: number, end: number): number[] {
  return [...new Uint32Array(bytes.slice(start, end).buffer)];
}
