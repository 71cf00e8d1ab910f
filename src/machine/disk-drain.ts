/**
 * Waits until a machine's disks have nothing of its guest's under way; used by the machine before a reset. What never
 * ends by itself (a server that is away, a full disk) is given up after a while; what the host's kernel is doing is waited
 * for, however long it takes, because it may write to guest memory until it is done.
 */
import type { Logger } from '../base/log.ts';
import type { BlockBackend } from '../block/backend.ts';

/** How long requests may take before disks are told to give up, and from one such time to the next. */
const PATIENCE_MS = 5000;

/** A disk to wait for. */
export interface DrainedDisk {
  readonly id: string;
  readonly backend: BlockBackend;
}

/** See the module's head. */
export class DiskDrain {
  readonly #disks: readonly DrainedDisk[];
  readonly #log: Logger;
  #done: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(disks: readonly DrainedDisk[], log: Logger) {
    this.#disks = disks;
    this.#log = log;
  }

  /** Whether nothing is under way. */
  get quiet(): boolean {
    return this.#disks.every(({ backend }) => backend.inFlight === 0);
  }

  /**
   * Calls `done` in a later turn of the event loop, when the disks are or were quiet; the caller looks again. Replaces
   * an earlier `done`. The caller lets no device queue anything meanwhile.
   */
  wait(done: () => void): void {
    const waiting = this.#done !== undefined;
    this.#done = done;
    if (waiting) return;
    this.#timer = setInterval(() => this.#giveUp(), PATIENCE_MS);
    for (const { backend } of this.#disks) backend.drain(() => this.#look());
  }

  /** Nobody waits any more. */
  cancel(): void {
    clearInterval(this.#timer);
    this.#done = undefined;
  }

  #look(): void {
    // Not from inside a delivery of completions.
    setImmediate(() => {
      const done = this.#done;
      if (done === undefined || !this.quiet) return;
      this.cancel();
      done();
    });
  }

  #giveUp(): void {
    for (const { id, backend } of this.#disks) {
      if (backend.inFlight === 0) continue;
      this.#log.warn(`disk '${id}': the guest's reset waits for ${backend.inFlight} requests`);
      backend.abandon?.();
    }
    this.#look();
  }
}
