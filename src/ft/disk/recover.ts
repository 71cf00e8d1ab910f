/**
 * Brings images that a standby held to a whole epoch: what their journals hold is done again. Called before anybody uses such an
 * image: by a standby that starts, and by `tsvmm run` when an image has a record beside it.
 */
import { VmmError } from '../../base/error.ts';
import { ERRNO } from '../../block/backend.ts';
import { type DiskAccess, diskError } from './disk-access.ts';
import { performOps } from './replica-disks.ts';
import { IMAGE, type ReplicaRecord } from './replica-record.ts';
import type { HeldCopy } from './storage.ts';

/** An image and its record. */
export interface RecoveredImage {
  readonly access: DiskAccess;
  readonly record: ReplicaRecord;
}

/**
 * Recovers the images of one guest together: an epoch that is missing in one journal is not done in any.
 * @returns the epoch that they hold now, or undefined when no journal had any
 * @throws VmmError `DISK_*` when an image cannot be written
 */
export async function recoverImages(
  images: readonly RecoveredImage[],
): Promise<number | undefined> {
  const journals = images.map(({ record }) => record.takeRecords());
  const replicas = images.filter(({ record }) => record.mark?.state === IMAGE.replica);
  if (replicas.length === 0) return undefined;
  // Before an image is touched: where the power went afterwards, fewer records would do older epochs again, over these.
  for (const { record } of replicas) await record.sync();
  let whole = Number.POSITIVE_INFINITY;
  for (const [i, { record }] of images.entries()) {
    const { mark } = record;
    if (mark?.state !== IMAGE.replica) continue;
    whole = Math.min(whole, journals[i]!.at(-1)?.id ?? mark.id);
  }
  for (const [i, { access }] of images.entries()) {
    const failures: VmmError[] = [];
    for (const { id, body } of journals[i]!) {
      if (id > whole) break;
      await performOps(access, { bytes: body, start: 0, end: body.length }, (what, result) => {
        if (result !== ERRNO.OK) failures.push(diskError(what, access.name, result));
      });
    }
    await access.idle();
    if (failures.length > 0) throw failures[0]!;
    await access.flush();
  }
  return whole;
}

/** What the images of guest `vm` hold together, once recovered; undefined unless all are whole copies of one run of it. */
export function heldBy(records: readonly ReplicaRecord[], vm: string): HeldCopy | undefined {
  const marks = records.map(({ mark }) => mark);
  const first = marks[0];
  const same = marks.every(
    (mark) =>
      mark?.state === IMAGE.replica && mark.vm === vm && mark.generation === first?.generation,
  );
  if (first === undefined || !same) return undefined;
  return { generation: first.generation, id: Math.min(...records.map(({ lastId }) => lastId)) };
}

/** @throws VmmError `DISK_COPYING` when the image is an incomplete copy */
export function refuseIncomplete(name: string, record: ReplicaRecord): void {
  if (record.mark?.state !== IMAGE.copying) return;
  throw new VmmError('DISK_COPYING', `${name} is an incomplete copy of a guest's disk`, {
    hint: 'Let a standby finish the copy, or, to use it for something else, delete the file with .ft behind its name.',
  });
}
