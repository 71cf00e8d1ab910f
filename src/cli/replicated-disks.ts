/**
 * Replicated disks on either host: which of a guest's disks are, what is opened for them beside the guest's own backends, and
 * what is done with the record that lies beside an image.
 */
import { closeSync, constants, openSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import { VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import { openDisk } from '../block/open.ts';
import type { ActivityState } from '../ft/disk/activity-file.ts';
import { type BaseIdentity, digestBase } from '../ft/disk/base-image.ts';
import { DiskAccess, SCRATCH_BYTES } from '../ft/disk/disk-access.ts';
import type { Crc } from '../ft/disk/disk-log.ts';
import {
  activityParts,
  fileRoom,
  holesOf,
  identifyStorage,
  isLocked,
  readActivity,
  removeActivity,
} from '../ft/disk/host-storage.ts';
import { openLogFile } from '../ft/disk/log-file.ts';
import { heldBy, recoverImages, refuseIncomplete } from '../ft/disk/recover.ts';
import { type ReplicaDisk, ReplicaDisks } from '../ft/disk/replica-disks.ts';
import { IMAGE, ReplicaRecord, recordPath } from '../ft/disk/replica-record.ts';
import { type PrimaryDisk, ReplicatedDisks } from '../ft/disk/replicated-disks.ts';
import {
  continues,
  decideStorage,
  type HeldCopy,
  isReplicated,
  type ReturnedCopy,
  STORAGE,
  type Storage,
} from '../ft/disk/storage.ts';
import type { KvmHost } from '../kvm/api.ts';
import type { NativeIo } from '../kvm/native-io.ts';
import type { Machine } from '../machine/machine.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import type { DiskOption, OpenDevices } from './device-options.ts';
import type { DescribedStorage, Description } from './ft-description.ts';

/** What opening disks beside a guest takes. */
export interface DiskHost {
  readonly host: KvmHost;
  readonly io: NativeIo;
  readonly log: Logger;
}

const crcOf =
  (io: NativeIo): Crc =>
  (bytes, offset, length, previous) =>
    io.crc32c(bytes, offset, length, previous);

function isFile(source: string): boolean {
  return statSync(source, { throwIfNoEntry: false })?.isFile() === true;
}

/** Opens a disk a second time, for replication itself; without a lock, which the guest's backend holds. */
async function openAccess(
  parts: DiskHost,
  option: Pick<DiskOption, 'source' | 'readonly' | 'cache'>,
): Promise<DiskAccess> {
  const { host, io, log } = parts;
  const buffer = new ArrayBuffer(SCRATCH_BYTES);
  const map = host.createMemoryMap();
  map.addRange(0, buffer);
  const memory = new GuestMemory([{ base: 0, buffer }]);
  const { source, readonly, cache } = option;
  const { backend } = await openDisk(
    { native: io, memoryMap: map.native, memory, log },
    { source, readonly, lock: 'unlocked', ...(cache && { cache }) },
  );
  if (!isFile(source)) return new DiskAccess(backend, memory);
  const fd = openSync(source, constants.O_RDONLY);
  const access = new DiskAccess(backend, memory, holesOf(io, fd, backend.info.sizeBytes));
  access.onClose(() => closeSync(fd));
  return access;
}

/** Identities of base images, by their path. */
export type Bases = ReadonlyMap<string, BaseIdentity>;

/** Reads the base images that disks name. @throws VmmError `DISK_BASE` */
export async function readBases(
  io: NativeIo,
  disks: readonly { readonly base: string | undefined }[],
): Promise<Bases> {
  const bases = new Map<string, BaseIdentity>();
  for (const { base } of disks) {
    if (base !== undefined && !bases.has(base)) bases.set(base, await digestBase(io, base));
  }
  return bases;
}

/** What a description says of the storage of `disks`. */
export function describeStorage(disks: readonly DiskOption[], bases: Bases): DescribedStorage[] {
  return disks.map(({ source, ft, base }) => ({
    ft,
    storage: identifyStorage(source)!,
    ...(base !== undefined && { base: bases.get(base)! }),
  }));
}

/** A guest's disks for replication, and its devices with the recording backends. */
export interface RecordedDisks {
  readonly disks: ReplicatedDisks;
  readonly devices: OpenDevices;
}

/** The primary's disks with what is needed to keep a standby's copies up to date; to be put under the event-tap. */
export function recordDisks(
  parts: DiskHost,
  machine: Machine,
  options: readonly DiskOption[],
  devices: OpenDevices,
  closers: (() => unknown)[],
): RecordedDisks {
  const disks = new ReplicatedDisks(
    devices.disks.map(({ id, backend }, i) => ({
      id,
      backend,
      open: () => openAccess(parts, { ...options[i]!, readonly: true }),
      openBase: () => openBase(parts, options[i]!.base!),
      ...activityOf(parts, options[i]!),
    })),
    machine.memory,
    crcOf(parts.io),
  );
  closers.push(() => disks.close());
  return {
    disks,
    devices: {
      ...devices,
      disks: devices.disks.map((disk, i) => ({ ...disk, backend: disks.blocks[i]! })),
    },
  };
}

/** A log of where the disk may differ from the standby's copy, for what is a file here. */
function activityOf(
  { io, log }: DiskHost,
  { source, readonly }: DiskOption,
): Pick<PrimaryDisk, 'activity'> {
  if (readonly || !isFile(source)) return {};
  const warn = (sentence: string): void => log.warn(`${source}: ${sentence}`);
  return { activity: activityParts(source, crcOf(io), warn) };
}

/** Before a guest writes to disks: what lies beside them about an earlier run says nothing of them any more. */
export function forgetActivity(options: readonly DiskOption[]): void {
  for (const { source, readonly } of options) {
    if (!readonly && isFile(source)) removeActivity(source);
  }
}

/** A base image, read through the page cache: it does not change. */
function openBase(parts: DiskHost, source: string): Promise<DiskAccess> {
  return openAccess(parts, { source, readonly: true, cache: 'writeback' });
}

async function openRecord(
  parts: DiskHost,
  source: string,
  create: boolean,
): Promise<ReplicaRecord | undefined> {
  const file = openLogFile(recordPath(source), create);
  return file && (await ReplicaRecord.open(file, crcOf(parts.io)));
}

/**
 * Before a guest runs from images that a standby may have held: brings them to a whole epoch and voids their journals.
 * @throws VmmError `DISK_COPYING` for an incomplete copy, `DISK_*`
 */
export async function adoptImages(parts: DiskHost, options: readonly DiskOption[]): Promise<void> {
  const images: { access: DiskAccess; record: ReplicaRecord }[] = [];
  try {
    for (const option of options) {
      if (!isFile(option.source)) continue;
      const record = await openRecord(parts, option.source, false);
      if (record === undefined) continue;
      refuseIncomplete(option.source, record);
      if (record.mark?.state !== IMAGE.replica) {
        await record.close();
        continue;
      }
      if (option.readonly) {
        throw new VmmError('DISK_REPLICA', `${option.source} is a standby's copy of a disk`, {
          hint: 'Run it once without readonly, so that its last changes are put in place.',
        });
      }
      images.push({ access: await openAccess(parts, option), record });
    }
    const id = await recoverImages(images);
    if (id !== undefined) {
      parts.log.info(`disks that a standby held are at its transaction ${id}`);
      for (const { record } of images) await record.setMark({ ...record.mark!, state: IMAGE.live });
    }
    forgetActivity(options);
  } finally {
    for (const { access, record } of images) {
      await access.close();
      await record.close();
    }
  }
}

/** What lies beside images at the start of a standby, by image: what they hold, as long as nobody has opened them. */
export interface Kept {
  readonly records: ReadonlyMap<string, ReplicaRecord>;
  /** Where this host was a primary. */
  readonly activity: ReadonlyMap<string, ActivityState>;
}

/** Nothing is known of any image. */
export const NOTHING_KEPT: Kept = { records: new Map(), activity: new Map() };

/** Looks at the records and logs of images, without changing them. @throws VmmError `DISK_LOG` */
export async function readKept(parts: DiskHost, sources: readonly string[]): Promise<Kept> {
  const records = new Map<string, ReplicaRecord>();
  const activity = new Map<string, ActivityState>();
  for (const source of sources) {
    if (!isFile(source)) continue;
    const state = await readActivity(source, crcOf(parts.io));
    if (state !== undefined) activity.set(source, state);
    const record = await openRecord(parts, source, false);
    if (record === undefined) continue;
    record.takeRecords();
    await record.close();
    records.set(source, record);
  }
  return { records, activity };
}

/** What the images of `local` hold of a guest, by what was found at the start. */
export function heldAtStart(
  description: Description,
  local: readonly DiskOption[],
  kept: Kept,
): HeldCopy | undefined {
  const records = local
    .filter((_, i) => !description.disks[i]!.readonly)
    .map(({ source }) => kept.records.get(source));
  // Shared disks have no record; a guest that has both kinds gets its copies anew.
  if (records.length === 0 || records.some((record) => record === undefined)) return undefined;
  return heldBy(records as ReplicaRecord[], description.vm);
}

/**
 * What the images of `local` are for the guest that is described, where this host was its primary and the one that describes it has
 * taken it over from that very run: by the logs that were found at the start.
 */
export function returnedAtStart(
  description: Description,
  local: readonly DiskOption[],
  kept: Kept,
): ReturnedCopy | undefined {
  let first: ActivityState | undefined;
  const extents: (readonly number[])[] = [];
  for (const [i, { source }] of local.entries()) {
    if (description.disks[i]!.readonly) {
      extents.push([]);
      continue;
    }
    const state = kept.activity.get(source);
    if (state === undefined || state.vm !== description.vm) return undefined;
    first ??= state;
    if (state.generation !== first.generation || state.fromId !== first.fromId) return undefined;
    extents.push(state.extents);
  }
  if (first === undefined || !continues(description.origin, first)) return undefined;
  return { generation: first.generation, fromId: first.fromId, extents };
}

/**
 * The same again when the images are locked.
 * @throws VmmError `DISK_LOG` when a log is not any more what was found: somebody has used its image meanwhile
 */
async function returnedNow(
  { io }: DiskHost,
  description: Description,
  local: readonly DiskOption[],
  kept: Kept,
): Promise<ReturnedCopy | undefined> {
  const returned = returnedAtStart(description, local, kept);
  if (returned === undefined) return undefined;
  for (const [i, { source }] of local.entries()) {
    if (description.disks[i]!.readonly) continue;
    const now = await readActivity(source, crcOf(io));
    if (isDeepStrictEqual(now, kept.activity.get(source))) continue;
    throw new VmmError(
      'DISK_LOG',
      `${source} was used by somebody else since this standby started`,
    );
  }
  return returned;
}

/** How a standby keeps each disk of a guest. @throws VmmError `FT_STORAGE` where that cannot be told */
export function storageHere(
  { io, log }: Pick<DiskHost, 'io' | 'log'>,
  description: Description,
  local: readonly DiskOption[],
  bases: Bases,
  own: ReadonlySet<string>,
  held: HeldCopy | ReturnedCopy | undefined,
): Storage[] {
  return description.disks.map((disk, i) => {
    const option = local[i]!;
    if (disk.readonly) return STORAGE.shared;
    const storage = decideStorage({
      id: disk.id,
      primary: disk.storage,
      primaryChoice: disk.ft,
      standby: identifyStorage(option.source),
      standbyChoice: option.ft,
      // A copy that this process has open is locked by itself.
      locked: !own.has(option.source) && isFile(option.source) && isLocked(io, option.source),
    });
    // A whole copy of this guest is brought up to date; nothing is laid under it.
    if (storage !== STORAGE.replicated || held !== undefined) return storage;
    if ((disk.base ?? option.base) === undefined) return storage;
    const mine = option.base === undefined ? undefined : bases.get(option.base);
    if (mine !== undefined && mine.digest === disk.base?.digest) return STORAGE.replicatedOnBase;
    log.warn(
      `disk '${disk.id}': the two hosts do not have the same base image: it is copied whole`,
    );
    return storage;
  });
}

/** Makes the images that are to be copies and do not exist yet: sparse, of the right size. */
export function makeImages(
  description: Description,
  local: readonly DiskOption[],
  storage: readonly Storage[],
): void {
  for (const [i, disk] of description.disks.entries()) {
    const { source } = local[i]!;
    if (!isReplicated(storage[i]) || disk.readonly) continue;
    if (identifyStorage(source) !== undefined) continue;
    writeFileSync(source, '', { flag: 'wx', mode: 0o600 });
    truncateSync(source, disk.sizeBytes);
  }
}

/** Opens what a standby keeps its copies with, and brings them to a whole epoch. @throws VmmError `DISK_*` */
export async function openReplicas(
  parts: DiskHost,
  description: Description,
  local: readonly DiskOption[],
  storage: readonly Storage[],
  kept: Kept,
): Promise<ReplicaDisks | undefined> {
  const { io } = parts;
  const replicas: ReplicaDisk[] = [];
  try {
    for (const [disk, { id, readonly, blockSizeBytes }] of description.disks.entries()) {
      if (!isReplicated(storage[disk]) || readonly) continue;
      const option = local[disk]!;
      if (!isFile(option.source)) {
        throw new VmmError('FT_STORAGE', `disk '${id}': ${option.source} is no file`, {
          hint: 'The copy of a replicated disk is a raw image file on the standby.',
        });
      }
      const record = (await openRecord(parts, option.source, true))!;
      await record.reserve();
      const access = await openAccess(parts, option);
      const fd = openSync(option.source, constants.O_RDWR);
      const room = fileRoom(io, option.source, fd, access.sizeBytes);
      const base =
        storage[disk] === STORAGE.replicatedOnBase
          ? await openBase(parts, option.base!)
          : undefined;
      const voidActivity = (): void => removeActivity(option.source);
      replicas.push({ disk, id, access, record, room, blockSizeBytes, base, voidActivity });
    }
    if (replicas.length === 0) return undefined;
    await recoverImages(replicas);
    const records = replicas.map(({ record }) => record);
    const { vm } = description;
    const returned = await returnedNow(parts, description, local, kept);
    return new ReplicaDisks(replicas, vm, crcOf(io), heldBy(records, vm), returned);
  } catch (error) {
    for (const { access, record, room, base } of replicas) {
      await base?.close();
      await access.close();
      await record.close();
      room?.close();
    }
    throw error;
  }
}
