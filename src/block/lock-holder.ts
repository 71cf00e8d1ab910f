/**
 * Finds out who holds a lock on a file, for the message of the error. Linux shows the locks of each open file in
 * /proc/PID/fdinfo; processes of other users are only seen by root. Slow, best effort, only called to explain a refusal.
 */
import { readdirSync, readFileSync, statSync } from 'node:fs';

/** `name (process 1234)` of each process on this host with a lock on the file at `path`; empty when none can be seen. */
export function lockHolders(path: string): string[] {
  const holders: string[] = [];
  const target = statSync(path, { throwIfNoEntry: false });
  if (target === undefined) return holders;
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid) || !holdsLock(pid, target.dev, target.ino)) continue;
    holders.push(`${processName(pid)} (process ${pid})`);
  }
  return holders;
}

function holdsLock(pid: string, dev: number, ino: number): boolean {
  try {
    for (const fd of readdirSync(`/proc/${pid}/fd`)) {
      const open = statSync(`/proc/${pid}/fd/${fd}`, { throwIfNoEntry: false });
      if (open === undefined || open.ino !== ino || open.dev !== dev) continue;
      if (/^lock:/m.test(readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'latin1'))) return true;
    }
  } catch {
    // Gone in the meantime, or somebody else's: not seen.
  }
  return false;
}

function processName(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
  } catch {
    return 'unknown';
  }
}
