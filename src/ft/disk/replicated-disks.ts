/**
 * The primary's side of replicated disks: which of the guest's disks the standby has a copy of its own of, what it lacks, and
 * what the next epoch carries. The primary's shell tells it of captures, ACKs and losses; the disks' decorators of writes.
 */
import type { BlockBackend } from '../../block/backend.ts';
import type { GuestMemory } from '../../memory/guest-memory.ts';
import type { DiskAccess } from './disk-access.ts';
import {
  type CopiedDisk,
  DiskCopy,
  type DiskCopyOwner,
  type DiskCopyParts,
  type DiskCopyProgress,
} from './disk-copy.ts';
import { type Crc, DiskLog, type DiskLogBounds } from './disk-log.ts';
import { RecordingBlock } from './recording-block.ts';
import { isReplicated, STORAGE, type Storage } from './storage.ts';

/** One of the guest's disks. */
export interface PrimaryDisk {
  readonly id: string;
  readonly backend: BlockBackend;
  /** A second way to the same disk, for the copy; opened when it is first needed. */
  open(): Promise<DiskAccess>;
  /** The base image of the disk, if the operator named one. */
  openBase?(): Promise<DiskAccess>;
}

/** Figures of one disk, for status. */
export interface DiskFigures {
  readonly id: string;
  /** `shared`, `replicated`, or `unknown` while no standby has said. */
  readonly storage: 'shared' | 'replicated' | 'unknown';
  /** What the standby's copy lacks, apart from what is in the log. */
  readonly differingBytes: number;
  /** Guest writes that wait for the standby. */
  readonly waitingWrites: number;
}

/** See the module's head. */
export class ReplicatedDisks {
  readonly log: DiskLog;
  /** What the devices get, in the order of the disks. */
  readonly blocks: readonly RecordingBlock[];
  readonly #disks: readonly PrimaryDisk[];
  readonly #access = new Map<number, DiskAccess>();
  readonly #bases = new Map<number, DiskAccess>();
  #storage: Storage[];
  #copy: DiskCopy | undefined;
  /** Called when the guest waits for room in the log. */
  onWait: () => void = () => {};

  constructor(
    disks: readonly PrimaryDisk[],
    memory: GuestMemory,
    crc: Crc,
    bounds?: DiskLogBounds,
  ) {
    this.#disks = disks;
    this.log = new DiskLog(crc, bounds);
    this.blocks = disks.map(
      ({ backend }, i) => new RecordingBlock(backend, memory, this.log, i, () => this.onWait()),
    );
    this.#storage = disks.map(() => STORAGE.unknown);
    this.log.onRoom = () => {
      for (const block of this.blocks) block.roomCame();
    };
  }

  /** What the standby says of each disk. @returns whether it changes anything */
  setStorage(storage: readonly Storage[]): void {
    this.#storage = this.#disks.map((_, i) => storage[i] ?? STORAGE.unknown);
  }

  storage(disk: number): Storage {
    return this.#storage[disk] ?? STORAGE.unknown;
  }

  #replicated(disk: number): boolean {
    const { backend } = this.#disks[disk]!;
    return isReplicated(this.#storage[disk]) && !backend.info.readonly;
  }

  get any(): boolean {
    return this.#disks.some((_, i) => this.#replicated(i));
  }

  /** Begins the first copy to a standby that holds nothing: all is marked, what the log holds is void. */
  async beginCopy(parts: DiskCopyParts, owner: DiskCopyOwner): Promise<DiskCopy | undefined> {
    this.forget();
    const copied: CopiedDisk[] = [];
    for (const [i, disk] of this.#disks.entries()) {
      if (!this.#replicated(i)) {
        this.blocks[i]!.setMode('off');
        continue;
      }
      const block = this.blocks[i]!;
      block.setMode('track');
      block.granules.fill();
      let access = this.#access.get(i);
      if (access === undefined) {
        access = await disk.open();
        this.#access.set(i, access);
      }
      let base = this.#bases.get(i);
      if (this.#storage[i] === STORAGE.replicatedOnBase && base === undefined) {
        base = await disk.openBase?.();
        if (base !== undefined) this.#bases.set(i, base);
      }
      if (this.#storage[i] !== STORAGE.replicatedOnBase) base = undefined;
      copied.push({ disk: i, id: disk.id, access, block, base });
    }
    if (!owner.wanted() || copied.length === 0) return undefined;
    this.#copy = new DiskCopy(parts, owner, copied);
    return this.#copy;
  }

  /** The first copy is over, or void. */
  endCopy(): void {
    this.#copy = undefined;
  }

  get progress(): DiskCopyProgress | undefined {
    return this.#copy?.progress;
  }

  /** The guest goes on without the standby: nothing waits any more, what it writes is only marked. */
  forget(): void {
    for (const [i, block] of this.blocks.entries()) {
      if (block.mode !== 'off') block.setMode(this.#replicated(i) ? 'track' : 'off');
    }
    this.log.clear((disk, offset, length) => this.blocks[disk]!.granules.mark(offset, length));
  }

  figures(): DiskFigures[] {
    return this.#disks.map(({ id }, i) => ({
      id,
      storage:
        this.#storage[i] === STORAGE.unknown
          ? 'unknown'
          : this.#replicated(i)
            ? 'replicated'
            : 'shared',
      differingBytes: this.blocks[i]!.granules.bytes,
      waitingWrites: this.blocks[i]!.waiting,
    }));
  }

  /** Gives back what was opened for the copy. The backends stay their owner's. */
  async close(): Promise<void> {
    for (const access of [...this.#access.values(), ...this.#bases.values()]) await access.close();
    this.#access.clear();
    this.#bases.clear();
  }
}
