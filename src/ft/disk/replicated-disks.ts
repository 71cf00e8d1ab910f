/**
 * The primary's side of replicated disks: which of the guest's disks the standby has a copy of its own of, what it lacks, and
 * what the next epoch carries. The primary's shell tells it of captures, ACKs and losses; the disks' decorators of writes.
 */
import type { BlockBackend } from '../../block/backend.ts';
import type { GuestMemory } from '../../memory/guest-memory.ts';
import { EXTENT_BYTES } from './activity-file.ts';
import { ActivityLog, type ActivityParts } from './activity-log.ts';
import type { DiskAccess } from './disk-access.ts';
import {
  type CopiedDisk,
  DiskCopy,
  type DiskCopyOwner,
  type DiskCopyParts,
  type DiskCopyProgress,
} from './disk-copy.ts';
import { type Crc, DiskLog, type DiskLogBounds } from './disk-log.ts';
import { Granules } from './granules.ts';
import { RecordingBlock } from './recording-block.ts';
import {
  continues,
  type HeldCopy,
  isReplicated,
  type Origin,
  type ReturnedCopy,
  STORAGE,
  type Storage,
} from './storage.ts';

/** One of the guest's disks. */
export interface PrimaryDisk {
  readonly id: string;
  readonly backend: BlockBackend;
  /** A second way to the same disk, for the copy; opened when it is first needed. */
  open(): Promise<DiskAccess>;
  /** The base image of the disk, if the operator named one. */
  openBase?(): Promise<DiskAccess>;
  /** How the disk's activity log is kept, where it can have one. */
  readonly activity?: ActivityParts;
}

/** The run that copies are made of. */
export interface CopyRun {
  /** Which guest; 16 bytes in hexadecimal. */
  readonly vm: string;
  readonly generation: number;
}

