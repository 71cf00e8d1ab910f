/**
 * Whether the two hosts name the same storage, or each has its own. Told by the standby, which sees both descriptions; an
 * option on either side wins, and where it cannot be told for sure nothing is guessed. docs/decisions/0009 says why.
 */
import { VmmError } from '../../base/error.ts';

/** How a disk is kept on the two hosts, as it goes over the wire. */
export const STORAGE = {
  unknown: 0,
  shared: 1,
  replicated: 2,
  /** Replicated, and the standby has the same base image: its copy begins with that. */
  replicatedOnBase: 3,
} as const;
/** One of {@link STORAGE}. */
export type Storage = (typeof STORAGE)[keyof typeof STORAGE];

/**
 * What a standby's copies of a guest's disks are, all of them: the disks as of transaction `id` of `generation`, or later. With it
 * the primary of that very run sends only what it has written since.
 */
export interface HeldCopy {
  readonly generation: number;
  readonly id: number;
}

/**
 * What the images of a lost primary's host are, where their activity logs hold: the disks as of a transaction of `generation` at or
 * behind `fromId`, whichever its standby took over from, but for the extents that are named. With it the survivor of that
 * very run sends only these and what it has written since.
 */
export interface ReturnedCopy {
  readonly generation: number;
  readonly fromId: number;
  /** Extents of 1 MiB that may differ, ascending; one list for each disk of the guest, empty where it has no log. */
  readonly extents: readonly (readonly number[])[];
}

/** What a survivor's own copies were when it took the guest over. */
export interface Origin {
  readonly generation: number;
  /** The last transaction that they had. */
  readonly id: number;
}

/** Whether a survivor's state is one behind which the log of a lost primary holds. */
export function continues(origin: Origin | undefined, log: Omit<ReturnedCopy, 'extents'>): boolean {
  return origin?.generation === log.generation && origin.id >= log.fromId;
}

/** Whether the standby keeps a copy of its own. */
export function isReplicated(storage: Storage | undefined): boolean {
  return storage === STORAGE.replicated || storage === STORAGE.replicatedOnBase;
}

/** What an operator may say: `ft=` of a disk. */
export const STORAGE_CHOICES = ['auto', 'shared', 'replicate'] as const;
/** One of {@link STORAGE_CHOICES}. */
export type StorageChoice = (typeof STORAGE_CHOICES)[number];

/** What is known of the storage behind a disk on one host. */
export interface StorageIdentity {
  readonly kind: 'file' | 'device' | 'network';
  /** Which running kernel: two processes with the same one see the same device numbers. Empty for `network`. */
  readonly host: string;
  /** Device and inode of a file, the number of a device, or the address of network storage. */
  readonly where: string;
  /** Whether the file lies on a file system that no second host can have mounted. */
  readonly local: boolean;
}

/** What the standby compares. */
export interface StorageQuestion {
  readonly id: string;
  readonly primary: StorageIdentity;
  readonly primaryChoice: StorageChoice;
  /** Undefined: there is nothing yet at the standby's path. */
  readonly standby: StorageIdentity | undefined;
  readonly standbyChoice: StorageChoice;
  /** Whether somebody holds a lock on the standby's file: the primary does, where both see the same. */
  readonly locked: boolean;
}

/** Whether both identities are surely of one storage (true), surely of two (false), or it cannot be told (undefined). */
export function sameStorage(
  a: StorageIdentity,
  b: StorageIdentity,
  locked: boolean,
): boolean | undefined {
  if (a.kind === 'network' || b.kind === 'network') {
    return a.kind === b.kind && a.where === b.where ? true : undefined;
  }
  if (a.host === b.host) return a.kind === b.kind && a.where === b.where;
  // Device nodes of two hosts may lead to one disk, and locks on them are seen by one host only.
  if (a.kind === 'device' || b.kind === 'device') return undefined;
  if (a.local || b.local) return false;
  return locked ? true : undefined;
}

/** @throws VmmError `FT_STORAGE` with what to do, where it cannot be told or both sides disagree */
export function decideStorage(question: StorageQuestion): Storage {
  const { id, primary, primaryChoice, standby, standbyChoice, locked } = question;
  const refuse = (message: string, hint: string): VmmError =>
    new VmmError('FT_STORAGE', `disk '${id}': ${message}`, { hint });
  if (primaryChoice !== 'auto' && standbyChoice !== 'auto' && primaryChoice !== standbyChoice) {
    throw refuse(
      `the primary says ft=${primaryChoice}, the standby ft=${standbyChoice}`,
      'Give the same on both hosts, or on one of them only.',
    );
  }
  const choice = primaryChoice === 'auto' ? standbyChoice : primaryChoice;
  const same = standby === undefined ? false : sameStorage(primary, standby, locked);
  if (choice === 'replicate' && same === true) {
    throw refuse(
      'both hosts name the same storage, so it cannot be copied from one to the other',
      'Use ft=shared, or give the standby a path of its own.',
    );
  }
  if (choice === 'shared' && same === false) {
    throw refuse(
      'the standby names other storage than the primary, so it is not shared',
      'Name the same storage on both hosts, or use ft=replicate.',
    );
  }
  if (choice !== 'auto') return choice === 'shared' ? STORAGE.shared : STORAGE.replicated;
  if (same === undefined) {
    throw refuse(
      'it cannot be told whether both hosts name the same storage',
      'Add ft=shared or ft=replicate to the disk on either host.',
    );
  }
  return same ? STORAGE.shared : STORAGE.replicated;
}
