/**
 * The file beside a primary's image that says where it may differ from what its standby holds (`IMAGE.ft-act`): whose run wrote it,
 * since which transaction, and extents of 1 MiB. Bytes only; when it is written is for activity-log.ts.
 *
 * The whole set fits into one block of 4 KiB, so a change is one write and one sync. Four blocks are written in turn, the one with
 * the highest count holds. A block that is neither sound nor empty makes the file void: it may have been the newest.
 */
import { readU32, writeU32 } from '../wire/cursor.ts';
import type { Crc } from './disk-log.ts';
import type { LogFile } from './log-file.ts';

/** The unit of the log: coarse, so that a guest at work on one place seldom changes it. */
export const EXTENT_BYTES = 2 ** 20;
const MAGIC = 0x41465354; // "TSFA"
const VERSION = 2;
const BLOCK = 4096;
const BLOCKS = 4;
const HEAD = 64;
/** Most extents that are named at a time. */
export const EXTENTS_MAX = (BLOCK - HEAD - 4) / 4;
const HIGH = 2 ** 32;

/** Where the log of an image is kept. */
export function activityPath(image: string): string {
  return `${image}.ft-act`;
}

/** What a log belongs to. */
export interface ActivityOwner {
  /** Which guest; 16 bytes in hexadecimal. */
  readonly vm: string;
  readonly generation: number;
  /** The first transaction behind which the log holds: a standby with an earlier state has nothing to do with it. */
  readonly fromId: number;
  /** Which image, as its host tells images apart. */
  readonly image: number;
}

/** What a log says: but for these extents the image is what the standby of this run has acknowledged. */
export interface ActivityState extends ActivityOwner {
  /** Numbers of extents, ascending. */
  readonly extents: readonly number[];
}

/** See the module's head. */
export class ActivityFile {
  readonly #file: LogFile;
  readonly #crc: Crc;
  /** What was found at {@link open}; undefined: nothing that holds. */
  readonly found: ActivityState | undefined;
  #count: number;

  private constructor(file: LogFile, crc: Crc, count: number, found: ActivityState | undefined) {
    this.#file = file;
    this.#crc = crc;
    this.#count = count;
    this.found = found;
  }

  /** Reads what an earlier owner left. @throws VmmError `DISK_LOG` */
  static async open(file: LogFile, crc: Crc): Promise<ActivityFile> {
    let count = 0;
    let found: ActivityState | undefined;
    let damaged = false;
    for (let i = 0; i < BLOCKS; i++) {
      const block = await file.read(i * BLOCK, BLOCK);
      if (block.every((byte) => byte === 0)) continue;
      if (block.length < BLOCK || readU32(block, BLOCK - 4) !== crc(block, 0, BLOCK - 4, 0)) {
        damaged = true;
        continue;
      }
      const number = readU32(block, 8) + readU32(block, 12) * HIGH;
      if (number <= count) continue;
      count = number;
      found = stateOf(block);
    }
    return new ActivityFile(file, crc, count, damaged ? undefined : found);
  }

  /** Writes what holds from now on; undefined: nothing does. Durable when this resolves. @throws VmmError `DISK_LOG` */
  async write(state: ActivityState | undefined): Promise<void> {
    const block = new Uint8Array(BLOCK);
    const count = this.#count + 1;
    writeU32(block, 0, MAGIC);
    writeU32(block, 4, VERSION);
    writeU32(block, 8, count % HIGH);
    writeU32(block, 12, Math.floor(count / HIGH));
    if (state !== undefined) {
      writeU32(block, 16, state.generation);
      writeU32(block, 20, 1);
      for (let i = 0; i < 16; i++) {
        block[24 + i] = Number.parseInt(state.vm.slice(2 * i, 2 * i + 2), 16);
      }
      writeU32(block, 40, state.extents.length);
      writeU32(block, 44, state.fromId % HIGH);
      writeU32(block, 48, Math.floor(state.fromId / HIGH));
      writeU32(block, 52, state.image);
      for (const [i, extent] of state.extents.entries()) writeU32(block, HEAD + 4 * i, extent);
    }
    writeU32(block, BLOCK - 4, this.#crc(block, 0, BLOCK - 4, 0));
    await this.#file.write((count % BLOCKS) * BLOCK, block);
    await this.#file.sync();
    this.#count = count;
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

function stateOf(block: Uint8Array): ActivityState | undefined {
  const count = readU32(block, 40);
  if (readU32(block, 0) !== MAGIC || readU32(block, 4) !== VERSION) return undefined;
  if (readU32(block, 20) !== 1 || count > EXTENTS_MAX) return undefined;
  let vm = '';
  for (let i = 0; i < 16; i++) vm += block[24 + i]!.toString(16).padStart(2, '0');
  return {
    vm,
    generation: readU32(block, 16),
    fromId: readU32(block, 44) + readU32(block, 48) * HIGH,
    image: readU32(block, 52),
    extents: Array.from({ length: count }, (_, i) => readU32(block, HEAD + 4 * i)),
  };
}
