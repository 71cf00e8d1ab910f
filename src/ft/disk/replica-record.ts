/**
 * What is kept beside an image that a standby holds as its private copy (`IMAGE.ft`): a mark that says what the image is, and
 * the redo journal of the epochs that are being applied to it. So a process that is killed in the middle of an epoch leaves an
 * image that the next start brings to a whole epoch, and a copy that was never complete is never taken for a disk.
 *
 *   0, 4096       two marks, written in turn; the sound one with the higher count holds
 *   8192 ...      the journal: records from the start of the area on, each on a 4 KiB boundary, in laps
 *
 * A record holds what one epoch does to the image. It is durable before the image is touched. When the next one would not
 * fit, the image is made durable and a new mark begins the next lap at the start of the area, so what a lap has overwritten is
 * in the image. Records are numbered without gaps, the first of a lap as its mark says; a scan ends at the first that is torn
 * or of an earlier lap.
 *
 * A guest with several replicated disks has one such file for each. Every epoch that writes to any of them has a record in all,
 * and no image is touched before all records are durable: an epoch that is missing in one of them is void in all.
 */
import { readU32, writeU32 } from '../wire/cursor.ts';
import { type Crc, DISK_EPOCH_BYTES_MAX } from './disk-log.ts';
import type { LogFile } from './log-file.ts';

/** What an image is. */
export const IMAGE = {
  /** A first copy is being made: the content is of no use. */
  copying: 1,
  /** A standby's copy: with its journal, the guest's disk as of a whole epoch. */
  replica: 2,
  /** A guest writes, or wrote, to it directly; the journal is void. */
  live: 3,
} as const;

/** One of {@link IMAGE}. */
export type ImageState = (typeof IMAGE)[keyof typeof IMAGE];

/** What a mark says. */
export interface Mark {
  readonly state: ImageState;
  /** Which guest; 16 bytes in hexadecimal. */
  readonly vm: string;
  /** Which run of it, and its last epoch that the image had when the mark was written. */
  readonly generation: number;
  readonly id: number;
  readonly imageBytes: number;
}

/** One epoch in the journal. */
export interface JournalRecord {
  readonly generation: number;
  readonly id: number;
  /** Bodies in the form of ft/wire/disk-ops.ts, one behind the other. */
  readonly body: Uint8Array;
}

const MARK_MAGIC = 0x4d465354; // "TSFM"
const RECORD_MAGIC = 0x4a465354; // "TSFJ"
const VERSION = 1;
const BLOCK = 4096;
const MARK_BYTES = 72;
const AREA_START = 2 * BLOCK;
const RECORD_HEAD = 48;
const HIGH = 2 ** 32;

/** Bytes of the journal: the largest epoch, and half as much again so that small ones share a lap. */
export const JOURNAL_BYTES = Math.ceil((1.5 * DISK_EPOCH_BYTES_MAX) / BLOCK) * BLOCK;

/** Where the record of an image is kept. */
export function recordPath(image: string): string {
  return `${image}.ft`;
}

function write64(out: Uint8Array, at: number, value: number): void {
  writeU32(out, at, value % HIGH);
  writeU32(out, at + 4, Math.floor(value / HIGH));
}

function read64(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at) + readU32(bytes, at + 4) * HIGH;
}

/** See the module's head. */
export class ReplicaRecord {
  readonly #file: LogFile;
  readonly #crc: Crc;
  readonly #areaBytes: number;
  #mark: Mark | undefined;
  #found: JournalRecord[] = [];
  #lastId = 0;
  #markCount = 0;
  /** Where the next record goes, and its number. */
  #at = AREA_START;
  #number = 1;
  /** The highest number that a record was begun with: one that failed may be there all the same, and must not fit a later lap. */
  #begun = 0;

  private constructor(file: LogFile, crc: Crc, areaBytes: number) {
    this.#file = file;
    this.#crc = crc;
    this.#areaBytes = areaBytes;
  }

  /** Reads what is there; {@link takeRecords} then gives the epochs of the journal. */
  static async open(
    file: LogFile,
    crc: Crc,
    areaBytes: number = JOURNAL_BYTES,
  ): Promise<ReplicaRecord> {
    const record = new ReplicaRecord(file, crc, areaBytes);
    for (const at of [0, BLOCK]) record.#readMark(await file.read(at, MARK_BYTES));
    // Always: what follows must be numbered behind whatever lies there.
    record.#found = await record.#scan();
    record.#lastId = record.#found.at(-1)?.id ?? record.mark?.id ?? 0;
    return record;
  }

  /** The mark that holds; undefined when nothing was ever kept here. */
  get mark(): Mark | undefined {
    return this.#mark;
  }

  /** The last epoch that the image and its journal hold. */
  get lastId(): number {
    return this.#lastId;
  }

  /** Reserves the whole file, so that it never lacks room later. @throws VmmError `DISK_LOG` */
  async reserve(): Promise<void> {
    const zeroes = new Uint8Array(2 ** 20);
    const end = AREA_START + this.#areaBytes;
    for (let at = this.#file.sizeBytes; at < end; ) {
      const n = Math.min(zeroes.length, end - at);
      await this.#file.write(at, zeroes.subarray(0, n));
      at += n;
    }
    await this.#file.sync();
  }

