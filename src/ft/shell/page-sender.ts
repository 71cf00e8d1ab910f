/**
 * Turns pages and states into protocol chunks: the native encoder's page stream (ft/wire/page-stream.ts) as `pages` sections, the
 * state container and the tap's log behind them. Works in slices between which the event loop runs; waits when all
 * chunk buffers are with the network.
 */
import { assert } from '../../base/assert.ts';
import type { NativeIo, NativePageEncoder } from '../../kvm/native-io.ts';
import type { Manifest } from '../wire/message.ts';
import { PAGES_VERSION } from '../wire/page-stream.ts';
import { writeSectionHeader } from '../wire/sections.ts';
import { SECTION, SECTION_HEADER_BYTES } from '../wire/spec.ts';
import { ChunkPool } from './chunk-pool.ts';
import type { Epoch } from './epoch.ts';
import { TAP_BYTES_MAX } from './outputs.ts';

/** Version of the `vm` section that holds a piece of the state container. */
export const CONTAINER_VERSION = 1;
/** Version of the `tapLog` section. */
export const LOG_VERSION = 1;

/** Bytes of one chunk; a full tap log fits. */
export const CHUNK_BYTES = TAP_BYTES_MAX + 512 * 1024;
/** Page stream per chunk: small enough that encoding one does not hold up the devices. */
const PAGE_STREAM_BYTES = 512 * 1024;
const CHUNKS = 6;

/** What an epoch carries besides pages, state and log: sections, one for each chunk. */
export interface EpochSections {
  /** Puts the next section into `out`. @returns bytes written, 0 when there is no more */
  encode(out: Uint8Array): number;
}

/** Counts since the start, for status and measurements. */
export interface PageCounts {
  zero: number;
  same: number;
  delta: number;
  raw: number;
  /** Payload bytes produced. */
  bytes: number;
}

/** Where chunks go. Each returns false when they are not wanted any more. */
export interface EpochSink {
  chunk(epoch: number, chunk: number): boolean;
  sealed(epoch: number, manifest: Manifest): boolean;
}

/** See the module's head. */
export class PageSender {
  readonly pool = new ChunkPool(CHUNKS, CHUNK_BYTES);
  readonly counts: PageCounts = { zero: 0, same: 0, delta: 0, raw: 0, bytes: 0 };
  readonly #io: NativeIo;
  readonly #encoder: NativePageEncoder;
  readonly #stats = new Uint32Array(5);

  /** @param cachePages how many pages' last contents are kept for deltas */
  constructor(io: NativeIo, cachePages: number) {
    this.#io = io;
    this.#encoder = new io.PageEncoder(cachePages);
  }

  /** The stream starts from nothing. */
  restart(): void {
    this.#encoder.clear();
  }

  /** Pages whose last contents never committed. */
  forget(pages: Uint32Array, count: number): void {
    if (count > 0) this.#encoder.forget(pages, 0, count);
  }

  /**
   * Encodes pages[first, first + count), whose copies lie in `staging` from `offset`, as a section into a chunk buffer.
   * @returns how many fitted
   */
  encodePages(
    chunk: number,
    pages: Uint32Array,
    first: number,
    count: number,
    staging: Uint8Array,
    offset: number,
  ): number {
    const out = this.pool.bytes(chunk).subarray(0, PAGE_STREAM_BYTES);
    const stats = this.#stats.fill(0);
    const body = SECTION_HEADER_BYTES;
    const done = this.#encoder.encode(pages, first, count, staging, offset, out, body, stats);
    const end = stats[4]!;
    writeSectionHeader(out, 0, SECTION.pages, PAGES_VERSION, 0, end - body);
    this.pool.fill(chunk, end);
    this.counts.zero += stats[0]!;
    this.counts.same += stats[1]!;
    this.counts.delta += stats[2]!;
    this.counts.raw += stats[3]!;
    this.counts.bytes += end;
    return done;
  }

  /** CRC-32C of a chunk's content. */
  crc(chunk: number, previous = 0): number {
    const bytes = this.pool.content(chunk);
    return this.#io.crc32c(bytes, 0, bytes.length, previous);
  }

  /** Encodes a whole epoch, slice by slice, into `sink`. */
  sendEpoch(
    epoch: Epoch,
    staging: Uint8Array,
    sink: EpochSink,
    disks: EpochSections | undefined = undefined,
  ): void {
    new EpochJob(this, epoch, staging, sink, disks).run();
  }
}

