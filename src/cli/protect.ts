/**
 * Puts a machine under replication: makes the primary of a guest that starts here, or of one that was taken over. Used by
 * `tsvmm run` and, after a takeover, by `tsvmm standby`.
 */
import { VmmError } from '../base/error.ts';
import { POLICY_DEFAULTS, type PolicyConfig } from '../ft/core/epoch-policy.ts';
import type { PrimaryConfig } from '../ft/core/primary.ts';
import type { ReplicatedDisks } from '../ft/disk/replicated-disks.ts';
import type { Arbiter } from '../ft/shell/arbiter.ts';
import { introduce } from '../ft/shell/introduction.ts';
import type { LinkOptions } from '../ft/shell/link.ts';
import type { Outputs } from '../ft/shell/outputs.ts';
import { PrimaryShell } from '../ft/shell/primary-shell.ts';
import { END_REASON } from '../ft/wire/spec.ts';
import type { NativeIo } from '../kvm/native-io.ts';
import type { Machine } from '../machine/machine.ts';
import { replicatedGuest } from '../machine/replicated-guest.ts';
import { type Description, descriptionDigest } from './ft-description.ts';
import { ARBITER_RETRY_NS, helloOf, livenessFor } from './ft-options.ts';
import { diskLine, type StatusMode, showStatus, syncLine } from './ft-status.ts';

/** What the operator chose. */
export interface ProtectionOptions {
  readonly policy: PolicyConfig['policy'];
  readonly intervalNs: number;
  readonly maxDowntimeNs: number;
  /** How long a peer may be silent before it counts as lost. */
  readonly timeoutNs: number;
  /** What the loss of the peer means once authority allows it: go on unprotected, or hold outputs until told. */
  readonly onPeerLoss: 'continue' | 'pause';
  readonly status: StatusMode;
  /** Most bytes a second of the disks' first copy; undefined: no limit. */
  readonly copyBytesPerSecondMax: number | undefined;
}

/** What protection is made of. */
export interface ProtectionParts {
  readonly machine: Machine;
  readonly outputs: Outputs;
  readonly disks: ReplicatedDisks;
  readonly io: NativeIo;
  readonly description: Description;
  /** Bytes of the boot images, as the description lists them. */
  readonly images: readonly Uint8Array[];
  readonly arbiter: Arbiter | undefined;
  readonly generation: number;
  readonly peer: LinkOptions | undefined;
}

/** How long a lost peer may stay lost, outputs held, before authority to go on alone is sought. */
const GRACE_NS = 300e6;
const RECONNECT_NS = 200e6;
/** An epoch that takes this many silences to be acknowledged means that the peer is lost although it speaks. */
const ACK_DEADLINE_FACTOR = 10;

/** Makes the primary and connects it to the machine's life. Call `start` when the machine runs. */
export function protect(parts: ProtectionParts, options: ProtectionOptions): PrimaryShell {
  const { machine, outputs, disks, io, description, images, arbiter, generation, peer } = parts;
  const { log } = machine;
  const config: PrimaryConfig = {
    hello: helloOf({
      machine,
      role: 'primary',
      onPeerLoss: options.onPeerLoss === 'continue' ? 'goOn' : 'wait',
      arbiter,
      vm: description.vm,
      generation,
      machineDigest: descriptionDigest(description),
    }),
    authority: {
      arbiter: arbiter !== undefined,
      onPeerLoss: options.onPeerLoss === 'continue' ? 'go-on' : 'wait',
      retryNs: ARBITER_RETRY_NS,
    },
    policy: { ...POLICY_DEFAULTS, policy: options.policy, intervalNs: options.intervalNs },
    liveness: livenessFor(options.timeoutNs),
    protect: peer !== undefined,
    reconnectNs: RECONNECT_NS,
    graceNs: GRACE_NS,
    ackDeadlineNs: options.timeoutNs * ACK_DEADLINE_FACTOR,
  };
  let finish: (() => void) | undefined;
  const shell = new PrimaryShell({
    guest: replicatedGuest(machine),
    outputs,
    disks,
    copyBytesPerSecondMax: options.copyBytesPerSecondMax,
    io,
    log,
    config,
    arbiter,
    peer,
    maxDowntimeNs: options.maxDowntimeNs,
    introduction: introduce(description),
    images,
    events: {
      phase(phase, sentence) {
        log.info(`replication: ${phase}${sentence === '' ? '' : ` (${sentence})`}`);
        if (phase === 'lost' && sentence !== '') log.warn(sentence);
      },
      fenced(newer) {
        machine.requestEnd({
          kind: 'error',
          message: `generation ${newer} of this guest runs on another host; this one has stopped`,
        });
      },
      over(why) {
        if (why === 'handed-over') {
          log.info('the guest has been handed over');
          machine.stop();
        } else {
          finish?.();
        }
      },
      syncProgress(progress) {
        log.info(syncLine(progress));
      },
      diskProgress(progress) {
        log.info(diskLine(progress));
      },
    },
  });
  machine.setEndGate((outcome, done) => {
    finish = done;
    shell.end(outcome.kind === 'stopped' ? END_REASON.operator : END_REASON.guestShutdown);
  });
  const stopStatus = showStatus(options.status, () => shell.figures());
  void machine.finished.then(stopStatus);
  return shell;
}

/**
 * An operator ends the guest: a standby is told first, so that it does not take the loss of this process for the loss of the
 * host. The second time it ends at once, whatever the peer says.
 */
export function endGuest(machine: Machine, shell: PrimaryShell | undefined): void {
  if (shell?.figures().phase === 'ending') machine.stop();
  else machine.requestEnd({ kind: 'stopped' });
}

/** The control commands that a protected guest understands beside the ordinary ones. */
export function protectionCommand(
  shell: PrimaryShell,
  machine: Machine,
  command: unknown,
): Record<string, unknown> | undefined {
  switch (command) {
    case 'pause':
      shell.pauseGuest();
      return { state: machine.phase };
    case 'resume':
      shell.resumeGuest();
      return { state: machine.phase };
    case 'quit':
      endGuest(machine, shell);
      return {};
    case 'reset':
      shell.whenWhole(() => machine.reset());
      return {};
    case 'switchover':
      if (!shell.switchover()) {
        throw new VmmError('FT_NOT_PROTECTED', 'there is no standby that could take over now', {
          hint: 'tsvmm status shows the phase; it must be "protected".',
        });
      }
      return {};
    case 'cancel':
      shell.operatorGoOn();
      return {};
    case 'takeover':
      throw new VmmError('FT_ROLE', 'this host runs the guest already; takeover is for a standby');
    default:
      return undefined;
  }
}
