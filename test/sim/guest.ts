/**
 * The simulated guest: a few pages of memory, one CPU, a network card, a disk. A pure function of its state and
 * of what comes in (requests, completions, entropy), small enough that a whole run takes milliseconds, and
 * strict enough that a client on the outside notices any state that was lost, invented or run twice:
 * requests are counted, every answer carries a hash over all inputs so far, unrequested beacons are numbered,
 * and every second request is answered only after a write and a flush.
 */
export const PAGE_BYTES = 64;
export const PAGES = 16;
export const SECTORS = 8;
export const FRAME_WORDS = 6;
export const FRAME_BYTES = FRAME_WORDS * 4;
/** Requests the card buffers. */
const RX_MAX = 4;
export const SLOTS = 4;
const WORDS = PAGE_BYTES / 4;

/** Replicated disks: how many, and blocks of each; a block of the guest is a number over all of them. */
export const DISKS = 2;
export const DISK_BLOCKS = 8;
export const BLOCKS = DISKS * DISK_BLOCKS;
export const BLOCK_BYTES = 512;
/** Blocks from here on belong to requests of the client, those before to the guest's other business. */
const JOB_BLOCK = 12;
/** Those before are written in places, one after the other, each for a while. */
const PLACE_BLOCKS = 3;
const PLACES = JOB_BLOCK / PLACE_BLOCKS;
const PLACE_STEPS = 32;
/** The block of request `n`. */
export const blockOfRequest = (n: number): number =>
  JOB_BLOCK + (Math.floor(n / 2) % (BLOCKS - JOB_BLOCK));
/** What the guest knows of a block besides the number of its last write: nothing, after writes that overlapped, */
export const AMBIGUOUS = 0xffff_fffe;
/** or not even that both hosts have the same, after one that failed. */
export const FAILED = 0xffff_ffff;

/** First word of a frame. */
export const FRAME = { reply: 1, beacon: 2, lost: 3 } as const;

/** Operation of a disk slot. */
export const SLOT_OP = { none: 0, write: 1, flush: 2, discard: 3, zeroes: 4 } as const;

// Words of page 0.
const W_COUNTER = 0;
const W_HASH = 1;
const W_BEACON = 2;
const W_JOB = 3;
const W_JOB_SLOT = 4;
const W_INCARNATION = 5;
const W_AVAIL = 6;
const W_SERIAL = 7;
// Page 1: four slots of {op, sector, value, done}.
const W_SLOTS = WORDS;
const SCRATCH_PAGE = 2;
// With replicated disks, page 2: the last write of each block.
const W_BLOCKS = 2 * WORDS;

/** In a slot's second word: another request in flight overlaps it. */
const OVERLAPS = 0x1_0000;

const JOB = { idle: 0, writing: 1, flushing: 2, wantsWrite: 3, wantsFlush: 4 } as const;

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

/** Tells one content of a guest's whole memory from another, quickly. */
export function memoryHash(memory: Uint8Array): number {
  const words = new Uint32Array(memory.buffer, memory.byteOffset, memory.length / 4);
  let h = 0;
  for (let i = 0; i < words.length; i++) h = Math.imul(h ^ words[i]!, 0x85ebca6b) ^ (h >>> 15);
  return h >>> 0;
}

/** What a block holds after write number `serial`, in one word; never 0. */
export function blockSignature(incarnation: number, block: number, serial: number): number {
  return (mix(mix(incarnation, block), serial) | 1) >>> 0;
}

/** Everything about a guest, copied: what a checkpoint should hold. */
export interface Ghost {
  readonly steps: number;
  readonly memoryHash: number;
  readonly regs: readonly number[];
  readonly nic: readonly number[];
  readonly disk: readonly number[];
  /** Replicated disks: the number of the last write to each block as the image has it, {@link FAILED} where that may differ. */
  readonly blocks?: readonly number[];
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
  readonly #replicated: boolean;
  readonly #scratchPage: number;

