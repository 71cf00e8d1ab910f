/** The status of replication for people (one line that is rewritten) and for programs (JSON lines). */
import type { DiskCopyProgress } from '../ft/disk/disk-copy.ts';
import type { SyncProgress } from '../ft/shell/first-copy.ts';
import type { PrimaryFigures } from '../ft/shell/primary-parts.ts';

/** How status is shown. */
export type StatusMode = 'off' | 'line' | 'json';

const EVERY_MS = 1000;

function ms(ns: number): string {
  return `${(ns / 1e6).toFixed(ns < 10e6 ? 2 : 0)} ms`;
}

function size(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value.toFixed(unit === 0 || value >= 100 ? 0 : 1)} ${units[unit]}`;
}

/** One line about a primary. */
export function primaryLine(now: PrimaryFigures, before: PrimaryFigures, seconds: number): string {
  const epochs = (now.ackedEpochs - before.ackedEpochs) / seconds;
  const rate = (now.sentBytes - before.sentBytes) / seconds;
  return [
    now.phase,
    `${epochs.toFixed(0)} epochs/s`,
    `pause ${ms(now.lastPauseNs)}`,
    `delay ${ms(now.outputDelayNs)}`,
    `${now.lastPages} pages`,
    `${size(rate)}/s`,
    `lag ${now.inFlight}`,
  ].join(' | ');
}

/** Progress of the first copy as one line. */
export function syncLine(progress: SyncProgress): string {
  const { round, totalBytes, bytesPerSecond } = progress;
  return `synchronising | round ${round} | ${size(totalBytes)} | ${size(bytesPerSecond)}/s`;
}

/** Progress of the disks' first copy as one line. */
export function diskLine(progress: DiskCopyProgress): string {
  const { round, doneBytes, totalBytes, sentBytes, bytesPerSecond, secondsLeft } = progress;
  const percent = totalBytes === 0 ? 100 : Math.floor((doneBytes / totalBytes) * 100);
  return [
    `copying disks | round ${round}`,
    `${size(doneBytes)} of ${size(totalBytes)} (${percent} %)`,
    `${size(sentBytes)} sent`,
    `${size(bytesPerSecond)}/s`,
    `about ${secondsLeft} s left`,
  ].join(' | ');
}

/** Shows a primary's figures every second on standard error; returns how to stop. */
export function showStatus(mode: StatusMode, figures: () => PrimaryFigures): () => void {
  if (mode === 'off') return () => {};
  let before = figures();
  let beforeMs = performance.now();
  const timer = setInterval(() => {
    const now = figures();
    const nowMs = performance.now();
    const seconds = (nowMs - beforeMs) / 1000;
    if (mode === 'json') process.stderr.write(`${JSON.stringify({ seconds, ...now })}\n`);
    else {
      const line =
        now.diskCopy === undefined ? primaryLine(now, before, seconds) : diskLine(now.diskCopy);
      process.stderr.write(`\r\x1b[2Ktsvmm: ${line}`);
    }
    before = now;
    beforeMs = nowMs;
  }, EVERY_MS);
  timer.unref();
  return () => {
    clearInterval(timer);
    if (mode === 'line') process.stderr.write('\n');
  };
}
