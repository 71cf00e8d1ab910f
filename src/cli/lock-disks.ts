/** Locks a guest's disks at a takeover. Used by `tsvmm standby`. */
import type { Logger } from '../base/log.ts';
import { FileDisk } from '../block/file.ts';
import type { OpenDevices } from './device-options.ts';

/** How often a takeover tries to lock a disk that the dead host's process still seems to hold. */
const LOCK_RETRY_MS = 50;
/** Tries where a lease says that the other process writes no more. */
const LEASED_LOCK_TRIES = 20;

/**
 * Locks the disks that the guest is going to write, waiting for a process of the other host that is just ending. With a lease not
 * for long: whoever still holds a lock there was stopped, its lease is over, and it writes nothing any more.
 */
export async function lockDisks(devices: OpenDevices, leased: boolean, log: Logger): Promise<void> {
  for (const { id, backend } of devices.disks) {
    if (!(backend instanceof FileDisk)) continue;
    let tries = 0;
    for (let complained = false; ; ) {
      try {
        backend.lock();
        break;
      } catch (error) {
        if (leased && ++tries > LEASED_LOCK_TRIES) {
          log.warn(
            `disk '${id}' is locked by a process whose lease is over; the guest runs without the lock`,
          );
          break;
        }
        if (!complained)
          log.warn(`disk '${id}' is still locked by another process; waiting (${String(error)})`);
        complained = true;
        await new Promise((resolve) => setTimeout(resolve, LOCK_RETRY_MS));
      }
    }
  }
}
