/**
 * The device's side of a split virtqueue (VIRTIO 1.2, 2.7): takes chains out of the available ring, puts them into
 * the used ring, and decides who is to be notified. Nothing is allocated per descriptor. A ring that breaks the
 * rules is reported once through `onBroken`; from then on the queue is silent.
 *
 * Other threads. The guest's processors write these rings while we read them. Three things make that safe here:
 * - The 16-bit indices, flags and events go through Uint16Array elements, which are one move at every tier of
 *   the JavaScript engine (DataView accesses are not, before they are optimised).
 * - x86-64 keeps loads in order with loads and stores with stores, and the engine keeps them in program order, so
 *   "index, then entry" on the way in and "entry, then index" on the way out need no fence.
 * - A store followed by a load of what the other side wrote does need one (index published, then suppression read;
 *   event published, then index read again): {@link VirtQueue.publish} and {@link VirtQueue.enableNotify}
 *   execute an atomic exchange, a full barrier, in between.
 *
 * Saved state. Requests may complete in any order, so "last_avail_idx - inuse" alone does not say which are
 * outstanding. The queue keeps the pop order of each outstanding head and saves those heads, oldest first. A
 * driver must not touch a chain that it has not got back (2.7.13), so after a restore {@link VirtQueue.pop} walks
 * those chains again, in that order, before it looks at the available ring.
 */
import { assert } from '../base/assert.ts';
import { hex } from '../base/bits.ts';
import type { GuestMemory, MemoryRange } from '../memory/guest-memory.ts';
import { array, bool, type Codec, struct, u16, u53 } from '../snapshot/codec.ts';
import { requireState } from '../snapshot/schema.ts';
import { CHAIN_MAX_SEGMENTS, type Chain } from './chain.ts';
import { AVAIL_NO_INTERRUPT, DESC, DESC_BYTES, QUEUE_SIZE_MAX, USED_NO_NOTIFY } from './spec.ts';

/** Saved state of one queue. */
export interface VirtQueueState {
  size: number;
  desc: number;
  avail: number;
  used: number;
  enabled: boolean;
  /** The next entry of the available ring to look at. */
  lastAvail: number;
  /** The used index, all of it published. */
  usedIndex: number;
  /** The used index at the last interrupt decision; meaningful when `signalledValid`. */
  signalled: number;
  signalledValid: boolean;
  /** Heads popped and not completed, in the order they were popped. */
  outstanding: number[];
}

/** Stores a {@link VirtQueueState}. */
export const virtQueueCodec: Codec<VirtQueueState> = struct<VirtQueueState>({
  size: u16,
  desc: u53,
  avail: u53,
  used: u53,
  enabled: bool,
  lastAvail: u16,
  usedIndex: u16,
  signalled: u16,
  signalledValid: bool,
  outstanding: array(u16, QUEUE_SIZE_MAX),
});

export class VirtQueue {
  /** The largest size that the driver may choose; a power of two. */
  readonly maxSize: number;
  /** As chosen by the driver; fixed while enabled. */
  size: number;
  /** Ring addresses as the driver wrote them; fixed while enabled. */
  descAddress = 0;
  availAddress = 0;
  usedAddress = 0;
  readonly #memory: GuestMemory;
  readonly #onBroken: (why: string) => void;
  readonly #fence = new Int32Array(new SharedArrayBuffer(4));
  #enabled = false;
  #broken = false;
  #eventIdx = false;
  #indirect = false;
  #lastAvail = 0;
  #usedIndex = 0;
  #published = 0;
  #signalled = 0;
  #signalledValid = false;
  #inUse = 0;
  /** Pop order of each outstanding head, 0 when the driver owns it. */
  readonly #popped: Float64Array;
  #popCount = 0;
  /** Heads to walk again after a restore, and how far that is. */
  #replay: number[] = [];
  #replayed = 0;
  /** Pop orders up to this one are of before the restore. */
  #replayOrder = 0;
  // Views of the ranges that hold the rings, and element indices into them.
  #descWords: Uint32Array = EMPTY32;
  #descAt = 0;
  #availWords: Uint16Array = EMPTY16;
  #availAt = 0;
  #usedWords: Uint16Array = EMPTY16;
  #usedWords32: Uint32Array = EMPTY32;
  #usedAt = 0;

