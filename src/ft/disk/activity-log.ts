/**
 * Which parts of its disk a primary may have changed without its standby knowing: extents of 1 MiB, persisted *before* the first
 * write to them. When the primary's host is lost and comes back, its image differs from the survivor's in these extents and in
 * what the survivor wrote since; without a sound log, or with one of another run, nothing is known and the whole disk
 * is copied.
 *
 * The whole set fits into one block of 4 KiB, so a change is one write and one sync; several changes that come together share
 * them. Blocks are written in turn, the sound one with the highest count holds.
 *
 * Duty of the caller: an extent stays active as long as a write to it is not acknowledged by the standby *and* durable on this
 * host; only then {@link ActivityLog.retire} it. (What was acknowledged and lay in a cache when the power went is on the
 * survivor's disk and not on this one.)
 *
 * Nothing calls this yet: a lost primary that comes back is copied whole (docs/replication.md).
 */
import { assert } from '../../base/assert.ts';
import { readU32, writeU32 } from '../wire/cursor.ts';
import type { Crc } from './disk-log.ts';
import type { LogFile } from './log-file.ts';

/** The unit of the log: coarse, so that a guest at work on one place seldom changes it. */
export const EXTENT_BYTES = 2 ** 20;
const MAGIC = 0x41465354; // "TSFA"
const VERSION = 1;
const BLOCK = 4096;
const BLOCKS = 4;
const HEAD = 56;
/** Most extents that are active at a time. */
export const EXTENTS_MAX = (BLOCK - HEAD - 4) / 4;
const HIGH = 2 ** 32;

/** What a log belongs to. */
export interface ActivityOwner {
  /** Which guest; 16 bytes in hexadecimal. */
  readonly vm: string;
  readonly generation: number;
}

/** What is found in a log. */
export interface ActivityState extends ActivityOwner {
  /** Whether its owner ended in order: then the disk is what the standby had acknowledged, and the extents do not count. */
  readonly clean: boolean;
  /** Numbers of extents, ascending. */
  readonly extents: readonly number[];
}

/** See the module's head. */
export class ActivityLog {
  readonly #file: LogFile;
  readonly #crc: Crc;
  /** What was found at {@link open}; undefined: nothing sound. */
  readonly found: ActivityState | undefined;
  #owner: ActivityOwner | undefined;
  #count: number;
  /** Active and persisted, or about to be; in the order of their last use. */
  readonly #active = new Set<number>();
  readonly #persisted = new Set<number>();
  #writing: Promise<void> | undefined;
  #again = false;

  private constructor(file: LogFile, crc: Crc, count: number, found: ActivityState | undefined) {
    this.#file = file;
    this.#crc = crc;
    this.#count = count;
    this.found = found;
  }

  /** Reads what an earlier owner left. */
  static async open(file: LogFile, crc: Crc): Promise<ActivityLog> {
    let count = 0;
    let found: ActivityState | undefined;
    for (let i = 0; i < BLOCKS; i++) {
      const block = await file.read(i * BLOCK, BLOCK);
      if (block.length < BLOCK || readU32(block, 0) !== MAGIC) continue;
      if (readU32(block, BLOCK - 4) !== crc(block, 0, BLOCK - 4, 0)) continue;
      const number = readU32(block, 8) + readU32(block, 12) * HIGH;
      if (number <= count) continue;
      count = number;
      found = readU32(block, 4) === VERSION ? stateOf(block) : undefined;
    }
    return new ActivityLog(file, crc, count, found);
  }

  /** Begins a run: nothing is active. Durable when this resolves. */
  async begin(owner: ActivityOwner): Promise<void> {
    this.#owner = owner;
    this.#active.clear();
    await this.#persist(false);
  }

  /** Whether a write there may go to the disk now. */
  covers(offset: number, length: number): boolean {
    const last = Math.floor((offset + length - 1) / EXTENT_BYTES);
    for (let e = Math.floor(offset / EXTENT_BYTES); e <= last; e++) {
      if (!this.#persisted.has(e)) return false;
    }
    return true;
  }

  /**
   * Makes the extents of a write active.
   * @returns a promise that resolves when they are durable, or undefined when there is no room: something must retire first
   */
  activate(offset: number, length: number): Promise<void> | undefined {
    const first = Math.floor(offset / EXTENT_BYTES);
    const last = Math.floor((offset + length - 1) / EXTENT_BYTES);
    let added = 0;
    for (let e = first; e <= last; e++) if (!this.#active.has(e)) added++;
    if (this.#active.size + added > EXTENTS_MAX) return undefined;
    for (let e = first; e <= last; e++) this.#active.add(e);
    return this.#persist(false);
  }

  /** Extents that are active, in the order in which they became so. */
  get active(): readonly number[] {
    return [...this.#active];
  }

  /** These extents are the same on both hosts again. Written with the next change: a log may name too many, never too few. */
  retire(extents: Iterable<number>): void {
    for (const extent of extents) {
      this.#active.delete(extent);
      this.#persisted.delete(extent);
    }
  }

  /** The run ends in order: everything is acknowledged and durable. */
  async end(): Promise<void> {
    await this.#writing;
    await this.#persist(true);
  }

  /** Writes the set as it is when the write begins; changes during a write share the next one. */
  #persist(clean: boolean): Promise<void> {
    if (this.#writing !== undefined) {
      this.#again = true;
      return this.#writing.then(() => this.#writing ?? Promise.resolve());
    }
    const run = async (): Promise<void> => {
      await this.#write(clean);
      this.#writing = undefined;
      if (!this.#again) return;
      this.#again = false;
      await this.#persist(false);
    };
    this.#writing = run();
    return this.#writing;
  }

  async #write(clean: boolean): Promise<void> {
    assert(this.#owner !== undefined, 'a log is begun before it is used');
    const extents = [...this.#active].sort((a, b) => a - b);
    const block = new Uint8Array(BLOCK);
    const count = this.#count + 1;
    writeU32(block, 0, MAGIC);
    writeU32(block, 4, VERSION);
    writeU32(block, 8, count % HIGH);
    writeU32(block, 12, Math.floor(count / HIGH));
    writeU32(block, 16, this.#owner.generation);
    writeU32(block, 20, clean ? 1 : 0);
    for (let i = 0; i < 16; i++) {
      block[24 + i] = Number.parseInt(this.#owner.vm.slice(2 * i, 2 * i + 2), 16);
    }
    writeU32(block, 40, extents.length);
    for (const [i, extent] of extents.entries()) writeU32(block, HEAD + 4 * i, extent);
    writeU32(block, BLOCK - 4, this.#crc(block, 0, BLOCK - 4, 0));
    this.#count = count;
    await this.#file.write((count % BLOCKS) * BLOCK, block);
    await this.#file.sync();
    for (const extent of extents) if (this.#active.has(extent)) this.#persisted.add(extent);
  }
}

function stateOf(block: Uint8Array): ActivityState | undefined {
  const count = readU32(block, 40);
  if (count > EXTENTS_MAX) return undefined;
  let vm = '';
  for (let i = 0; i < 16; i++) vm += block[24 + i]!.toString(16).padStart(2, '0');
  return {
    vm,
    generation: readU32(block, 16),
    clean: readU32(block, 20) === 1,
    extents: Array.from({ length: count }, (_, i) => readU32(block, HEAD + 4 * i)),
  };
}