  /** Says durably what the image is from now on, and voids the journal. Duty: what the journal holds is durable in the image. */
  async setMark(mark: Mark): Promise<void> {
    const bytes = new Uint8Array(BLOCK);
    const count = this.#markCount + 1;
    writeU32(bytes, 0, MARK_MAGIC);
    writeU32(bytes, 4, VERSION);
    write64(bytes, 8, count);
    writeU32(bytes, 16, mark.state);
    writeU32(bytes, 20, mark.generation);
    write64(bytes, 24, mark.id);
    write64(bytes, 32, mark.imageBytes);
    for (let i = 0; i < 16; i++) {
      bytes[40 + i] = Number.parseInt(mark.vm.slice(2 * i, 2 * i + 2), 16);
    }
    // The number of this lap's first record.
    const number = Math.max(this.#number, this.#begun + 1);
    write64(bytes, 56, number);
    writeU32(bytes, MARK_BYTES - 4, this.#crc(bytes, 0, MARK_BYTES - 4, 0));
    await this.#file.write((count % 2) * BLOCK, bytes);
    await this.#file.sync();
    this.#mark = mark;
    this.#markCount = count;
    this.#number = number;
    this.#at = AREA_START;
  }

  #readMark(bytes: Uint8Array): void {
    if (bytes.length < MARK_BYTES || readU32(bytes, 0) !== MARK_MAGIC) return;
    if (readU32(bytes, 4) !== VERSION) return;
    if (readU32(bytes, MARK_BYTES - 4) !== this.#crc(bytes, 0, MARK_BYTES - 4, 0)) return;
    const count = read64(bytes, 8);
    if (count <= this.#markCount) return;
    this.#markCount = count;
    let vm = '';
    for (let i = 0; i < 16; i++) vm += bytes[40 + i]!.toString(16).padStart(2, '0');
    this.#mark = {
      state: readU32(bytes, 16) as ImageState,
      generation: readU32(bytes, 20),
      id: read64(bytes, 24),
      imageBytes: read64(bytes, 32),
      vm,
    };
    this.#number = read64(bytes, 56);
  }

  /** Makes what was found durable: it may be from a process that died before it could. @throws VmmError `DISK_LOG` */
  sync(): Promise<void> {
    return this.#file.sync();
  }

  /** The sound records that were found, oldest first. Once: they are not kept. */
  takeRecords(): JournalRecord[] {
    const found = this.#found;
    this.#found = [];
    return found;
  }

  /** Finds the sound records of the current lap and positions the journal behind them. */
  async #scan(): Promise<JournalRecord[]> {
    const found: JournalRecord[] = [];
    if (this.#mark?.state !== IMAGE.replica) return found;
    let at = AREA_START;
    let expected = this.#number;
    for (;;) {
      const head = await this.#file.read(at, RECORD_HEAD);
      if (head.length < RECORD_HEAD || readU32(head, 0) !== RECORD_MAGIC) break;
      if (readU32(head, RECORD_HEAD - 4) !== this.#crc(head, 0, RECORD_HEAD - 4, 0)) break;
      const number = read64(head, 8);
      if (number !== expected) break;
      const length = readU32(head, 32);
      if (length > this.#areaBytes) break;
      const body = await this.#file.read(at + RECORD_HEAD, length);
      if (body.length < length || this.#crc(body, 0, length, 0) !== readU32(head, 36)) break;
      found.push({ generation: readU32(head, 4), id: read64(head, 16), body });
      expected = number + 1;
      at = this.#behind(at, length);
    }
    this.#number = expected;
    this.#at = at;
    return found;
  }

  #behind(at: number, bodyBytes: number): number {
    return at + Math.ceil((RECORD_HEAD + bodyBytes) / BLOCK) * BLOCK;
  }

  /** Whether a record with this much of body fits into the current lap. */
  fits(bodyBytes: number): boolean {
    return this.#behind(this.#at, bodyBytes) <= AREA_START + this.#areaBytes;
  }

  /** Whether any lap could hold it. */
  canHold(bodyBytes: number): boolean {
    return this.#behind(AREA_START, bodyBytes) <= AREA_START + this.#areaBytes;
  }

  /** Appends an epoch and makes it durable. It {@link fits}. */
  async append(generation: number, id: number, parts: readonly Uint8Array[]): Promise<void> {
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    const bytes = new Uint8Array(Math.ceil((RECORD_HEAD + length) / BLOCK) * BLOCK);
    let to = RECORD_HEAD;
    for (const part of parts) {
      bytes.set(part, to);
      to += part.length;
    }
    writeU32(bytes, 0, RECORD_MAGIC);
    writeU32(bytes, 4, generation);
    write64(bytes, 8, this.#number);
    write64(bytes, 16, id);
    write64(bytes, 24, 0);
    writeU32(bytes, 32, length);
    writeU32(bytes, 36, this.#crc(bytes, RECORD_HEAD, length, 0));
    writeU32(bytes, RECORD_HEAD - 4, this.#crc(bytes, 0, RECORD_HEAD - 4, 0));
    this.#begun = this.#number;
    await this.#file.write(this.#at, bytes);
    await this.#file.sync();
    this.#number++;
    this.#at = this.#behind(this.#at, length);
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}