/** The encoding of one epoch. */
class EpochJob {
  readonly #sender: PageSender;
  readonly #epoch: Epoch;
  readonly #staging: Uint8Array;
  readonly #sink: EpochSink;
  #disks: EpochSections | undefined;
  #containerAt = 0;
  #logDone = false;
  #frames: number;
  #sections: number;
  #bytes: number;
  #crc: number;

  constructor(
    sender: PageSender,
    epoch: Epoch,
    staging: Uint8Array,
    sink: EpochSink,
    disks: EpochSections | undefined,
  ) {
    this.#disks = disks;
    this.#sender = sender;
    this.#epoch = epoch;
    this.#staging = staging;
    this.#sink = sink;
    // What was sent ahead belongs to the same transaction; each of its frames is one section.
    const { frames, bytes, crc } = epoch.ahead;
    this.#frames = frames;
    this.#sections = frames;
    this.#bytes = bytes;
    this.#crc = crc;
  }

  /** Encodes one chunk, then yields to the event loop. */
  run(): void {
    // Returned meanwhile: what would be encoded now never reaches the peer, and the encoder must not believe it did.
    if (this.#epoch.disposed) return;
    const { pool } = this.#sender;
    if (this.#complete()) {
      this.#seal();
      return;
    }
    const chunk = pool.take();
    if (chunk < 0) {
      pool.onFree(() => setImmediate(() => this.run()));
      return;
    }
    if (!this.#fill(chunk)) {
      // No staging to copy into: an earlier epoch still occupies it and frees it as it is encoded.
      pool.release(chunk);
      setImmediate(() => this.run());
      return;
    }
    this.#frames++;
    this.#sections++;
    this.#bytes += pool.content(chunk).length;
    this.#crc = this.#sender.crc(chunk, this.#crc);
    if (!this.#sink.chunk(this.#epoch.number, chunk)) {
      pool.release(chunk);
      this.#epoch.dispose();
      return;
    }
    if (this.#complete()) this.#seal();
    else setImmediate(() => this.run());
  }

  #complete(): boolean {
    return this.#logDone;
  }

  /** Puts the next section into `chunk`; false when it cannot be done now. */
  #fill(chunk: number): boolean {
    const epoch = this.#epoch;
    if (epoch.done < epoch.pages.length) {
      const next = epoch.next();
      if (next === undefined) return false;
      const done = this.#sender.encodePages(
        chunk,
        epoch.pages,
        epoch.done,
        next.count,
        this.#staging,
        next.offset,
      );
      assert(done > 0, 'a chunk holds at least one page');
      epoch.advance(done);
      return true;
    }
    if (this.#disks !== undefined) {
      const end = this.#disks.encode(this.#sender.pool.bytes(chunk).subarray(0, PAGE_STREAM_BYTES));
      if (end > 0) {
        this.#sender.pool.fill(chunk, end);
        this.#sender.counts.bytes += end;
        return true;
      }
      this.#disks = undefined;
    }
    const { container, log } = epoch;
    if (this.#containerAt < container.length) {
      const end = Math.min(container.length, this.#containerAt + PAGE_STREAM_BYTES);
      const part = container.subarray(this.#containerAt, end);
      this.#copy(
        chunk,
        SECTION.vm,
        CONTAINER_VERSION,
        Math.ceil(this.#containerAt / PAGE_STREAM_BYTES),
        part,
      );
      this.#containerAt = end;
      return true;
    }
    this.#copy(chunk, SECTION.tapLog, LOG_VERSION, 0, log);
    this.#logDone = true;
    return true;
  }

  #copy(chunk: number, type: number, version: number, instance: number, body: Uint8Array): void {
    const { pool } = this.#sender;
    const out = pool.bytes(chunk);
    const at = writeSectionHeader(out, 0, type, version, instance, body.length);
    out.set(body, at);
    pool.fill(chunk, at + body.length);
    this.#sender.counts.bytes += at + body.length;
  }

  #seal(): void {
    const { number, pages, ahead } = this.#epoch;
    this.#sink.sealed(number, {
      frames: this.#frames,
      sections: this.#sections,
      bytes: this.#bytes,
      pages: pages.length + ahead.pages.length,
      crc: this.#crc,
    });
  }
}
