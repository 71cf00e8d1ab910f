/**
 * How guest pages travel: the body of a `pages` section is a sequence of records, one per page, all numbers little-endian.
 *
 *   page u32 | kind u8 | 0 u8 | length u16 | crc u32 | payload of `length` bytes
 *
 *  - `zero`: all bytes are zero; no payload.  `same`: the committed content; no payload.  `raw`: the page itself.
 *  - `delta`: what differs from the receiver's *committed* content, in runs of 8-byte words: words to skip u8, words that follow
 *    u8 (0: a longer skip), the words. At most three quarters of a page; a longer one goes raw.
 *  - `crc` is the CRC-32C of the page as it shall be, whatever the kind.
 *
 * A page may occur again in the same transaction (it was sent ahead and has changed since): the later record counts, and since
 * nothing of an open transaction is committed, the sender has to `forget` the page in between.
 *
 * {@link PageEncoder} and {@link decodePages} are the contract in plain TypeScript: the simulator uses them. Replication itself
 * uses the native ones of native/io/pages.cc, for pages of 4096 bytes; a fuzzer (page-fuzz.ts) holds the two together.
 */
import { assert } from '../../base/assert.ts';
import { crc32c } from '../../base/crc32c.ts';
import { readU32, writeU32 } from './cursor.ts';

/** Version of the `pages` section that holds such a stream. */
export const PAGES_VERSION = 2;

/** Kinds of records. */
export const PAGE_KIND = { zero: 0, same: 1, delta: 2, raw: 3 } as const;

/** Bytes of a record before its payload. */
export const PAGE_RECORD_BYTES = 12;

/** Results of {@link decodePages} below zero. */
export const PAGE_ERROR = { malformed: -1, checksum: -2, noRoom: -3, notMemory: -4 } as const;

/**
 * Part of guest memory that a transaction may carry twice at most: what is sent ahead of a capture is no more than this share, so
 * that a transaction never holds more pages than memory has and a quarter.
 */
export const PAGES_AHEAD_SHARE = 0.25;

const WORD = 8;
const RUN_MAX = 255;

/** The sender's side: what it last sent of each page is the base of the page's next delta. */
export interface PageEncoding {
  /**
   * Encodes pages[first, first + count), whose contents lie one behind the other in `staging` from `stagingOffset`, into `out`
   * from `outOffset`.
   * @param stats five counts that are added to: zero, same, delta, raw; the last becomes the end offset in `out`
   * @returns pages encoded; fewer than `count` when `out` has no room for another raw record
   */
  encode(
    pages: Uint32Array,
    first: number,
    count: number,
    staging: Uint8Array,
    stagingOffset: number,
    out: Uint8Array,
    outOffset: number,
    stats: Uint32Array,
  ): number;
  /** What was sent of these pages did not commit, or is superseded within its transaction: no delta and no `same` against it. */
  forget(pages: Uint32Array, first: number, count: number): void;
  /** The stream starts from nothing. */
  clear(): void;
}

/** Whether `bytes[at, at + length)` is all zero. */
function isZero(bytes: Uint8Array, at: number, length: number): boolean {
  for (let i = at; i < at + length; i++) if (bytes[i] !== 0) return false;
  return true;
}

function sameWord(a: Uint8Array, aAt: number, b: Uint8Array, bAt: number): boolean {
  for (let i = 0; i < WORD; i++) if (a[aAt + i] !== b[bAt + i]) return false;
  return true;
}

/** {@link PageEncoding} in plain TypeScript. The cache is direct-mapped by page number. */
export class PageEncoder implements PageEncoding {
  readonly #pageBytes: number;
  readonly #slots: number;
  readonly #owners: Int32Array;
  readonly #contents: Uint8Array;

  /** @param cachePages pages whose last content is kept; 0: no deltas */
  constructor(cachePages: number, pageBytes = 4096) {
    assert(pageBytes % WORD === 0, 'pages consist of words');
    this.#pageBytes = pageBytes;
    this.#slots = cachePages;
    this.#owners = new Int32Array(cachePages).fill(-1);
    this.#contents = new Uint8Array(cachePages * pageBytes);
  }

  encode(
    pages: Uint32Array,
    first: number,
    count: number,
    staging: Uint8Array,
    stagingOffset: number,
    out: Uint8Array,
    outOffset: number,
    stats: Uint32Array,
  ): number {
    const size = this.#pageBytes;
    let at = outOffset;
    let done = 0;
    while (done < count && out.length - at >= PAGE_RECORD_BYTES + size) {
      at = this.#record(pages[first + done]!, staging, stagingOffset + done * size, out, at, stats);
      done++;
    }
    stats[4] = at;
    return done;
  }

