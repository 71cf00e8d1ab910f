/**
 * Planted bugs in how replicated disks are kept: each breaks one rule by taking the place of one small part of what a standby
 * opens, or of what the simulated shells tell the disks.
 */
import type { DiskOps, ReplicaDisk } from '../../src/ft/disk/replica-disks.ts';
import { DiskOpsReader } from '../../src/ft/wire/disk-ops.ts';
import type { Planted } from './planted.ts';

const nothing = async (): Promise<void> => {};

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
