/**
 * Holds implementations of the page stream (page-stream.ts) together: the same pages give the same bytes, the same bytes, sound or
 * damaged, give the same pages or the same refusal. Seeded; the unit test runs a slice, `npm run fuzz` as many as wanted.
 */
import { crc32c } from '../../base/crc32c.ts';
import { Prng } from '../../base/prng.ts';
import { writeU32 } from './cursor.ts';
import { PAGE_ERROR, PAGE_KIND, PAGE_RECORD_BYTES, type PageEncoding } from './page-stream.ts';

/** One implementation, for pages of 4096 bytes. */
export interface PageCodec {
  readonly name: string;
  encoder(cachePages: number): PageEncoding;
  /** A decoder whose committed content is `memory`, which the fuzzer changes in place. Contract: {@link decodePages}. */
  decoder(
    memory: ArrayBuffer,
  ): (
    stream: Uint8Array,
    start: number,
    end: number,
    pages: Uint32Array,
    first: number,
    staging: Uint8Array,
    stagingOffset: number,
  ) => number;
}

/** What a run saw. */
export interface PageFuzzReport {
  /** Records by kind: zero, same, delta, raw. */
  readonly kinds: readonly number[];
  /** Decoder verdicts: sound, then by {@link PAGE_ERROR} -1 to -4. */
  readonly verdicts: readonly number[];
  readonly failure: string | undefined;
}

const SIZE = 4096;
const PAGES = 24;
const MOST = 12;

function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

/** One page of content that tries an encoder: empty, full, noise, a few changed words, runs, long equal stretches. */
function scribble(prng: Prng, page: Uint8Array): void {
  const word = (): number => prng.below(SIZE / 8) * 8;
  switch (prng.below(8)) {
    case 0:
      page.fill(0);
      break;
    case 1:
      prng.fill(page);
      break;
    case 2:
      page.fill(prng.below(256));
      break;
    case 3:
      page[prng.below(SIZE)] = prng.below(256);
      break;
    case 4: {
      const at = word();
      prng.fill(page.subarray(at, Math.min(SIZE, at + word())));
      break;
    }
    case 5:
      for (let i = prng.below(40); i > 0; i--) prng.fill(page.subarray(word()).subarray(0, 8));
      break;
    case 6:
      // Nearly the limit of what a delta may be.
      prng.fill(page.subarray(0, 3072 - 64 + prng.below(16) * 8));
      break;
    default:
      break;
  }
}

/** Damages a stream, some of it with its checksums made right again so that what is behind them is reached. */
function damage(prng: Prng, stream: Uint8Array): Uint8Array {
  const out = stream.slice();
  for (let i = 1 + prng.below(3); i > 0 && out.length > PAGE_RECORD_BYTES; i--) {
    switch (prng.below(5)) {
      case 0:
        out[prng.below(out.length)]! ^= 1 << prng.below(8);
        break;
      case 1:
        return out.subarray(0, prng.below(out.length));
      case 2:
        out[4] = prng.below(6);
        break;
      case 3:
        writeU32(out, 0, prng.chance(0.5) ? prng.below(2 * PAGES) : prng.u32());
        break;
      default:
        out[6] = prng.below(256);
        out[7] = prng.below(20);
        break;
    }
  }
  return out;
}

/** A delta of noise, short enough that many are sound. */
function wildDelta(prng: Prng, memory: Uint8Array): Uint8Array {
  const length = prng.below(80);
  const out = new Uint8Array(PAGE_RECORD_BYTES + length);
  prng.fill(out);
  for (let at = PAGE_RECORD_BYTES; at + 1 < out.length; ) {
    if (prng.chance(0.8)) out[at + 1] = prng.below(3);
    at += 2 + out[at + 1]! * 8;
  }
  const page = prng.below(PAGES);
  writeU32(out, 0, page);
  out[4] = PAGE_KIND.delta;
  out[5] = 0;
  out[6] = length;
  out[7] = 0;
  // Right whenever the delta changes nothing, which is enough to get past it now and then.
  writeU32(out, 8, crc32c(memory, page * SIZE, (page + 1) * SIZE));
  return out;
}

class Run {
  readonly prng: Prng;
  readonly kinds = [0, 0, 0, 0];
  readonly verdicts = [0, 0, 0, 0, 0];
  readonly #codecs: readonly PageCodec[];
  /** What the sender's guest holds. */
  readonly #guest = new Uint8Array(PAGES * SIZE);
  readonly #committed = new ArrayBuffer(PAGES * SIZE);
  readonly #encoders: PageEncoding[];
  readonly #decoders: ReturnType<PageCodec['decoder']>[];

  constructor(seed: number, codecs: readonly PageCodec[]) {
    this.prng = new Prng(seed);
    this.#codecs = codecs;
    const cache = this.prng.pick([0, 5, PAGES]);
    this.#encoders = codecs.map((codec) => codec.encoder(cache));
    this.#decoders = codecs.map((codec) => codec.decoder(this.#committed));
  }