  /** @param onBroken told once per enabling when the guest breaks the ring's rules */
  constructor(memory: GuestMemory, maxSize: number, onBroken: (why: string) => void) {
    assert(
      maxSize >= 2 && maxSize <= QUEUE_SIZE_MAX && (maxSize & (maxSize - 1)) === 0,
      'queue size',
    );
    this.#memory = memory;
    this.maxSize = maxSize;
    this.size = maxSize;
    this.#onBroken = onBroken;
    this.#popped = new Float64Array(maxSize);
  }

  get enabled(): boolean {
    return this.#enabled;
  }

  /** Chains popped and not yet given back. */
  get inUse(): number {
    return this.#inUse;
  }

  /** Chains that a restored queue will hand out again before new ones. */
  get toReplay(): number {
    return this.#replay.length - this.#replayed;
  }

  /** Sets the negotiated ring features. */
  setFeatures(eventIdx: boolean, indirect: boolean): void {
    this.#eventIdx = eventIdx;
    this.#indirect = indirect;
  }

  /**
   * Starts the queue at index 0 with the size and addresses set before.
   * @returns what is wrong with them, or undefined
   */
  enable(): string | undefined {
    const wrong = this.#locate(this.size, this.descAddress, this.availAddress, this.usedAddress);
    if (wrong !== undefined) return wrong;
    this.#restart();
    this.#enabled = true;
    return undefined;
  }

  /** As after power-on. */
  reset(): void {
    this.#restart();
    this.#enabled = false;
    this.size = this.maxSize;
    this.descAddress = 0;
    this.availAddress = 0;
    this.usedAddress = 0;
    this.#descWords = EMPTY32;
    this.#availWords = EMPTY16;
    this.#usedWords = EMPTY16;
    this.#usedWords32 = EMPTY32;
  }

