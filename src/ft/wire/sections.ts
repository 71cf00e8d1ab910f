/**
 * Sections: what a transaction's (and a synchronisation's) payload consists of. A CONTINUE or SYNC payload
 * holds whole sections, one behind the other: type u16, version u16, instance u32, length u32, body.
 * Walking them allocates nothing; bodies stay where they are.
 */
import { assert } from '../../base/assert.ts';
import { readU32, writeU32 } from './cursor.ts';
import { PAGE_ENCODING, SECTION, SECTION_HEADER_BYTES } from './spec.ts';

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

/**
 * A `pages` body: count u32, then one entry per page {page u32, encoding u16, bytes u16, crc u32}, then the
 * pages' data in the same order. `crc` is the CRC-32C of the whole page after decoding; a delta is refused
 * when the result has another.
 */
export const PAGES_HEADER_BYTES = 4;
/** Bytes of one page's entry. */
export const PAGE_ENTRY_BYTES = 12;

/** Bytes of a `pages` body for `count` pages with `dataBytes` of data. */
export function pagesBodyBytes(count: number, dataBytes: number): number {
  return PAGES_HEADER_BYTES + count * PAGE_ENTRY_BYTES + dataBytes;
}

/** Writes entry `index` of the `pages` body at `body`. */
export function writePageEntry(
  out: Uint8Array,
  body: number,
  index: number,
  page: number,
  encoding: number,
  dataBytes: number,
  crc: number,
): void {
  const at = body + PAGES_HEADER_BYTES + index * PAGE_ENTRY_BYTES;
  writeU32(out, at, page);
  out[at + 4] = encoding;
  out[at + 5] = encoding >>> 8;
  out[at + 6] = dataBytes;
  out[at + 7] = dataBytes >>> 8;
  writeU32(out, at + 8, crc);
}

/** Walks the pages of a `pages` body. Reusable. */
export class PagesReader {
  #bytes: Uint8Array = new Uint8Array(0);
  #entry = 0;
  #left = 0;
  #data = 0;
  #end = 0;
  page = 0;
  encoding = 0;
  crc = 0;
  dataStart = 0;
  dataEnd = 0;
  /** Set when the body does not add up; `next` is false then. */
  malformed = false;

  /** Starts over at a body in `bytes[start, end)`. */
  reset(bytes: Uint8Array, start: number, end: number): this {
    this.#bytes = bytes;
    this.#end = end;
    this.#left = 0;
    this.malformed = end - start < PAGES_HEADER_BYTES;
    if (this.malformed) return this;
    this.#left = readU32(bytes, start);
    this.#entry = start + PAGES_HEADER_BYTES;
    this.#data = this.#entry + this.#left * PAGE_ENTRY_BYTES;
    this.malformed = this.#data > end;
    return this;
  }

  /** Pages not yet walked. */
  get left(): number {
    return this.#left;
  }

  /** Moves to the next page; false at the end or when the body is malformed. */
  next(): boolean {
    if (this.malformed) return false;
    if (this.#left === 0) {
      if (this.#data !== this.#end) this.malformed = true;
      return false;
    }
    const b = this.#bytes;
    const at = this.#entry;
    this.page = readU32(b, at);
    this.encoding = b[at + 4]! | (b[at + 5]! << 8);
    const dataBytes = b[at + 6]! | (b[at + 7]! << 8);
    this.crc = readU32(b, at + 8);
    this.dataStart = this.#data;
    this.dataEnd = this.#data + dataBytes;
    if (
      this.dataEnd > this.#end ||
      this.encoding > PAGE_ENCODING.delta ||
      (this.encoding === PAGE_ENCODING.zero && dataBytes !== 0)
    ) {
      this.malformed = true;
      return false;
    }
    this.#entry += PAGE_ENTRY_BYTES;
    this.#data = this.dataEnd;
    this.#left--;
    return true;
  }
}