  #record(
    page: number,
    content: Uint8Array,
    from: number,
    out: Uint8Array,
    at: number,
    stats: Uint32Array,
  ): number {
    const size = this.#pageBytes;
    const slot = this.#slots === 0 ? -1 : page % this.#slots;
    const payload = at + PAGE_RECORD_BYTES;
    let kind: number = PAGE_KIND.raw;
    let length = size;
    if (isZero(content, from, size)) {
      kind = PAGE_KIND.zero;
      length = 0;
    } else if (slot >= 0 && this.#owners[slot] === page) {
      const bytes = this.#delta(slot * size, content, from, out, payload);
      if (bytes >= 0) {
        kind = bytes === 0 ? PAGE_KIND.same : PAGE_KIND.delta;
        length = bytes;
      }
    }
    if (kind === PAGE_KIND.raw) out.set(content.subarray(from, from + size), payload);
    if (slot >= 0 && kind !== PAGE_KIND.same) {
      this.#contents.set(content.subarray(from, from + size), slot * size);
      this.#owners[slot] = page;
    }
    writeU32(out, at, page);
    out[at + 4] = kind;
    out[at + 5] = 0;
    out[at + 6] = length;
    out[at + 7] = length >>> 8;
    writeU32(out, at + 8, crc32c(content, from, from + size));
    stats[kind]!++;
    return payload + length;
  }

  /** The delta of a page to the cached content at `base`; its bytes, 0 when they are equal, -1 when it is not worth it. */
  #delta(base: number, content: Uint8Array, from: number, out: Uint8Array, start: number): number {
    const words = this.#pageBytes / WORD;
    const most = start + (this.#pageBytes * 3) / 4;
    const kept = this.#contents;
    let at = start;
    let covered = 0;
    for (let word = 0; word < words; ) {
      if (sameWord(kept, base + word * WORD, content, from + word * WORD)) {
        word++;
        continue;
      }
      let skip = word - covered;
      for (; skip > RUN_MAX; skip -= RUN_MAX) {
        if (at + 2 > most) return -1;
        out[at++] = RUN_MAX;
        out[at++] = 0;
      }
      let end = word + 1;
      while (
        end < words &&
        end - word < RUN_MAX &&
        !sameWord(kept, base + end * WORD, content, from + end * WORD)
      ) {
        end++;
      }
      const bytes = (end - word) * WORD;
      if (at + 2 + bytes > most) return -1;
      out[at++] = skip;
      out[at++] = end - word;
      out.set(content.subarray(from + word * WORD, from + end * WORD), at);
      at += bytes;
      word = end;
      covered = end;
    }
    return at - start;
  }

  forget(pages: Uint32Array, first: number, count: number): void {
    if (this.#slots === 0) return;
    for (let i = first; i < first + count; i++) {
      const page = pages[i]!;
      if (this.#owners[page % this.#slots] === page) this.#owners[page % this.#slots] = -1;
    }
  }

  clear(): void {
    this.#owners.fill(-1);
  }
}

/** Applies a delta to the page at `page[at, at + size)`; false when it is malformed. */
function applyDelta(
  page: Uint8Array,
  at: number,
  size: number,
  stream: Uint8Array,
  start: number,
  end: number,
): boolean {
  const words = size / WORD;
  let word = 0;
  let from = start;
  while (from < end) {
    if (end - from < 2) return false;
    word += stream[from]!;
    const bytes = stream[from + 1]! * WORD;
    from += 2;
    if (word * WORD + bytes > words * WORD || bytes > end - from) return false;
    page.set(stream.subarray(from, from + bytes), at + word * WORD);
    word += bytes / WORD;
    from += bytes;
  }
  return true;
}

/**
 * Decodes the records in `stream[start, end)`: page i goes to `staging` at `stagingOffset` + i pages, its number to
 * `pages[first + i]`. Nothing that a length in the stream says is trusted.
 * @param committed the committed content of a page, which deltas refer to; undefined where there is no memory
 * @returns pages decoded, or one of {@link PAGE_ERROR} (`staging` is then rubbish)
 */
export function decodePages(
  stream: Uint8Array,
  start: number,
  end: number,
  committed: (page: number) => Uint8Array | undefined,
  pages: Uint32Array,
  first: number,
  staging: Uint8Array,
  stagingOffset: number,
  pageBytes = 4096,
): number {
  const room = Math.min(
    pages.length - first,
    Math.floor((staging.length - stagingOffset) / pageBytes),
  );
  let count = 0;
  for (let at = start; at < end; ) {
    if (end - at < PAGE_RECORD_BYTES) return PAGE_ERROR.malformed;
    const page = readU32(stream, at);
    const kind = stream[at + 4]!;
    const length = stream[at + 6]! | (stream[at + 7]! << 8);
    const sum = readU32(stream, at + 8);
    const payload = at + PAGE_RECORD_BYTES;
    if (stream[at + 5] !== 0 || length > end - payload) return PAGE_ERROR.malformed;
    at = payload + length;
    if (count === room) return PAGE_ERROR.noRoom;
    const before = committed(page);
    if (before === undefined) return PAGE_ERROR.notMemory;
    const to = stagingOffset + count * pageBytes;
    let good = length === 0;
    switch (kind) {
      case PAGE_KIND.zero:
        staging.fill(0, to, to + pageBytes);
        break;
      case PAGE_KIND.same:
        staging.set(before, to);
        break;
      case PAGE_KIND.delta:
        staging.set(before, to);
        good = length > 0 && applyDelta(staging, to, pageBytes, stream, payload, at);
        break;
      case PAGE_KIND.raw:
        good = length === pageBytes;
        if (good) staging.set(stream.subarray(payload, at), to);
        break;
      default:
        good = false;
    }
    if (!good) return PAGE_ERROR.malformed;
    if (crc32c(staging, to, to + pageBytes) !== sum) return PAGE_ERROR.checksum;
    pages[first + count] = page;
    count++;
  }
  return count;
}
