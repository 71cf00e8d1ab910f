/**
 * A bounded first-in first-out queue. Full is an answer, not an error: the producer waits (R5).
 */
import { assert } from './assert.ts';

/** A ring of at most `capacity` items. */
export class BoundedRing<T> {
  readonly capacity: number;
  readonly #items: (T | undefined)[];
  #head = 0;
  #length = 0;

  constructor(capacity: number) {
    assert(Number.isInteger(capacity) && capacity > 0, 'ring capacity is a positive integer');
    this.capacity = capacity;
    this.#items = new Array<T | undefined>(capacity).fill(undefined);
  }

  get length(): number {
    return this.#length;
  }

  get full(): boolean {
    return this.#length === this.capacity;
  }

  /** Appends `item`; false (and nothing changed) when the ring is full. */
  push(item: T): boolean {
    if (this.full) return false;
    this.#items[(this.#head + this.#length) % this.capacity] = item;
    this.#length++;
    return true;
  }

  /** The `index`-th oldest item, or undefined when there is none. */
  peek(index = 0): T | undefined {
    return index < this.#length ? this.#items[(this.#head + index) % this.capacity] : undefined;
  }

  /** Removes and returns the oldest item, or undefined when empty. */
  shift(): T | undefined {
    if (this.#length === 0) return undefined;
    const item = this.#items[this.#head];
    this.#items[this.#head] = undefined;
    this.#head = (this.#head + 1) % this.capacity;
    this.#length--;
    return item;
  }

  /** Drops every item. */
  clear(): void {
    this.#items.fill(undefined);
    this.#head = 0;
    this.#length = 0;
  }
}

/**
 * A bounded first-in first-out queue of bytes (serial FIFOs, console buffers).
 */
export class ByteRing {
  readonly #bytes: Uint8Array;
  #head = 0;
  #length = 0;

  constructor(capacity: number) {
    assert(Number.isInteger(capacity) && capacity > 0, 'ring capacity is a positive integer');
    this.#bytes = new Uint8Array(capacity);
  }

  get capacity(): number {
    return this.#bytes.length;
  }

  get length(): number {
    return this.#length;
  }

  get free(): number {
    return this.#bytes.length - this.#length;
  }

  /** Appends one byte; false when full. */
  push(byte: number): boolean {
    if (this.#length === this.#bytes.length) return false;
    this.#bytes[(this.#head + this.#length) % this.#bytes.length] = byte;
    this.#length++;
    return true;
  }

  /** The oldest byte, or -1 when empty. */
  peek(): number {
    return this.#length === 0 ? -1 : this.#bytes[this.#head]!;
  }

  /** Removes the oldest byte, or -1 when empty. */
  shift(): number {
    if (this.#length === 0) return -1;
    const byte = this.#bytes[this.#head]!;
    this.#head = (this.#head + 1) % this.#bytes.length;
    this.#length--;
    return byte;
  }

  clear(): void {
    this.#head = 0;
    this.#length = 0;
  }

  /** A copy of the content, oldest first. */
  toBytes(): Uint8Array {
    const out = new Uint8Array(this.#length);
    for (let i = 0; i < this.#length; i++)
      out[i] = this.#bytes[(this.#head + i) % this.#bytes.length]!;
    return out;
  }
}
