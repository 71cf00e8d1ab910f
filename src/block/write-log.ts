/**
 * Writes that a network disk has acknowledged and not yet flushed, with their data: if the server goes away, what it had
 * only in its cache can be written again. A ring of bytes and a ring of entries, both bounded; when either is full the
 * owner must flush.
 */
import type { GuestMemory } from '../memory/guest-memory.ts';

/** One remembered operation. */
export interface LoggedWrite {
  op: number;
  offsetBytes: number;
  lengthBytes: number;
}

export class WriteLog {
  readonly #bytes: Uint8Array;
  readonly #ops: Uint8Array;
  readonly #offsets: Float64Array;
  readonly #lengths: Float64Array;
  /** Where each entry's data starts (counted as below), and how much it is. */
  readonly #starts: Float64Array;
  readonly #held: Float64Array;
  /** Counted since the beginning; modulo the capacity they are indices. */
  #firstEntry = 0;
  #endEntry = 0;
  #firstByte = 0;
  #endByte = 0;

  constructor(capacityBytes: number, maxEntries: number) {
    this.#bytes = new Uint8Array(capacityBytes);
    this.#ops = new Uint8Array(maxEntries);
    this.#offsets = new Float64Array(maxEntries);
    this.#lengths = new Float64Array(maxEntries);
    this.#starts = new Float64Array(maxEntries);
    this.#held = new Float64Array(maxEntries);
  }

  /** Number of the first entry that is kept. */
  get first(): number {
    return this.#firstEntry;
  }

  /** Number that the next entry will get. */
  get end(): number {
    return this.#endEntry;
  }

  /** Whether an entry with `dataBytes` of data fits. */
  fits(dataBytes: number): boolean {
    return (
      this.#endEntry - this.#firstEntry < this.#ops.length &&
      this.#endByte - this.#firstByte + dataBytes <= this.#bytes.length
    );
  }

  /** Appends an operation without data. It must fit. */
  add(op: number, offsetBytes: number, lengthBytes: number): void {
    const slot = this.#endEntry % this.#ops.length;
    this.#ops[slot] = op;
    this.#offsets[slot] = offsetBytes;
    this.#lengths[slot] = lengthBytes;
    this.#starts[slot] = this.#endByte;
    this.#held[slot] = 0;
    this.#endEntry++;
  }

  /** Adds guest memory to the data of the newest entry. It must fit. */
  addData(memory: GuestMemory, address: number, length: number): void {
    const { length: capacity } = this.#bytes;
    let at = address;
    let left = length;
    while (left > 0) {
      const position = this.#endByte % capacity;
      const n = Math.min(left, capacity - position);
      memory.read(at, this.#bytes, position, n);
      this.#endByte += n;
      at += n;
      left -= n;
    }
    this.#held[(this.#endEntry - 1) % this.#ops.length]! += length;
  }

  /** Reads entry `number` (first <= number < end) into `out`. */
  entry(number: number, out: LoggedWrite): void {
    const slot = number % this.#ops.length;
    out.op = this.#ops[slot]!;
    out.offsetBytes = this.#offsets[slot]!;
    out.lengthBytes = this.#lengths[slot]!;
  }

  /** The data of entry `number`, as a copy. Slow path: only for replay. */
  data(number: number): Uint8Array {
    const slot = number % this.#ops.length;
    const length = this.#held[slot]!;
    const out = new Uint8Array(length);
    const start = this.#starts[slot]! % this.#bytes.length;
    const head = Math.min(length, this.#bytes.length - start);
    out.set(this.#bytes.subarray(start, start + head));
    out.set(this.#bytes.subarray(0, length - head), head);
    return out;
  }

  /** Forgets all entries before `number`: they are durable. */
  drop(number: number): void {
    while (this.#firstEntry < number) {
      this.#firstByte += this.#held[this.#firstEntry % this.#ops.length]!;
      this.#firstEntry++;
    }
  }
}