  /**
   * @param writes whether every second request is answered only after a write and a flush
   * @param replicated whether the disks are replicated: then there are several, and the guest is busy on them
   */
  constructor(writes: boolean, replicated = false) {
    this.#writes = writes;
    this.#replicated = replicated;
    this.#scratchPage = replicated ? SCRATCH_PAGE + 1 : SCRATCH_PAGE;
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
    const scratch = this.#scratchPage;
    const word = scratch * WORDS + (acc % ((PAGES - scratch) * WORDS));
    this.#set(word, acc & 0x10000 ? acc : 0);
    if (this.#replicated && acc % 3 !== 0) this.#scribble(mix(acc, 1));
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
    if (job === JOB.wantsWrite) this.#submit(JOB.writing, SLOT_OP.write);
    else if (job === JOB.wantsFlush) this.#submit(JOB.flushing, SLOT_OP.flush);
    if (job !== JOB.writing && job !== JOB.flushing) return;
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
    if (this.#replicated) {
      const block = blockOfRequest(this.words[W_COUNTER]!);
      const slot = this.#makeAvailable(op, block, op === SLOT_OP.write ? 1 : 0);
      const wants = op === SLOT_OP.write ? JOB.wantsWrite : JOB.wantsFlush;
      this.#set(W_JOB, slot < 0 ? wants : job);
      if (slot >= 0) this.#set(W_JOB_SLOT, slot);
      return;
    }
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

  /** Some write, discard or flush, now and then over one in flight. */
  #scribble(acc: number): void {
    // The slot of the client's request is looked at when the guest comes to it.
    if (
      this.words[W_JOB]! !== JOB.idle &&
      this.words[W_AVAIL]! % SLOTS === this.words[W_JOB_SLOT]
    ) {
      return;
    }
    const kind = acc & 15;
    const op =
      kind === 0
        ? SLOT_OP.flush
        : kind === 1
          ? SLOT_OP.discard
          : kind === 2
            ? SLOT_OP.zeroes
            : SLOT_OP.write;
    if (op === SLOT_OP.flush) {
      this.#makeAvailable(op, (acc >>> 5) % BLOCKS, 0);
      return;
    }
    // Most of them on few blocks, so that an epoch writes the same ones again; on others after a while, so that what nobody
    // has written for long shows what a copy left out.
    const place = PLACE_BLOCKS * (Math.floor(this.steps / PLACE_STEPS) % PLACES);
    const block =
      (acc & 0x70) !== 0 ? place + ((acc >>> 7) % PLACE_BLOCKS) : (acc >>> 7) % JOB_BLOCK;
    const end = block < DISK_BLOCKS ? DISK_BLOCKS : JOB_BLOCK;
    const count = Math.min(1 + ((acc >>> 12) % 3), end - block);
    if (this.#overlapping(block, count) && acc >>> 30 !== 0) return;
    this.#makeAvailable(op, block, count);
  }

  #overlapping(block: number, count: number): boolean {
    for (let slot = 0; slot < SLOTS; slot++) {
      if (!this.isPending(slot)) continue;
      const { first, end } = this.rangeOf(slot);
      if (block < end && first < block + count) return true;
    }
    return false;
  }

  /** Whether the guest waits for the request in `slot`. */
  isPending(slot: number): boolean {
    const at = W_SLOTS + slot * 4;
    return this.words[at] !== SLOT_OP.none && this.words[at + 3] === 0;
  }

  /** Blocks of the request in `slot`. */
  rangeOf(slot: number): { readonly first: number; readonly end: number } {
    const word = this.words[W_SLOTS + slot * 4 + 1]!;
    const first = word & 0xff;
    return { first, end: first + ((word >>> 8) & 0xff) };
  }

  /** The number of the last write to `block`, or what else the guest knows of it. */
  known(block: number): number {
    return this.words[W_BLOCKS + block]!;
  }

  /** Makes a request available, if the next slot is free. @returns the slot, or -1 */
  #makeAvailable(op: number, block: number, count: number): number {
    const avail = this.words[W_AVAIL]!;
    const slot = avail % SLOTS;
    if (this.isPending(slot)) return -1;
    const at = W_SLOTS + slot * 4;
    let over = 0;
    for (let other = 0; other < SLOTS; other++) {
      if (!this.isPending(other)) continue;
      const { first, end } = this.rangeOf(other);
      if (block >= end || first >= block + count) continue;
      over = OVERLAPS;
      const word = W_SLOTS + other * 4 + 1;
      this.#set(word, this.words[word]! | OVERLAPS);
    }
    const serial = this.words[W_SERIAL]! + 1;
    this.#set(W_SERIAL, serial);
    this.#set(at, op);
    this.#set(at + 1, block | (count << 8) | over);
    this.#set(at + 2, serial);
    this.#set(at + 3, 0);
    this.#set(W_AVAIL, avail + 1);
    this.#kickDisk();
    return slot;
  }

  /** What a completed request has made of its blocks. */
  #learn(slot: number, ok: boolean): void {
    const at = W_SLOTS + slot * 4;
    const op = this.words[at]!;
    if (op === SLOT_OP.flush) return;
    const { first, end } = this.rangeOf(slot);
    let now: number;
    if (!ok) now = FAILED;
    // A discard is a hint: what is there then is all the same to the guest.
    else if ((this.words[at + 1]! & OVERLAPS) !== 0 || op === SLOT_OP.discard) now = AMBIGUOUS;
    else now = op === SLOT_OP.write ? this.words[at + 2]! : 0;
    for (let block = first; block < end; block++) this.#set(W_BLOCKS + block, now);
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
    if (this.#replicated) this.#learn(slot, ok);
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
      memoryHash: memoryHash(this.memory),
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
