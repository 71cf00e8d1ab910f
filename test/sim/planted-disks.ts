/**
 * Planted bugs in how replicated disks are kept: each breaks one rule by taking the place of one small part of what a standby
 * opens, or of what the simulated shells tell the disks.
 */
import type { ActivityParts } from '../../src/ft/disk/activity-log.ts';
import type { RecordingBlock } from '../../src/ft/disk/recording-block.ts';
import type { DiskOps, ReplicaDisk } from '../../src/ft/disk/replica-disks.ts';
import { DiskOpsReader } from '../../src/ft/wire/disk-ops.ts';
import type { FaultKind } from './config.ts';
import type { Planted } from './planted.ts';

/** What brings these bugs to light. */
const DISK_BUG_FAULTS: readonly FaultKind[] = [
  'kill-standby',
  'kill-at-step',
  'kill-at-step',
  'kill-host',
  'host-disk-slow',
  'cut',
  'flip',
];

/** And those of what a primary keeps for the case that it is lost. */
const ACTIVITY_BUG_FAULTS: readonly FaultKind[] = [
  'kill-when-protected',
  'kill-when-protected',
  'kill-host',
  'host-disk-slow',
];

/** And of journals of which one is behind. */
const JOURNAL_BUG_FAULTS: readonly FaultKind[] = ['kill-at-step', 'kill-at-step', 'host-disk-slow'];

/** What befalls where `bug`, one of these, is to be found. */
export function faultsFor(bug: Planted): readonly FaultKind[] {
  if (bug === 'disk-journals-apart') return JOURNAL_BUG_FAULTS;
  return bug.startsWith('disk-extent-') || bug === 'disk-survivor-not-marked'
    ? ACTIVITY_BUG_FAULTS
    : DISK_BUG_FAULTS;
}

const nothing = async (): Promise<void> => {};
/** How long a planted activity log takes until it has an extent. */
const LATE_MS = 2000;

/** Plants `bug`, if it is one of these, in what a standby opens. */
export function plantInReplicas(bug: Planted | undefined, replicas: readonly ReplicaDisk[]): void {
  for (const { access, record } of replicas) {
    if (bug === 'disk-copy-not-flushed') access.flush = nothing;
    if (bug === 'disk-lap-not-flushed') {
      const fits = record.fits.bind(record);
      const flush = access.flush.bind(access);
      let full = false;
      record.fits = (bytes) => {
        full = !fits(bytes);
        return !full;
      };
      access.flush = () => (full ? nothing() : flush());
    }
    if (bug === 'disk-half-epoch-recovered') {
      const all = record.takeRecords.bind(record);
      record.takeRecords = () => {
        const found = all();
        const last = found.at(-1);
        if (last === undefined) return found;
        return [...found.slice(0, -1), { ...last, body: firstHalf(last.body) }];
      };
    }
    if (bug === 'disk-epoch-not-journalled') {
      const append = record.append.bind(record);
      record.append = (generation, id) => append(generation, id, []);
    }
  }
}

/** What a primary's activity log is made with, with `bug` planted if it is one of these. */
export function plantInActivity(bug: Planted | undefined, parts: ActivityParts): ActivityParts {
  if (bug === 'disk-extent-not-flushed') return { ...parts, flush: nothing };
  if (bug !== 'disk-extent-after-data' && bug !== 'disk-extent-dropped') return parts;
  return {
    ...parts,
    open: async () => {
      const file = await parts.open();
      const write = file.write.bind(file);
      let behind: Promise<unknown> = Promise.resolve();
      file.write = async (state) => {
        if (state === undefined) {
          await behind;
          await write(undefined);
        } else if (bug === 'disk-extent-dropped') {
          await write({ ...state, extents: state.extents.slice(1) });
        } else {
          behind = behind
            .then(() => parts.sleep(LATE_MS))
            .then(() => write(state))
            .catch(nothing);
        }
      };
      return file;
    },
  };
}

/** Plants `bug`, if it is one of these, in what a primary marks. */
export function plantInMarks(bug: Planted | undefined, blocks: readonly RecordingBlock[]): void {
  if (bug !== 'disk-survivor-not-marked' && bug !== 'disk-acked-not-marked') return;
  for (const block of blocks) {
    const { granules } = block;
    const merge = granules.merge.bind(granules);
    granules.merge = (other) => {
      if ((other === block.since) !== (bug === 'disk-survivor-not-marked')) merge(other);
    };
  }
}

/** Of a body, the operations in its first half. */
function firstHalf(body: Uint8Array): Uint8Array {
  const reader = new DiskOpsReader().reset(body);
  const ends: number[] = [0];
  while (reader.next()) ends.push(reader.dataEnd);
  return body.subarray(0, ends[Math.floor(ends.length / 2)]);
}

/** Operations of an epoch, last one first. */
export function reversed(all: readonly DiskOps[]): DiskOps[] {
  return all
    .map((ops) => {
      const reader = new DiskOpsReader().reset(ops.bytes, ops.start, ops.end);
      const parts: Uint8Array[] = [];
      let from = ops.start;
      while (reader.next()) {
        parts.unshift(ops.bytes.subarray(from, reader.dataEnd));
        from = reader.dataEnd;
      }
      const bytes = new Uint8Array(ops.end - ops.start);
      let at = 0;
      for (const part of parts) {
        bytes.set(part, at);
        at += part.length;
      }
      return { ...ops, bytes, start: 0, end: bytes.length };
    })
    .reverse();
}
