/**
 * The first synchronisation of a standby, while the guest runs: the disks that it has copies of, then memory, then what the guest
 * wrote to those disks meanwhile. One for each stream; void when another stream begins. Decides nothing: the primary's shell says
 * whether it is still wanted and takes what it makes.
 */
import { messageOf } from '../../base/error.ts';
import type { Logger } from '../../base/log.ts';
import type { NativeIo } from '../../kvm/native-io.ts';
import type { DiskCopyOwner, DiskCopyParts, DiskCopyProgress } from '../disk/disk-copy.ts';
import type { CopyRun, ReplicatedDisks } from '../disk/replicated-disks.ts';
import { markDirty } from './ahead.ts';
import { FirstCopy, type SyncProgress } from './first-copy.ts';
import type { ReplicatedGuest } from './guest.ts';
import type { PageSender } from './page-sender.ts';
import type { Staging } from './staging.ts';

/** Nanoseconds from one line about the disks' progress to the next. */
const TELL_NS = 1e9;

const BASIS = {
  nothing: 'the disks are copied whole',
  copy: 'the standby has copies of the disks: what they lack is sent',
  return: 'the standby has the disks of the host that was lost: what differs from them is sent',
} as const;

/** What it is made with. */
export interface FirstSyncParts {
  readonly guest: ReplicatedGuest;
  readonly disks: ReplicatedDisks | undefined;
  readonly sender: PageSender;
  readonly staging: Staging;
  readonly io: NativeIo;
  readonly log: Logger;
  readonly copyBytesPerSecondMax: number | undefined;
  readonly maxDowntimeNs: number;
  /** The run of the guest: a standby's copies of this very run are only brought up to date. */
  readonly copyOf: CopyRun;
  nowNs(): number;
}

/** Who wants it. */
export interface FirstSyncOwner {
  /** Whether `sync` is the newest, and its stream still takes a first copy. */
  wanted(sync: FirstSync): boolean;
  /** A chunk buffer is filled. */
  chunk(chunk: number): void;
  /** The copy of memory begins: what the guest writes from here on is logged. */
  memoryBegins(): void;
  progress(progress: SyncProgress): void;
  diskProgress(progress: DiskCopyProgress): void;
  /** What is left is marked dirty and belongs to the first transaction. */
  done(late: boolean): void;
  /** A disk of this host cannot be read. */
  failed(why: string): void;
}

/** See the module's head. */
export class FirstSync {
  readonly #parts: FirstSyncParts;
  readonly #owner: FirstSyncOwner;

  constructor(parts: FirstSyncParts, owner: FirstSyncOwner) {
    this.#parts = parts;
    this.#owner = owner;
  }

  get #wanted(): boolean {
    return this.#owner.wanted(this);
  }

  /** Begins; everything else is told to the owner. */
  run(): void {
    const { disks } = this.#parts;
    if (disks?.any === true) {
      void this.#copyDisks(disks);
      return;
    }
    disks?.forget();
    this.#copyMemory(undefined);
  }

  async #copyDisks(disks: ReplicatedDisks): Promise<void> {
    const { io, copyBytesPerSecondMax, maxDowntimeNs, sender, log, nowNs } = this.#parts;
    const parts: DiskCopyParts = {
      pool: sender.pool,
      crc: (b, offset, length, previous) => io.crc32c(b, offset, length, previous),
      isZero: (b, offset, length) => io.isZero(b, offset, length),
      nowNs,
      sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
      maxDowntimeNs,
      bytesPerSecondMax: copyBytesPerSecondMax ?? Number.POSITIVE_INFINITY,
    };
    let toldNs = nowNs();
    const owner: DiskCopyOwner = {
      wanted: () => this.#wanted,
      chunk: (chunk) => {
        this.#owner.chunk(chunk);
        const { progress } = disks;
        if (progress === undefined || nowNs() - toldNs < TELL_NS) return;
        toldNs = nowNs();
        this.#owner.diskProgress(progress);
      },
    };
    try {
      const copy = await disks.beginCopy(parts, owner, this.#parts.copyOf);
      if (copy !== undefined) log.info(BASIS[disks.basis]);
      if (!this.#wanted || (copy !== undefined && !(await copy.converge())) || !this.#wanted) {
        return;
      }
      this.#copyMemory(async () => {
        try {
          if (copy !== undefined) {
            if (!((await copy.converge()) && (await copy.finish()))) return false;
            this.#owner.diskProgress(copy.progress);
          }
          return this.#wanted;
        } catch (error) {
          this.#owner.failed(messageOf(error));
          return false;
        } finally {
          if (this.#wanted) disks.endCopy();
        }
      });
    } catch (error) {
      if (this.#wanted) this.#owner.failed(messageOf(error));
      else log.warn(messageOf(error));
    }
  }

  /** @param disks brings the disks up to date once memory has converged; false: not wanted any more */
  #copyMemory(disks: (() => Promise<boolean>) | undefined): void {
    const { guest, sender, staging, maxDowntimeNs, nowNs } = this.#parts;
    const owner = this.#owner;
    sender.restart();
    owner.memoryBegins();
    const copy = new FirstCopy(
      { guest, sender, staging, maxDowntimeNs, nowNs },
      {
        wanted: () => this.#wanted,
        chunk: (chunk) => owner.chunk(chunk),
        progress: (progress) => owner.progress(progress),
        done: (rest, late) => {
          markDirty(guest, rest);
          if (disks === undefined) {
            owner.done(late);
            return;
          }
          void disks().then((wanted) => {
            if (wanted) owner.done(late);
          });
        },
      },
    );
    copy.run();
  }
}
