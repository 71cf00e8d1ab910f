/**
 * Sections: what a transaction's (and a synchronisation's) payload consists of. A CONTINUE or SYNC payload
 * holds whole sections, one behind the other: type u16, version u16, instance u32, length u32, body.
 * Walking them allocates nothing; bodies stay where they are.
 */
import { assert } from '../../base/assert.ts';
import { readU32, writeU32 } from './cursor.ts';
import { SECTION, SECTION_HEADER_BYTES } from './spec.ts';

const KNOWN_TYPES: ReadonlySet<number> = new Set(Object.values(SECTION));

/** Walks the sections of one payload. Reusable: {@link SectionReader.reset}. */
export class SectionReader {
  #bytes: Uint8Array = new Uint8Array(0);
  #at = 0;
  #end = 0;
  /** Of the current section. */
  type = 0;
  version = 0;
  instance = 0;
  /** Where the current section's body lies in the payload. */
  bodyStart = 0;
  bodyEnd = 0;
  /** Set when the payload does not divide into sections of known types; `next` is false then. */
  error: 'malformed' | 'unknown' | undefined;

  /** Starts over at `bytes[start, end)`. */
  reset(bytes: Uint8Array, start = 0, end: number = bytes.length): this {
    this.#bytes = bytes;
    this.#at = start;
    this.#end = end;
    this.error = undefined;
    return this;
  }

  /** Moves to the next section; false at the end or on an error. */
  next(): boolean {
    if (this.error !== undefined || this.#at === this.#end) return false;
    if (this.#end - this.#at < SECTION_HEADER_BYTES) {
      this.error = 'malformed';
      return false;
    }
    const b = this.#bytes;
    const at = this.#at;
    this.type = b[at]! | (b[at + 1]! << 8);
    this.version = b[at + 2]! | (b[at + 3]! << 8);
    this.instance = readU32(b, at + 4);
    const length = readU32(b, at + 8);
    this.bodyStart = at + SECTION_HEADER_BYTES;
    this.bodyEnd = this.bodyStart + length;
    if (this.bodyEnd > this.#end) {
      this.error = 'malformed';
      return false;
    }
    if (!KNOWN_TYPES.has(this.type)) {
      this.error = 'unknown';
      return false;
    }
    this.#at = this.bodyEnd;
    return true;
  }
}

/**
 * Writes a section's header in front of a body of `bodyBytes` that follows.
 * @returns the offset of the body
 */
export function writeSectionHeader(
  out: Uint8Array,
  at: number,
  type: number,
  version: number,
  instance: number,
  bodyBytes: number,
): number {
  assert(at + SECTION_HEADER_BYTES <= out.length, 'room for a section header');
  out[at] = type;
  out[at + 1] = type >>> 8;
  out[at + 2] = version;
  out[at + 3] = version >>> 8;
  writeU32(out, at + 4, instance);
  writeU32(out, at + 8, bodyBytes);
  return at + SECTION_HEADER_BYTES;
}
