/**
 * Reading and writing little-endian fields of a small payload. A reader that runs past its end, or meets a
 * 64-bit number above 2^53, turns `bad` and yields zeros; the caller looks once, at the end.
 */
import { hi32, lo32, u64 } from '../../base/bits.ts';

const HI_MAX = 0x20_0000;

/** Reads fields in order from `bytes[start, end)`. */
export class FieldReader {
  readonly #bytes: Uint8Array;
  readonly #end: number;
  #at: number;
  /** Whether a read went past the end or met an impossible value. */
  bad = false;

  constructor(bytes: Uint8Array, start = 0, end: number = bytes.length) {
    this.#bytes = bytes;
    this.#at = start;
    this.#end = end;
  }

  get remaining(): number {
    return this.#end - this.#at;
  }

  #take(count: number): number {
    if (this.#at + count > this.#end) {
      this.bad = true;
      return -1;
    }
    const at = this.#at;
    this.#at += count;
    return at;
  }

  u8(): number {
    const at = this.#take(1);
    return at < 0 ? 0 : this.#bytes[at]!;
  }

  u16(): number {
    const at = this.#take(2);
    return at < 0 ? 0 : this.#bytes[at]! | (this.#bytes[at + 1]! << 8);
  }

  u32(): number {
    const at = this.#take(4);
    return at < 0 ? 0 : readU32(this.#bytes, at);
  }

  /** A 64-bit number; above 2^53 is `bad`. */
  u64(): number {
    const lo = this.u32();
    const hi = this.u32();
    if (hi >= HI_MAX) {
      this.bad = true;
      return 0;
    }
    return u64(lo, hi);
  }

  /** `count` bytes as lower-case hexadecimal. */
  hexBytes(count: number): string {
    const at = this.#take(count);
    if (at < 0) return '';
    let text = '';
    for (let i = 0; i < count; i++) text += this.#bytes[at + i]!.toString(16).padStart(2, '0');
    return text;
  }

  /** A u16 length and that many bytes of UTF-8 (anything unreadable becomes U+FFFD). */
  text(maxBytes: number): string {
    const length = this.u16();
    if (length > maxBytes) {
      this.bad = true;
      return '';
    }
    const at = this.#take(length);
    return at < 0 ? '' : new TextDecoder().decode(this.#bytes.subarray(at, at + length));
  }
}

/** Writes fields in order into `bytes` from `start`; the caller provides the room. */
export class FieldWriter {
  readonly #bytes: Uint8Array;
  #at: number;

  constructor(bytes: Uint8Array, start = 0) {
    this.#bytes = bytes;
    this.#at = start;
  }

  /** The offset behind the last field. */
  get offset(): number {
    return this.#at;
  }

  u8(value: number): void {
    this.#bytes[this.#at++] = value;
  }

  u16(value: number): void {
    this.#bytes[this.#at++] = value;
    this.#bytes[this.#at++] = value >>> 8;
  }

  u32(value: number): void {
    writeU32(this.#bytes, this.#at, value);
    this.#at += 4;
  }

  u64(value: number): void {
    this.u32(lo32(value));
    this.u32(hi32(value));
  }

  /** Exactly `count` bytes from hexadecimal text. */
  hexBytes(text: string, count: number): void {
    for (let i = 0; i < count; i++) {
      this.#bytes[this.#at++] = Number.parseInt(text.slice(i * 2, i * 2 + 2), 16) || 0;
    }
  }

  /** A u16 length and UTF-8, cut at `maxBytes` on a character's boundary. */
  text(value: string, maxBytes: number): void {
    const room = this.#bytes.subarray(this.#at + 2, this.#at + 2 + maxBytes);
    const { written } = new TextEncoder().encodeInto(value, room);
    this.u16(written);
    this.#at += written;
  }
}

/** A u32 at `at`. */
export function readU32(bytes: Uint8Array, at: number): number {
  return (
    (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0
  );
}

/** Stores a u32 at `at`. */
export function writeU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}
