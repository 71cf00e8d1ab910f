/**
 * The first copy of replicated disks (block migration): everything that is marked, in pieces, while the guest runs; then what it
 * wrote meanwhile, round by round, until the rest fits the allowed downtime. Then writes are recorded for the first
 * transaction, and the rest is copied while the guest still runs: a piece that is read too late holds writes that the
 * transaction does again, which changes nothing. So the guest never stands still for its disks; one that writes faster than the
 * link waits for room in the log.
 *
 * Holes and runs of zeroes go as such and become holes. Every piece carries its checksum. Knows no connection: its
 * owner says whether the copy is still wanted and takes the chunks.
 */
import { SyncRounds } from '../core/epoch-policy.ts';
import { DISK_OP, DISK_OP_BYTES, DISK_OPS_VERSION, writeDiskOp } from '../wire/disk-ops.ts';
import { writeSectionHeader } from '../wire/sections.ts';
import { SECTION, SECTION_HEADER_BYTES } from '../wire/spec.ts';
import { type DiskAccess, PIECE_BYTES } from './disk-access.ts';
import type { Crc } from './disk-log.ts';
import { GRANULE_BYTES, type Granules } from './granules.ts';
import type { RecordingBlock } from './recording-block.ts';

/** What one read round trip and one chunk on the link carry. */
const CHUNK_BYTES = 2 ** 20;
/** Room that a chunk buffer must have: each granule of it as an operation of its own. */
export const COPY_CHUNK_BYTES =
  CHUNK_BYTES + SECTION_HEADER_BYTES + (CHUNK_BYTES / GRANULE_BYTES + 1) * DISK_OP_BYTES;
const ROUNDS_MAX = 30;
/** So little is not worth a round. */
const REST_BYTES = 16 * GRANULE_BYTES;

/** Buffers that chunks are made in. */
export interface CopyPool {
  take(): number;
  bytes(chunk: number): Uint8Array;
  fill(chunk: number, used: number): void;
  release(chunk: number): void;
  onFree(callback: () => void): void;
}

/** One disk that is copied. */
export interface CopiedDisk {
  /** Its number among the guest's disks. */
  readonly disk: number;
  readonly id: string;
  readonly access: DiskAccess;
  readonly block: RecordingBlock;
  /** What the standby's copy begins with; undefined: with nothing known. */
  readonly base: DiskAccess | undefined;
}

/** What a copy is made with. */
export interface DiskCopyParts {
  readonly pool: CopyPool;
  readonly crc: Crc;
  isZero(bytes: Uint8Array, offset: number, length: number): boolean;
  nowNs(): number;
  sleep(ms: number): Promise<void>;
  /** The rest at the end may take this long. */
  readonly maxDowntimeNs: number;
  /** Most bytes a second; Infinity for no limit. */
  readonly bytesPerSecondMax: number;
}

/** Who wants it. */
export interface DiskCopyOwner {
  wanted(): boolean;
  /** A chunk buffer is filled. */
  chunk(chunk: number): void;
}

/** How far a copy is. */
export interface DiskCopyProgress {
  readonly round: number;
  readonly doneBytes: number;
  readonly totalBytes: number;
  /** Sent for it so far; holes and zeroes cost nothing. */
  readonly sentBytes: number;
  readonly bytesPerSecond: number;
  /** Until this round is done, at the rate so far. */
  readonly secondsLeft: number;
}

/** See the module's head. */
export class DiskCopy {
  readonly #parts: DiskCopyParts;
  readonly #owner: DiskCopyOwner;
  readonly #disks: readonly CopiedDisk[];
  readonly #rounds: SyncRounds;
  readonly #startNs: number;
  /** Of all the disks. */
  readonly #granuleBytes: number;
  #chunk = -1;
  #used = 0;
  #disk = 0;
  #doneBytes = 0;
  #totalBytes = 0;
  #sentBytes = 0;

