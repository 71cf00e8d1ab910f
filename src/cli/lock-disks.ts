/** Locks a guest's disks at a takeover. Used by `tsvmm standby`. */
import type { Logger } from '../base/log.ts';
import { FileDisk } from '../block/file.ts';
import type { OpenDevices } from './device-options.ts';

/** How often a takeover tries to lock a disk that the dead host's process still seems to hold. */
const LOCK_RETRY_MS = 50;
/** The same while the guest runs already. */
const LATE_RETRY_MS = 200;
/** Tries after which somebody should know: a process that hands the guest over takes as long to end. */
const LATE_TRIES = 5;

/**
 * Locks the disks that the guest is going to write, waiting for a process of the other host that is just ending. With a lease it
 * waits for nothing: whoever still holds a lock there was stopped or cut off, its lease is over, and it writes nothing any more.
 * Such a disk is locked behind the guest's back, as soon as that process ends.
 * @returns how to stop trying; before the disks are closed
 */
export async function lockDisks(
  devices: OpenDevices,
  leased: boolean,
  log: Logger,
): Promise<() => void> {
  const timers: NodeJS.Timeout[] = [];
  for (const { id, backend } of devices.disks) {
    if (!(backend instanceof FileDisk)) continue;
    if (!leased) await locked(id, backend, log);
    else if (!backend.tryLock()) timers.push(lockLater(id, backend, log));
  }
  return () => {
    for (const timer of timers) clearInterval(timer);
  };
}

async function locked(id: string, disk: FileDisk, log: Logger): Promise<void> {
  for (let complained = false; ; complained = true) {
    try {
      disk.lock();
      return;
    } catch (error) {
      if (!complained) {
        log.warn(`disk '${id}' is still locked by another process; waiting (${String(error)})`);
      }
      await new Promise((resolve) => setTimeout(resolve, LOCK_RETRY_MS));
    }
  }
}

function lockLater(id: string, disk: FileDisk, log: Logger): NodeJS.Timeout {
  let tries = 0;
  const timer = setInterval(() => {
    if (disk.tryLock()) {
      clearInterval(timer);
      log.info(`disk '${id}' is locked now`);
    } else if (++tries === LATE_TRIES) {
      log.warn(
        `disk '${id}' is still locked by a process whose lease is over; the guest runs, and has the lock when that process ends`,
      );
    }
  }, LATE_RETRY_MS);
  return timer.unref();
}