  /** One transaction, committed or not. @returns what differs, if anything */
  step(): string | undefined {
    const { prng } = this;
    const memory = new Uint8Array(this.#committed);
    const pages = Uint32Array.from({ length: prng.below(MOST) }, () => prng.below(PAGES));
    const staging = new Uint8Array(pages.length * SIZE);
    for (const [i, page] of pages.entries()) {
      const content = this.#guest.subarray(page * SIZE, (page + 1) * SIZE);
      scribble(prng, content);
      staging.set(content, i * SIZE);
    }
    // Each page once, the way a capture lists them; a second time goes through forget().
    const out = new Uint8Array(prng.below(MOST * SIZE) + PAGE_RECORD_BYTES);
    const from = prng.below(8);
    let streams: Uint8Array[] = [];
    let done = 0;
    for (const [k, encoder] of this.#encoders.entries()) {
      out.fill(0);
      const stats = new Uint32Array(5);
      let at = from;
      let count = 0;
      while (count < pages.length) {
        // One at a time where a page comes again, so that it can be forgotten.
        if (pages.subarray(0, count).includes(pages[count]!)) encoder.forget(pages, count, 1);
        const taken = encoder.encode(pages, count, 1, staging, count * SIZE, out, at, stats);
        at = stats[4]!;
        if (taken === 0) break;
        count++;
      }
      streams.push(out.slice(from, at));
      if (k === 0) {
        done = count;
        for (const kind of [0, 1, 2, 3]) this.kinds[kind]! += stats[kind]!;
      }
    }
    const wrong = streams.findIndex((stream) => !equal(stream, streams[0]!));
    if (wrong > 0) return `${this.#codecs[wrong]!.name} encodes ${done} pages differently`;
    let stream = streams[0]!;
    const fate = prng.below(4);
    if (fate === 0) stream = damage(prng, stream);
    if (fate === 1) stream = wildDelta(prng, memory);
    const room = prng.chance(0.9) ? MOST : prng.below(MOST);
    streams = [];
    const lists: Uint32Array[] = [];
    const counts = this.#decoders.map((decode) => {
      const list = new Uint32Array(room + 1);
      const decoded = new Uint8Array((room + 1) * SIZE);
      const count = decode(stream, 0, stream.length, list, 1, decoded, SIZE);
      streams.push(decoded.subarray(SIZE, (1 + Math.max(0, count)) * SIZE));
      lists.push(list.subarray(1, 1 + Math.max(0, count)));
      return count;
    });
    const count = counts[0]!;
    this.verdicts[count < 0 ? -count : 0]!++;
    for (const [k, codec] of this.#codecs.entries()) {
      if (counts[k] !== count) return `${codec.name} says ${counts[k]}, not ${count}`;
      if (!equal(streams[k]!, streams[0]!) || `${lists[k]}` !== `${lists[0]}`) {
        return `${codec.name} decodes ${count} pages differently`;
      }
    }
    const sound = fate > 1 && done <= room;
    if (sound && count !== done) return `a sound stream of ${done} pages gives ${count}`;
    if (!sound || prng.chance(0.2)) {
      for (const encoder of this.#encoders) encoder.forget(pages, 0, done);
    } else {
      for (let i = 0; i < count; i++) {
        memory.set(streams[0]!.subarray(i * SIZE, (i + 1) * SIZE), lists[0]![i]! * SIZE);
      }
      for (let i = 0; i < done; i++) {
        const page = pages[i]!;
        const last = pages.subarray(0, done).lastIndexOf(page) * SIZE;
        const is = memory.subarray(page * SIZE, (page + 1) * SIZE);
        if (!equal(is, staging.subarray(last, last + SIZE))) {
          return `page ${page} is not what was sent last`;
        }
      }
    }
    if (prng.chance(0.02)) for (const encoder of this.#encoders) encoder.clear();
    return undefined;
  }
}

/** Runs `rounds` transactions from `seed` through all `codecs`; the first one is what the others are compared with. */
export function fuzzPageStream(
  seed: number,
  rounds: number,
  codecs: readonly PageCodec[],
): PageFuzzReport {
  const kinds = [0, 0, 0, 0];
  const verdicts = [0, 0, 0, 0, 0];
  let failure: string | undefined;
  for (let run = 0; run * 20 < rounds && failure === undefined; run++) {
    const one = new Run(seed + run, codecs);
    for (let i = 0; i < 20 && failure === undefined; i++) failure = one.step();
    if (failure !== undefined) failure = `seed ${seed + run}: ${failure}`;
    one.kinds.forEach((n, kind) => {
      kinds[kind]! += n;
    });
    one.verdicts.forEach((n, verdict) => {
      verdicts[verdict]! += n;
    });
  }
  return { kinds, verdicts, failure };
}

/** Names of the verdicts, for people. */
export const VERDICTS: readonly string[] = ['sound', ...Object.keys(PAGE_ERROR)];