  /** Whether {@link pop} would find a chain (or a broken ring). */
  hasAvailable(): boolean {
    if (!this.#enabled || this.#broken) return false;
    return this.toReplay > 0 || this.#availWords[this.#availAt + 1] !== this.#lastAvail;
  }

  /**
   * Takes the next chain; it stays outstanding until {@link push} or {@link unpop}.
   * @returns false when there is none, or the ring is broken
   */
  pop(chain: Chain): boolean {
    if (!this.#enabled || this.#broken) return false;
    if (this.#replayed < this.#replay.length) return this.#popAgain(chain);
    // The index is read before the entry and the descriptors: x86-64 keeps that order.
    const waiting = (this.#availWords[this.#availAt + 1]! - this.#lastAvail) & 0xffff;
    if (waiting === 0) return false;
    if (waiting > this.size) {
      return this.#fail(`available index runs ${waiting} ahead in a ring of ${this.size}`);
    }
    const head = this.#availWords[this.#availAt + 2 + (this.#lastAvail & (this.size - 1))]!;
    if (head >= this.size) return this.#fail(`head ${head} in a ring of ${this.size}`);
    if (this.#popped[head] !== 0) return this.#fail(`head ${head} is already in use`);
    if (!this.#walk(chain, head)) return false;
    this.#lastAvail = (this.#lastAvail + 1) & 0xffff;
    this.#popped[head] = ++this.#popCount;
    this.#inUse++;
    return true;
  }

  /** Puts back the chain popped last, as if it had not been looked at. Several: the last one first. */
  unpop(head: number): void {
    const order = this.#popped[head]!;
    assert(order !== 0, 'the chain is outstanding');
    if (order <= this.#replayOrder) {
      if (this.#replayed > 0) this.#replayed--;
      else this.#replay.unshift(head);
      return;
    }
    assert(order === this.#popCount, 'only the chain popped last');
    this.#popped[head] = 0;
    this.#popCount--;
    this.#inUse--;
    this.#lastAvail = (this.#lastAvail - 1) & 0xffff;
  }

  /** Writes the used entry of a chain; the driver sees it with the next {@link publish}. */
  push(head: number, writtenBytes: number): void {
    if (!this.#enabled || this.#broken) return;
    assert(this.#popped[head] !== 0, 'the chain is outstanding');
    this.#popped[head] = 0;
    this.#inUse--;
    const entry = this.#usedIndex & (this.size - 1);
    const at = (this.#usedAt >> 1) + 1 + 2 * entry;
    this.#usedWords32[at] = head;
    this.#usedWords32[at + 1] = writtenBytes;
    this.#memory.dirty.mark(this.usedAddress + 4 + 8 * entry, 8);
    this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
    if (this.#inUse === 0) {
      this.#popCount = 0;
      this.#replayOrder = 0;
    }
  }

  /**
   * Shows the driver all entries pushed so far.
   * @returns whether the driver wants an interrupt for them (VIRTIO 1.2, 2.7.7)
   */
  publish(): boolean {
    const index = this.#usedIndex;
    if (!this.#enabled || index === this.#published) return false;
    this.#usedWords[this.#usedAt + 1] = index;
    this.#memory.dirty.mark(this.usedAddress + 2, 2);
    this.#published = index;
    Atomics.exchange(this.#fence, 0, 0);
    if (!this.#eventIdx) return (this.#availWords[this.#availAt]! & AVAIL_NO_INTERRUPT) === 0;
    const old = this.#signalled;
    const valid = this.#signalledValid;
    this.#signalled = index;
    this.#signalledValid = true;
    const event = this.#availWords[this.#availAt + 2 + this.size]!;
    return !valid || ((index - event - 1) & 0xffff) < ((index - old) & 0xffff);
  }

  /** Asks the driver not to notify while the device is looking anyway; a hint. */
  disableNotify(): void {
    if (this.#eventIdx || !this.#enabled || this.#broken) return;
    this.#setUsedFlags(USED_NO_NOTIFY);
  }

  /**
   * Asks for a notification when the next chain is made available (VIRTIO 1.2, 2.7.9, 2.7.10).
   * @param looked how many chains were popped and put back, because they alone are of no use
   * @returns true when one has come already, so that no notification will: look again
   */
  enableNotify(looked = 0): boolean {
    if (!this.#enabled || this.#broken) return false;
    const replays = this.toReplay;
    const next = (this.#lastAvail + Math.max(0, looked - replays)) & 0xffff;
    if (this.#eventIdx) {
      const at = this.#usedAt + 2 + 4 * this.size;
      if (this.#usedWords[at] !== next) {
        this.#usedWords[at] = next;
        this.#memory.dirty.mark(this.usedAddress + 4 + 8 * this.size, 2);
      }
    } else {
      this.#setUsedFlags(0);
    }
    Atomics.exchange(this.#fence, 0, 0);
    return replays > looked || this.#availWords[this.#availAt + 1] !== next;
  }

  /** The state; nothing may be pushed and not published. */
  save(): VirtQueueState {
    assert(this.#published === this.#usedIndex, 'used entries are published before state is taken');
    const outstanding: number[] = [];
    for (let head = 0; head < this.maxSize; head++) {
      if (this.#popped[head] !== 0) outstanding.push(head);
    }
    outstanding.sort((a, b) => this.#popped[a]! - this.#popped[b]!);
    return {
      size: this.size,
      desc: this.descAddress,
      avail: this.availAddress,
      used: this.usedAddress,
      enabled: this.#enabled,
      lastAvail: this.#lastAvail,
      usedIndex: this.#usedIndex,
      signalled: this.#signalled,
      signalledValid: this.#signalledValid,
      outstanding,
    };
  }

  /** Throws unless `state` could be this queue's. @throws VmmError `STATE_INVALID` */
  check(state: VirtQueueState): void {
    const { size, outstanding } = state;
    requireState(size > 0 && size <= this.maxSize && (size & (size - 1)) === 0, 'queue size');
    requireState(
      outstanding.every((head) => head < size) && new Set(outstanding).size === outstanding.length,
      'outstanding heads are distinct and in the ring',
    );
    const popped = (state.lastAvail - state.usedIndex) & 0xffff;
    requireState(popped === outstanding.length, 'indices agree with what is outstanding');
    if (state.enabled) {
      const wrong = this.#wrongPlaces(size, state.desc, state.avail, state.used);
      requireState(wrong === undefined, `queue: ${wrong}`);
    } else {
      requireState(popped === 0, 'a queue that is off has nothing outstanding');
    }
  }

  /** Takes over a checked state. Outstanding chains come out of {@link pop} again. */
  load(state: VirtQueueState): void {
    this.reset();
    this.size = state.size;
    this.descAddress = state.desc;
    this.availAddress = state.avail;
    this.usedAddress = state.used;
    if (state.enabled) {
      const wrong = this.#locate(state.size, state.desc, state.avail, state.used);
      assert(wrong === undefined, 'the state was checked');
    }
    this.#enabled = state.enabled;
    this.#lastAvail = state.lastAvail;
    this.#usedIndex = state.usedIndex;
    this.#published = state.usedIndex;
    this.#signalled = state.signalled;
    this.#signalledValid = state.signalledValid;
    this.#replay = [...state.outstanding];
    this.#inUse = state.outstanding.length;
    for (const head of state.outstanding) this.#popped[head] = ++this.#popCount;
    this.#replayOrder = this.#popCount;
  }

  #popAgain(chain: Chain): boolean {
    const head = this.#replay[this.#replayed]!;
    if (!this.#walk(chain, head)) return false;
    this.#replayed++;
    if (this.#replayed === this.#replay.length) {
      this.#replay = [];
      this.#replayed = 0;
    }
    return true;
  }

  /** Flattens the chain at `head` (VIRTIO 1.2, 2.7.5). */
  #walk(chain: Chain, head: number): boolean {
    chain.clear(head);
    const words = this.#descWords;
    let index = head;
    // Every descriptor of the table at most once: a longer walk is a loop.
    for (let steps = 0; steps < this.size; steps++) {
      const at = this.#descAt + 4 * index;
      const address = words[at + 1]! * 0x1_0000_0000 + words[at]!;
      const length = words[at + 2]!;
      const rest = words[at + 3]!;
      if ((rest & DESC.indirect) !== 0) return this.#walkIndirect(chain, address, length, rest);
      if (!this.#segment(chain, address, length, rest)) return false;
      if ((rest & DESC.next) === 0) return true;
      index = rest >>> 16;
      if (index >= this.size) return this.#fail(`descriptor ${index} in a table of ${this.size}`);
    }
    return this.#fail('descriptor loop');
  }

  /** The chain goes on in a table of its own (VIRTIO 1.2, 2.7.5.3); it has to end there. */
  #walkIndirect(chain: Chain, table: number, bytes: number, flags: number): boolean {
    const memory = this.#memory;
    if (!this.#indirect) return this.#fail('indirect descriptor without the feature');
    if ((flags & DESC.next) !== 0) return this.#fail('indirect descriptor with a successor');
    const count = bytes / DESC_BYTES;
    if (bytes === 0 || !Number.isInteger(count) || count > 0x1_0000) {
      return this.#fail(`indirect table of ${bytes} bytes`);
    }
    if (memory.rangeOf(table, bytes) === undefined) {
      return this.#fail(`indirect table at ${hex(table)} is not RAM`);
    }
    let index = 0;
    // Empty descriptors count as well: a chain must not keep the thread longer than the segments that it may have.
    for (let steps = 0; steps < Math.min(count, CHAIN_MAX_SEGMENTS); steps++) {
      const at = table + DESC_BYTES * index;
      const rest = memory.readU32(at + 12);
      if ((rest & DESC.indirect) !== 0)
        return this.#fail('indirect descriptor in an indirect table');
      if (!this.#segment(chain, memory.readU64(at), memory.readU32(at + 8), rest)) return false;
      if ((rest & DESC.next) === 0) return true;
      index = rest >>> 16;
      if (index >= count) return this.#fail(`descriptor ${index} in an indirect table of ${count}`);
    }
    return this.#fail(
      `descriptor loop in an indirect table, or more than ${CHAIN_MAX_SEGMENTS} descriptors`,
    );
  }

  /** Adds one segment. Empty ones are skipped. */
  #segment(chain: Chain, address: number, length: number, flags: number): boolean {
    const write = (flags & DESC.write) !== 0;
    if (!write && chain.count > chain.readable) {
      return this.#fail('readable descriptor after a writable one');
    }
    if (length === 0) return true;
    if (chain.count === CHAIN_MAX_SEGMENTS) {
      return this.#fail(`chain of more than ${CHAIN_MAX_SEGMENTS} segments`);
    }
    if (!this.#memory.contains(address, length)) {
      return this.#fail(`buffer ${hex(address)}+${length} is not RAM`);
    }
    chain.add(address, length, write);
    return true;
  }

  #fail(why: string): false {
    this.#broken = true;
    this.#onBroken(why);
    return false;
  }

  #restart(): void {
    this.#broken = false;
    this.#lastAvail = 0;
    this.#usedIndex = 0;
    this.#published = 0;
    this.#signalled = 0;
    this.#signalledValid = false;
    this.#inUse = 0;
    this.#popped.fill(0);
    this.#popCount = 0;
    this.#replay = [];
    this.#replayed = 0;
    this.#replayOrder = 0;
  }

  #setUsedFlags(flags: number): void {
    if (this.#usedWords[this.#usedAt] === flags) return;
    this.#usedWords[this.#usedAt] = flags;
    this.#memory.dirty.mark(this.usedAddress, 2);
  }

  /** Alignment and size of the three parts (VIRTIO 1.2, 2.7); each must lie in one range of RAM. */
  #wrongPlaces(size: number, desc: number, avail: number, used: number): string | undefined {
    if (size === 0 || (size & (size - 1)) !== 0) return `queue size ${size} is no power of two`;
    const parts: [string, number, number, number][] = [
      ['descriptor table', desc, 16, DESC_BYTES * size],
      ['available ring', avail, 2, 6 + 2 * size],
      ['used ring', used, 4, 6 + 8 * size],
    ];
    for (const [name, address, alignment, bytes] of parts) {
      if (address % alignment !== 0) return `${name} at ${hex(address)} is not aligned`;
      if (this.#memory.rangeOf(address, bytes) === undefined) {
        return `${name} at ${hex(address)} is not RAM`;
      }
    }
    return undefined;
  }

  #locate(size: number, desc: number, avail: number, used: number): string | undefined {
    const wrong = this.#wrongPlaces(size, desc, avail, used);
    if (wrong !== undefined) return wrong;
    const descRange = this.#memory.rangeOf(desc, 1)!;
    const availRange = this.#memory.rangeOf(avail, 1)!;
    const usedRange = this.#memory.rangeOf(used, 1)!;
    this.#descWords = words32(descRange);
    this.#descAt = (desc - descRange.base) / 4;
    this.#availWords = words16(availRange);
    this.#availAt = (avail - availRange.base) / 2;
    this.#usedWords = words16(usedRange);
    this.#usedWords32 = words32(usedRange);
    this.#usedAt = (used - usedRange.base) / 2;
    return undefined;
  }
}

const EMPTY16 = new Uint16Array(0);
const EMPTY32 = new Uint32Array(0);

function words16({ bytes }: MemoryRange): Uint16Array {
  return new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
}

function words32({ bytes }: MemoryRange): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}
