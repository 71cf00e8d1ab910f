/**
 * What a simulated standby process keeps of the guest's disks: the real copies, journals and recovery (src/ft/disk), on the storage
 * of its host, and the checks of what they hold against the truth.
 */

import { ActivityFile, type ActivityState } from '../../src/ft/disk/activity-file.ts';
import { heldBy, recoverImages } from '../../src/ft/disk/recover.ts';
import { type ReplicaDisk, ReplicaDisks } from '../../src/ft/disk/replica-disks.ts';
import { ReplicaRecord } from '../../src/ft/disk/replica-record.ts';
import type { ReturnedCopy } from '../../src/ft/disk/storage.ts';
import { BLOCK_BYTES, BLOCKS, DISKS } from './guest.ts';
import { plantInReplicas } from './planted-disks.ts';
import { crc, VM } from './primary-disks.ts';
import type { SimProcess } from './process.ts';

/** The journal holds little more than the largest epoch. */
const AREA_BYTES = 4 * 4096;

/** Opens the images of a host, and brings them to a whole epoch. @throws when a disk refuses */
export async function openReplicas(process: SimProcess): Promise<ReplicaDisks> {
  const { world, host } = process;
  const storage = world.storage[host]!;
  const replicas: ReplicaDisk[] = [];
  for (let disk = 0; disk < DISKS; disk++) {
    const record = await ReplicaRecord.open(storage.recordOf(process, disk), crc, AREA_BYTES);
    const access = storage.accessOf(process, disk);
    const room = storage.roomOf(disk);
    const id = `disk${disk}`;
    const voidActivity = (): void => storage.voidActivity(disk);
    const blockSizeBytes = BLOCK_BYTES;
    replicas.push({ disk, id, access, record, room, blockSizeBytes, voidActivity });
  }
  const returned = await returnedOf(process);
  plantInReplicas(world.bug, replicas);
  if (world.bug !== 'disk-journals-apart') await recoverImages(replicas);
  else for (const replica of replicas) await recoverImages([replica]);
  const held = heldBy(
    replicas.map(({ record }) => record),
    VM,
  );
  if (held !== undefined) {
    world.checker.disks(held.generation, held.id, imagesOf(process), 'recovered');
  }
  return new ReplicaDisks(replicas, VM, crc, held, returned);
}

/** What the images are, where this host was the primary that was lost. */
async function returnedOf(process: SimProcess): Promise<ReturnedCopy | undefined> {
  const storage = process.world.storage[process.host]!;
  const extents: (readonly number[])[] = [];
  let first: ActivityState | undefined;
  for (let disk = 0; disk < DISKS; disk++) {
    const { found } = await ActivityFile.open(storage.activityOf(process, disk), crc);
    if (found === undefined || found.vm !== VM) return undefined;
    first ??= found;
    if (found.generation !== first.generation || found.fromId !== first.fromId) return undefined;
    extents.push(found.extents);
  }
  return { generation: first!.generation, fromId: first!.fromId, extents };
}

/** What the images of the process's host hold, by block. */
export function imagesOf(process: SimProcess): number[] {
  const storage = process.world.storage[process.host]!;
  return Array.from({ length: BLOCKS }, (_, block) => storage.words(block, 3));
}
