/**
 * Holds what the outside saw against the disk: after a failover every acknowledged request must be in the journal, and nothing that
 * was shown may be contradicted (the same journal sequence or count given to two requests would mean that state was lost).
 */
import { readFileSync } from 'node:fs';
import { crc32c } from '../../src/base/crc32c.ts';
import type { Reply } from './client.ts';

const RECORD_BYTES = 512;
const RECORD_MAGIC = 0x4c4e524a;

/** What was checked and found. */
export interface Verdict {
  /** Replies that arrived, repeated ones included. */
  readonly outputs: number;
  /** Replies that arrived more than once: the same bytes again. */
  readonly repeated: number;
  /** Acknowledged requests that the journal does not hold, or that contradict each other. */
  readonly lost: number;
  /** Longest time between two replies, milliseconds. */
  readonly blackoutMs: number;
  /** Journal records found. */
  readonly records: number;
  /** What was wrong, in words. */
  readonly complaints: readonly string[];
}

/** Journal records by sequence: the number of the request each one holds. */
export function readJournal(path: string): Map<number, number> {
  const bytes = readFileSync(path);
  const journal = new Map<number, number>();
  for (let at = 0; at + RECORD_BYTES <= bytes.length; at += RECORD_BYTES) {
    if (bytes.readUInt32LE(at) !== RECORD_MAGIC) continue;
    if (crc32c(bytes, at + 8, at + RECORD_BYTES) !== bytes.readUInt32LE(at + 4)) continue;
    journal.set(Number(bytes.readBigUInt64LE(at + 8)), Number(bytes.readBigUInt64LE(at + 16)));
  }
  return journal;
}

/** Checks replies against the journal at `diskPath`. */
export function verify(replies: readonly Reply[], diskPath: string): Verdict {
  const journal = readJournal(diskPath);
  const complaints: string[] = [];
  const bySequence = new Map<string, number>();
  const byCount = new Map<string, number>();
  const seen = new Set<string>();
  const lost = new Set<number>();
  let repeated = 0;
  let blackoutMs = 0;
  for (const [i, reply] of replies.entries()) {
    const { number, count, sequence, bootId, atMs, ok } = reply;
    if (i > 0) blackoutMs = Math.max(blackoutMs, atMs - replies[i - 1]!.atMs);
    const key = `${bootId}/${number}/${count}/${sequence}`;
    if (seen.has(key)) {
      repeated++;
      continue;
    }
    seen.add(key);
    if (!ok) complaints.push(`request ${number}: the guest's disk failed`);
    for (const [map, mapKey, what] of [
      [bySequence, `${bootId}/${sequence}`, `journal sequence ${sequence}`],
      [byCount, `${bootId}/${count}`, `count ${count}`],
    ] as const) {
      const before = map.get(mapKey);
      if (before !== undefined && before !== number) {
        lost.add(before);
        complaints.push(`${what} was given to request ${before} and later to ${number}`);
      }
      map.set(mapKey, number);
    }
    const recorded = journal.get(sequence);
    if (recorded !== number) {
      lost.add(number);
      complaints.push(
        `request ${number} was acknowledged with journal sequence ${sequence}, which holds ${recorded ?? 'nothing'}`,
      );
    }
  }
  return {
    outputs: replies.length,
    repeated,
    lost: lost.size,
    blackoutMs: Math.round(blackoutMs * 10) / 10,
    records: journal.size,
    complaints,
  };
}