  constructor(parts: DiskCopyParts, owner: DiskCopyOwner, disks: readonly CopiedDisk[]) {
    this.#parts = parts;
    this.#owner = owner;
    this.#disks = disks;
    this.#granuleBytes = disks[0]?.block.granules.unitBytes ?? GRANULE_BYTES;
    this.#startNs = parts.nowNs();
    this.#rounds = new SyncRounds({
      downtimeMaxNs: parts.maxDowntimeNs,
      roundsMax: ROUNDS_MAX,
    });
  }

  get progress(): DiskCopyProgress {
    const seconds = Math.max(1e-3, (this.#parts.nowNs() - this.#startNs) / 1e9);
    const done = this.#doneBytes;
    const rate = done / seconds;
    return {
      round: this.#rounds.rounds + 1,
      doneBytes: done,
      totalBytes: this.#totalBytes,
      sentBytes: this.#sentBytes,
      bytesPerSecond: Math.round(this.#sentBytes / seconds),
      secondsLeft: rate === 0 ? 0 : Math.ceil((this.#totalBytes - done) / rate),
    };
  }

  get #marked(): number {
    return this.#disks.reduce((sum, { block }) => sum + block.granules.bytes, 0);
  }

  /**
   * Copies what is marked until the rest fits the downtime, or it is clear that it never will.
   * @returns false when it is not wanted any more
   * @throws VmmError `DISK_IO` when a disk cannot be read
   */
  async converge(): Promise<boolean> {
    for (;;) {
      const begin = this.#parts.nowNs();
      const sentBefore = this.#sentBytes;
      if (!(await this.#round())) return false;
      this.#rounds.roundDone(this.#sentBytes - sentBefore, this.#parts.nowNs() - begin);
      const rest = this.#marked;
      if (rest <= REST_BYTES || this.#rounds.next(rest) !== 'round') return true;
    }
  }

  /** Records from now on, and copies the rest. @returns and throws as {@link converge} */
  async finish(): Promise<boolean> {
    for (const { block } of this.#disks) block.setMode('record');
    while (this.#disks.some(({ block }) => block.unrecorded > 0)) {
      await this.#parts.sleep(1);
      if (!this.#owner.wanted()) return false;
    }
    return this.#round();
  }

  /** One pass over everything that is marked now. */
  async #round(): Promise<boolean> {
    this.#totalBytes = this.#doneBytes + this.#marked;
    for (const disk of this.#disks) {
      for (let at = disk.block.granules.next(0); at >= 0; at = disk.block.granules.next(at)) {
        if (!this.#owner.wanted()) return this.#abandon();
        if (this.#chunk < 0 || this.#disk !== disk.disk || this.#full) {
          this.#flush();
          if (!(await this.#take(disk.disk))) return this.#abandon();
        }
        at = await this.#step(disk, at);
      }
    }
    if (!this.#owner.wanted()) return this.#abandon();
    this.#flush();
    return true;
  }

  /** Copies from granule `at` on: a hole, or up to a chunk of data. @returns where to go on */
  async #step({ access, block, base: known }: CopiedDisk, at: number): Promise<number> {
    const { granules } = block;
    const { holes, sizeBytes } = access;
    const offset = at * this.#granuleBytes;
    // Later rounds send what was written, whatever the base holds: the standby may have got something else meanwhile.
    const base = this.#rounds.rounds === 0 ? known : undefined;
    // Unmarked before it is looked at: what is written meanwhile is marked again.
    if (holes !== undefined) {
      const data = Math.min(holes.nextData(offset), sizeBytes);
      const holeEnd =
        data === sizeBytes
          ? granules.total
          : Math.min(Math.floor(data / this.#granuleBytes), granules.total);
      if (holeEnd > at && base === undefined) {
        const end = this.#unmark(granules, at, holeEnd);
        // Written meanwhile? Then it is marked, and the next round has it.
        const to = Math.min(end * this.#granuleBytes, sizeBytes);
        const still = Math.min(holes.nextData(offset), sizeBytes);
        if (still >= to) this.#zero(offset, to - offset);
        else granules.mark(offset, to - offset);
        this.#doneBytes += to - offset;
        return end;
      }
    }
    const room = Math.floor(
      (CHUNK_BYTES - Math.min(this.#used, CHUNK_BYTES - this.#granuleBytes)) / this.#granuleBytes,
    );
    const end = this.#unmark(granules, at, at + Math.max(1, room));
    const to = Math.min(end * this.#granuleBytes, sizeBytes);
    const reads: Promise<void>[] = [];
    for (let from = offset; from < to; from += PIECE_BYTES) {
      const length = Math.min(PIECE_BYTES, to - from);
      reads.push(
        base === undefined
          ? access.read(from, length, (bytes) => this.#piece(from, bytes, undefined))
          : this.#compare(access, base, from, length),
      );
    }
    // All of them, even if one fails: the others still use the chunk.
    const failed = (await Promise.allSettled(reads)).find((r) => r.status === 'rejected');
    if (failed !== undefined) {
      this.#abandon();
      throw failed.reason;
    }
    this.#doneBytes += to - offset;
    return end;
  }

  #unmark(granules: Granules, from: number, limit: number): number {
    const end = granules.runEnd(from, limit);
    for (let g = from; g < end; g++) granules.unset(g);
    return end;
  }

  /** Reads a piece and what the base has in its place. */
  async #compare(
    access: DiskAccess,
    base: DiskAccess,
    from: number,
    length: number,
  ): Promise<void> {
    const there = new Uint8Array(length);
    const covered = Math.max(0, Math.min(length, base.sizeBytes - from));
    if (covered > 0) await base.read(from, covered, (bytes) => there.set(bytes));
    await access.read(from, length, (bytes) => this.#piece(from, bytes, there));
  }

  /** A piece that was read: nothing of granules that the standby has, its zero granules as such, the rest as data. */
  #piece(offset: number, bytes: Uint8Array, there: Uint8Array | undefined): void {
    let from = 0;
    while (from < bytes.length) {
      const next = Math.min(from + this.#granuleBytes, bytes.length);
      if (there !== undefined) {
        const same = Buffer.compare(bytes.subarray(from, next), there.subarray(from, next)) === 0;
        if (same) from = next;
        else {
          if (this.#isZero(bytes, from)) this.#zero(offset + from, next - from);
          else this.#data(offset + from, bytes.subarray(from, next));
          from = next;
        }
        continue;
      }
      const zero = this.#isZero(bytes, from);
      let end = Math.min(from + this.#granuleBytes, bytes.length);
      while (end < bytes.length && this.#isZero(bytes, end) === zero) {
        end = Math.min(end + this.#granuleBytes, bytes.length);
      }
      if (zero) this.#zero(offset + from, end - from);
      else this.#data(offset + from, bytes.subarray(from, end));
      from = end;
    }
  }

  #isZero(bytes: Uint8Array, from: number): boolean {
    return this.#parts.isZero(bytes, from, Math.min(this.#granuleBytes, bytes.length - from));
  }

  #data(offset: number, data: Uint8Array): void {
    const out = this.#parts.pool.bytes(this.#chunk);
    const at = this.#used + DISK_OP_BYTES;
    out.set(data, at);
    const crc = this.#parts.crc(out, at, data.length, 0);
    writeDiskOp(out, this.#used, DISK_OP.write, crc, offset, data.length);
    this.#used = at + data.length;
  }

  #zero(offset: number, length: number): void {
    const out = this.#parts.pool.bytes(this.#chunk);
    this.#used = writeDiskOp(out, this.#used, DISK_OP.writeZeroesUnmap, 0, offset, length);
  }

  get #full(): boolean {
    return this.#used + this.#granuleBytes + 4 * DISK_OP_BYTES > CHUNK_BYTES;
  }

  /** Waits for a chunk buffer, and for the throttle. */
  async #take(disk: number): Promise<boolean> {
    const { pool, bytesPerSecondMax, nowNs, sleep } = this.#parts;
    const dueMs = (this.#sentBytes / bytesPerSecondMax) * 1e3 - (nowNs() - this.#startNs) / 1e6;
    if (dueMs > 1) await sleep(dueMs);
    for (;;) {
      if (!this.#owner.wanted()) return false;
      this.#chunk = pool.take();
      if (this.#chunk >= 0) break;
      await new Promise<void>((resolve) => pool.onFree(() => setImmediate(resolve)));
    }
    this.#disk = disk;
    this.#used = SECTION_HEADER_BYTES;
    return true;
  }

  #flush(): void {
    if (this.#chunk < 0) return;
    const { pool } = this.#parts;
    const chunk = this.#chunk;
    this.#chunk = -1;
    if (this.#used === SECTION_HEADER_BYTES) {
      pool.release(chunk);
      return;
    }
    writeSectionHeader(
      pool.bytes(chunk),
      0,
      SECTION.diskCopy,
      DISK_OPS_VERSION,
      this.#disk,
      this.#used - SECTION_HEADER_BYTES,
    );
    pool.fill(chunk, this.#used);
    this.#sentBytes += this.#used;
    this.#owner.chunk(chunk);
  }

  #abandon(): false {
    if (this.#chunk >= 0) this.#parts.pool.release(this.#chunk);
    this.#chunk = -1;
    return false;
  }
}
