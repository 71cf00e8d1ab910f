/** What a primary's shell (primary-shell.ts) is made of, what it tells its owner, and what can be changed and read while it runs. */
import type { Logger } from '../../base/log.ts';
import type { NativeIo } from '../../kvm/native-io.ts';
import type { PolicyConfig } from '../core/epoch-policy.ts';
import type { PrimaryConfig, PrimaryPhase } from '../core/primary-types.ts';
import type { DiskCopyProgress } from '../disk/disk-copy.ts';
import type { DiskFigures, ReplicatedDisks } from '../disk/replicated-disks.ts';
import type { Arbiter } from './arbiter.ts';
import type { SyncProgress } from './first-copy.ts';
import type { ReplicatedGuest } from './guest.ts';
import type { LinkOptions } from './link.ts';
import type { Outputs } from './outputs.ts';

/** What the primary needs. */
export interface PrimaryShellOptions {
  readonly guest: ReplicatedGuest;
  readonly outputs: Outputs;
  /** The guest's disks, of which a standby may have copies of its own. */
  readonly disks?: ReplicatedDisks | undefined;
  /** Most bytes a second of the disks' first copy. Default: no limit. */
  readonly copyBytesPerSecondMax?: number | undefined;
  readonly io: NativeIo;
  readonly log: Logger;
  readonly config: PrimaryConfig;
  readonly arbiter: Arbiter | undefined;
  /** Where standbys listen, in the order in which they are tried; none yet where {@link PrimaryShell.setPeers} names them later. */
  readonly peers: readonly LinkOptions[];
  /** The guest may stand still this long at the end of the first copy. */
  readonly maxDowntimeNs: number;
  /** First message of each connection, and the boot images it names, by number. */
  readonly introduction: Uint8Array;
  readonly images: readonly Uint8Array[];
  readonly events: PrimaryShellEvents;
}

/** What the owner hears. */
export interface PrimaryShellEvents {
  phase(phase: PrimaryPhase, sentence: string): void;
  /** The guest must never run here again: another generation runs it. */
  fenced(generation: number): void;
  /** The guest's run is over here: everything it showed is out. */
  over(why: 'ended' | 'handed-over'): void;
  /** The first copy's progress. */
  syncProgress(progress: SyncProgress): void;
  /** The progress of the disks' first copy, about once a second. */
  diskProgress(progress: DiskCopyProgress): void;
  /**
   * A standby could not be reached, refused the guest or was lost while it was synchronised.
   * @param roundOver whether all others have failed too
   */
  peerFailed(name: string, why: string, roundOver: boolean): void;
}

/** What can be changed while the guest is protected. */
export interface LiveSettings {
  readonly policy: PolicyConfig;
  /** The guest may stand still this long at the end of the first copy. */
  readonly maxDowntimeNs: number;
}

/** Figures for the status line. */
export interface PrimaryFigures {
  readonly phase: PrimaryPhase;
  readonly generation: number;
  readonly epochs: number;
  readonly ackedEpochs: number;
  readonly inFlight: number;
  readonly lastPauseNs: number;
  readonly lastPages: number;
  /** Pages of the last checkpoint that were sent ahead of it, and those of them that were sent again. */
  readonly lastAhead: number;
  readonly lastAgain: number;
  readonly outputDelayNs: number;
  readonly heldOutputs: number;
  readonly sentBytes: number;
  readonly disks: readonly DiskFigures[];
  /** The first copy of the disks, while it is under way. */
  readonly diskCopy: DiskCopyProgress | undefined;
  /** Whom this guest is protected by, or who is tried next; none where no peer was named. */
  readonly peer: string;
  readonly policy: PolicyConfig['policy'];
  readonly intervalMs: number;
  readonly maxDowntimeMs: number;
}