/** What a copy begins with: nothing, a copy of this run, or the image of the host that was lost. */
export type CopyBasis = 'nothing' | 'copy' | 'return';

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
  /** What is opened for the copy, or is being opened: a copy may be begun anew meanwhile. */
  readonly #access = new Map<number, Promise<DiskAccess>>();
  readonly #bases = new Map<number, Promise<DiskAccess>>();
  #closed = false;
  readonly #storage: Storage[];
  #copy: DiskCopy | undefined;
  #held: HeldCopy | undefined;
  #returned: ReturnedCopy | undefined;
  /** What this host took the guest over from, if it did. */
  #origin: Origin | undefined;
  #run: CopyRun | undefined;
  #basis: CopyBasis = 'nothing';
  /** Whether the marks are all that a copy as of {@link #confirmedId} lacks, together with {@link #young} and {@link #old}. */
  #tracked = false;
  /** The standby has said that it has this on its disks, and everything before. */
  #confirmedId = 0;
  /** Acknowledged and not yet confirmed: an acknowledgement comes before the standby's disk has it. By age, with the last id. */
  #young: readonly Granules[];
  #youngId = 0;
  #old: readonly Granules[];
  #oldId = 0;
  /** Called when the guest waits for room in the log. */
  onWait: () => void = () => {};

  /** @param granuleBytes in which differences are kept, other than usual only where small disks are simulated */
  constructor(
    disks: readonly PrimaryDisk[],
    memory: GuestMemory,
    crc: Crc,
    bounds?: DiskLogBounds,
    granuleBytes?: number,
  ) {
    this.#disks = disks;
    this.log = new DiskLog(crc, bounds);
    this.blocks = disks.map(
      ({ backend }, i) =>
        new RecordingBlock(backend, memory, this.log, i, () => this.onWait(), granuleBytes),
    );
    this.#storage = disks.map(() => STORAGE.unknown);
    this.#young = this.blocks.map(({ granules }) => likeGranules(granules));
    this.#old = this.blocks.map(({ granules }) => likeGranules(granules));
    this.log.onRoom = () => {
      for (const block of this.blocks) block.roomCame();
    };
  }

  /** What the standby says of each disk, and of what its copies hold already. */
  setStorage(
    storage: readonly Storage[],
    held: HeldCopy | undefined,
    returned?: ReturnedCopy | undefined,
  ): void {
    // One that refuses says nothing of disks.
    if (storage.length !== this.#disks.length) return;
    this.#held = held;
    this.#returned = returned;
    for (const [i, now] of storage.entries()) {
      // What was written while a disk was shared has not been tracked.
      if (isReplicated(now) !== isReplicated(this.#storage[i])) this.#tracked = false;
      this.#storage[i] = now;
    }
  }

  /**
   * This host has taken the guest over, and nothing has been written since: from now on all that is written to its copies is
   * marked, so that the lost host can come back without a whole copy.
   * @param copies numbers of the disks of which this host has a copy of its own
   */
  tookOver(origin: Origin, copies: readonly number[]): void {
    this.#origin = origin;
    for (const disk of copies) {
      const block = this.blocks[disk]!;
      block.since = likeGranules(block.granules);
    }
  }

  /** What the copy that was begun last begins with. */
  get basis(): CopyBasis {
    return this.#basis;
  }

  /** Whether the standby that answered last has a copy of its own of a disk. */
  isCopied(disk: number): boolean {
    return isReplicated(this.#storage[disk]);
  }

  #replicated(disk: number): boolean {
    const { backend } = this.#disks[disk]!;
    return isReplicated(this.#storage[disk]) && !backend.info.readonly;
  }

  get any(): boolean {
    return this.#disks.some((_, i) => this.#replicated(i));
  }

  /**
   * Begins the first copy: of everything; or, where the standby's copies are of this very run and not older than what is tracked
   * here, of what was written since; or, where they are what the lost host left of the run that was taken over here, of what
   * was written since on either host. What the log holds is void.
   */
  async beginCopy(
    parts: DiskCopyParts,
    owner: DiskCopyOwner,
    run: CopyRun,
  ): Promise<DiskCopy | undefined> {
    if (this.#closed) return undefined;
    this.forget();
    this.#run = run;
    const held = this.#held;
    const known =
      this.#tracked && held?.generation === run.generation && held.id >= this.#confirmedId;
    const returned = known ? undefined : this.#usable(this.#returned);
    this.#basis = known ? 'copy' : returned === undefined ? 'nothing' : 'return';
    // Marks are taken off as pieces are sent: until this copy is complete they say nothing of any other.
    this.#tracked = false;
    const copied: CopiedDisk[] = [];
    for (const [i, disk] of this.#disks.entries()) {
      if (!this.#replicated(i)) {
        this.blocks[i]!.setMode('off');
        continue;
      }
      const block = this.blocks[i]!;
      if (disk.activity !== undefined && block.activity === undefined) {
        block.setActivity(new ActivityLog(block.info.sizeBytes, disk.activity));
      }
      block.setMode('track');
      if (returned !== undefined) markReturned(block, returned.extents[i]!);
      else if (!known) block.granules.fill();
      const onBase =
        this.#storage[i] === STORAGE.replicatedOnBase &&
        returned === undefined &&
        disk.openBase !== undefined;
      const access = await opened(this.#access, i, () => disk.open());
      const base =
        onBase && !this.#closed ? await opened(this.#bases, i, () => disk.openBase!()) : undefined;
      if (this.#closed) return undefined;
      copied.push({ disk: i, id: disk.id, access, block, base });
    }
    if (!owner.wanted() || copied.length === 0) return undefined;
    this.#copy = new DiskCopy(parts, owner, copied);
    return this.#copy;
  }

  /** What a lost host has left, if it is of the run that was taken over here and fits these disks. */
  #usable(returned: ReturnedCopy | undefined): ReturnedCopy | undefined {
    if (returned === undefined || !continues(this.#origin, returned)) return undefined;
    if (returned.extents.length !== this.#disks.length) return undefined;
    for (const [i, block] of this.blocks.entries()) {
      if (!this.#replicated(i)) continue;
      if (block.since === undefined) return undefined;
      const { extentBytes = EXTENT_BYTES } = this.#disks[i]!.activity ?? {};
      const extents = Math.ceil(block.info.sizeBytes / extentBytes);
      if (returned.extents[i]!.some((extent) => extent >= extents)) return undefined;
    }
    return returned;
  }

  /** Epoch `epoch`, on the wire transaction `id`, is acknowledged. */
  acked(epoch: number, id: number): void {
    const first = !this.#tracked;
    if (first) {
      // The first since a copy: that one is what is confirmed, and this epoch comes behind it. No earlier standby has the
      // copy's id: the sender passes over one at each full start.
      this.#tracked = true;
      this.#confirmedId = id - 1;
    }
    this.log.release(epoch, (disk, offset, length) => {
      this.blocks[disk]!.released(offset, length);
      this.#young[disk]!.mark(offset, length);
      this.#youngId = id;
    });
    if (first) this.#arm(id);
  }

  /** The standby has all of the disks as of transaction `id`: the activity logs may hold from now on. */
  #arm(id: number): void {
    if (this.#run === undefined) return;
    const copies = this.blocks.filter((_, i) => this.#replicated(i));
    // What is in flight and was not recorded is in no log.
    if (copies.some(({ mode, unrecorded }) => mode !== 'record' || unrecorded > 0)) return;
    for (const { activity } of copies) activity?.arm({ ...this.#run, fromId: id });
  }

  /** The standby has everything up to transaction `id` on its disks. */
  confirmed(id: number): void {
    if (this.#oldId > 0) {
      if (id < this.#oldId) return;
      this.#confirmedId = this.#oldId;
      for (const granules of this.#old) granules.clear();
      this.#oldId = 0;
    }
    if (this.#youngId === 0) return;
    [this.#young, this.#old] = [this.#old, this.#young];
    [this.#youngId, this.#oldId] = [0, this.#youngId];
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
    // First: what goes on from here is not in the activity logs.
    for (const { activity } of this.blocks) activity?.void();
    for (const [i, block] of this.blocks.entries()) {
      if (block.mode !== 'off') block.setMode(this.#replicated(i) ? 'track' : 'off');
    }
    this.log.clear((disk, offset, length) => {
      this.blocks[disk]!.released(offset, length);
      this.blocks[disk]!.granules.mark(offset, length);
    });
    for (const [i, { granules }] of this.blocks.entries()) {
      for (const acked of [this.#young[i]!, this.#old[i]!]) {
        granules.merge(acked);
        acked.clear();
      }
    }
    this.#youngId = 0;
    this.#oldId = 0;
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
    this.#closed = true;
    await Promise.all(this.blocks.map(({ activity }) => activity?.close()));
    const all = await Promise.allSettled([...this.#access.values(), ...this.#bases.values()]);
    this.#access.clear();
    this.#bases.clear();
    for (const access of all) if (access.status === 'fulfilled') await access.value.close();
  }
}

/** An empty set for the same disk. */
function likeGranules({ sizeBytes, unitBytes }: Granules): Granules {
  return new Granules(sizeBytes, unitBytes);
}

/** What the host that was lost does not have as it is here: what it may have written itself, and what was written here since. */
function markReturned(block: RecordingBlock, extents: readonly number[]): void {
  const { granules, since } = block;
  const { extentBytes } = block.activity ?? { extentBytes: EXTENT_BYTES };
  granules.clear();
  for (const extent of extents) granules.mark(extent * extentBytes, extentBytes);
  granules.merge(since!);
}

/** What is under `key`; opened where nothing is, once also for several that ask meanwhile. A failure is not kept. */
async function opened(
  all: Map<number, Promise<DiskAccess>>,
  key: number,
  open: () => Promise<DiskAccess>,
): Promise<DiskAccess> {
  let one = all.get(key);
  if (one === undefined) {
    one = open();
    all.set(key, one);
  }
  try {
    return await one;
  } catch (error) {
    if (all.get(key) === one) all.delete(key);
    throw error;
  }
}
