/**
 * Puts a machine under replication. One way for all guests: those that name a peer when they start, those that get one while they
 * run (`tsvmm protect`), and those that were taken over and look for a new standby. Used by `tsvmm standby` after a takeover,
 * and by `tsvmm run` when protection is asked for (protection-on-demand.ts): it brings all of replication with it.
 */
import { VmmError } from '../base/error.ts';
import { POLICY_DEFAULTS } from '../ft/core/epoch-policy.ts';
import type { PrimaryConfig } from '../ft/core/primary-types.ts';
import type { ReplicatedDisks } from '../ft/disk/replicated-disks.ts';
import type { Origin } from '../ft/disk/storage.ts';
import type { Arbiter } from '../ft/shell/arbiter.ts';
import { introduce } from '../ft/shell/introduction.ts';
import { type LinkOptions, requireKey } from '../ft/shell/link.ts';
import type { Outputs } from '../ft/shell/outputs.ts';
import type { LiveSettings } from '../ft/shell/primary-parts.ts';
import { PrimaryShell } from '../ft/shell/primary-shell.ts';
import type { Hello } from '../ft/wire/message.ts';
import { END_REASON } from '../ft/wire/spec.ts';
import type { NativeIo } from '../kvm/native-io.ts';
import type { Machine } from '../machine/machine.ts';
import { replicatedGuest } from '../machine/replicated-guest.ts';
import { descriptionDigest, type MachineDescription, parseDescription } from './ft-description.ts';
import { ARBITER_RETRY_NS, helloOf, livenessFor, NO_ARBITER, openArbiter } from './ft-options.ts';
import type { PeerAddress, ProtectionSettings } from './ft-settings.ts';
import { diskLine, showStatus, syncLine } from './ft-status.ts';
import { type GuestProtection, notProtected } from './protection-on-demand.ts';

/** A machine that may be protected, now or later. */
export interface ProtectionParts {
  readonly machine: Machine;
  /** The tap in front of everything that leaves the guest. */
  readonly outputs: Outputs;
  /** The disks, of which a standby may have copies of its own. */
  readonly disks: ReplicatedDisks;
  readonly io: NativeIo;
  /** Asked for once, when protection is wanted for the first time. @throws VmmError when this guest cannot be replicated */
  describe(): GuestDescription;
  /** Takes over what has to be closed at the end. */
  atEnd(close: () => unknown): void;
}

/** What a standby has to know before it can build the machine. */
export interface GuestDescription {
  readonly description: MachineDescription;
  /** Bytes of the boot images, as the description lists them. */
  readonly images: readonly Uint8Array[];
}

/** By whose authority the guest runs here. */
export interface Authority {
  readonly arbiter: Arbiter | undefined;
  readonly generation: number;
  /** What this host took the guest over from, if it did. */
  readonly origin?: Origin;
}

/** Where standbys are, and the key that they share with this host. */
export interface Peers {
  readonly addresses: readonly PeerAddress[];
  readonly key: Uint8Array | undefined;
}

/** How long a lost peer may stay lost, outputs held, before authority to go on alone is sought. */
const GRACE_NS = 300e6;
const RECONNECT_NS = 200e6;
/** An epoch that takes this many silences to be acknowledged means that the peer is lost although it speaks. */
const ACK_DEADLINE_FACTOR = 10;
/** `tsvmm protect` waits this long for the first copy; it goes on behind that. */
const FIRST_COPY_WAIT_MS = 600_000;

/** The protection of one machine. Without {@link start} it does nothing (R6). */
export class Protection implements GuestProtection {
  readonly #parts: ProtectionParts;
  #settings: ProtectionSettings;
  #shell: PrimaryShell | undefined;
  #arbiterName = 'none';
  #started = false;
  #running = false;
  #finish: (() => void) | undefined;
  /** Who waits for the outcome of `tsvmm protect`. */
  #waiting:
    | { protected(): void; failed(name: string, why: string, all: boolean): void }
    | undefined;

  constructor(parts: ProtectionParts, settings: ProtectionSettings) {
    this.#parts = parts;
    this.#settings = settings;
  }

  /** The primary; undefined as long as no protection was wanted. */
  get shell(): PrimaryShell | undefined {
    return this.#shell;
  }

  /** The machine runs: what was prepared begins. */
  run(): void {
    this.#running = true;
    this.#begin();
  }

  #begin(): void {
    if (!this.#running || this.#started || this.#shell === undefined) return;
    this.#started = true;
    this.#shell.start();
  }

  /**
   * Makes the primary and connects it to the machine's life, whether the machine runs already or not. Outputs pass until a
   * standby has been synchronised, and are held from that capture on.
   * @throws VmmError `FT_KEY_NEEDED`, or when the guest cannot be described
   */
  start(authority: Authority, arbiterName: string, peers: Peers): void {
    const { machine, outputs, disks, io } = this.#parts;
    const { log } = machine;
    const { arbiter } = authority;
    const { description: made, images } = this.#parts.describe();
    const description = parseDescription({
      ...made,
      generation: authority.generation,
      ...(authority.origin && { origin: authority.origin }),
    });
    const settings = this.#settings;
    const goesOn = (settings.onPeerLoss ?? (arbiter ? 'continue' : 'pause')) === 'continue';
    // What the processors are can only be read while they stand still.
    const wasRunning = machine.running;
    machine.pause();
    let hello: Hello;
    try {
      hello = helloOf({
        machine,
        role: 'primary',
        onPeerLoss: goesOn ? 'goOn' : 'wait',
        arbiter,
        vm: description.vm,
        generation: authority.generation,
        machineDigest: descriptionDigest(description),
      });
    } finally {
      if (wasRunning) machine.resume();
    }
    const config: PrimaryConfig = {
      hello,
      authority: {
        arbiter: arbiter !== undefined,
        onPeerLoss: goesOn ? 'go-on' : 'wait',
        retryNs: ARBITER_RETRY_NS,
      },
      policy: { ...POLICY_DEFAULTS, policy: settings.policy, intervalNs: settings.intervalNs },
      liveness: livenessFor(settings.timeoutNs),
      protect: peers.addresses.length > 0,
      reconnectNs: RECONNECT_NS,
      graceNs: GRACE_NS,
      ackDeadlineNs: settings.timeoutNs * ACK_DEADLINE_FACTOR,
    };
    const shell = new PrimaryShell({
      guest: replicatedGuest(machine),
      outputs,
      disks,
      copyBytesPerSecondMax: settings.copyBytesPerSecondMax,
      io,
      log,
      config,
      arbiter,
      peers: this.#links(peers),
      maxDowntimeNs: settings.maxDowntimeNs,
      introduction: introduce(description),
      images,
      events: {
        phase: (phase, sentence) => {
          log.info(`replication: ${phase}${sentence === '' ? '' : ` (${sentence})`}`);
          if (phase === 'lost' && sentence !== '') log.warn(sentence);
          if (phase === 'protected') this.#waiting?.protected();
        },
        fenced(newer) {
          machine.requestEnd({
            kind: 'error',
            message: `generation ${newer} of this guest runs on another host; this one has stopped`,
          });
        },
        over: (why) => {
          if (why === 'handed-over') {
            log.info('the guest has been handed over');
            machine.stop();
          } else {
            this.#finish?.();
          }
        },
        syncProgress(progress) {
          log.info(syncLine(progress));
        },
        diskProgress(progress) {
          log.info(diskLine(progress));
        },
        peerFailed: (name, why, all) => this.#waiting?.failed(name, why, all),
      },
    });
    this.#shell = shell;
    this.#arbiterName = arbiterName;
    this.#parts.atEnd(() => shell.close());
    machine.setEndGate((outcome, done) => {
      this.#finish = done;
      shell.end(outcome.kind === 'stopped' ? END_REASON.operator : END_REASON.guestShutdown);
    });
    const stopStatus = showStatus(settings.status, () => shell.figures());
    void machine.finished.then(stopStatus);
    if (arbiter === undefined && peers.addresses.length > 0) log.warn(NO_ARBITER);
    this.#begin();
  }

  #links(peers: Peers): LinkOptions[] {
    const { log } = this.#parts.machine;
    const links = peers.addresses.map((address) => ({ ...address, key: peers.key, log }));
    for (const link of links) requireKey(link, 'the peer');
    return links;
  }

  /**
   * An operator wants the running guest protected by one of `peers`.
   * @param arbiterName as `--ft-arbiter` takes it; undefined for the one that the guest has, or none
   * @returns when a standby protects the guest
   * @throws VmmError when none of them can; it is tried again all the same
   */
  async request(
    peers: Peers,
    arbiterName: string | undefined,
    settings: ProtectionSettings,
  ): Promise<{ readonly peer: string }> {
    const { machine } = this.#parts;
    if (machine.phase === 'ended') throw new VmmError('MACHINE_PHASE', 'the guest has ended');
    if (this.#waiting !== undefined) {
      throw new VmmError('FT_BUSY', 'another request to protect this guest is under way');
    }
    const outcome = this.#outcome();
    // Nobody may be listening yet when an error ends this early.
    outcome.catch(() => {});
    try {
      if (this.#shell === undefined) {
        this.#settings = settings;
        await this.#startLate(peers, arbiterName ?? 'none');
      } else {
        if (arbiterName !== undefined && arbiterName !== this.#arbiterName) {
          throw new VmmError(
            'FT_ARBITER',
            `this guest's arbiter is ${this.#arbiterName} and cannot be changed while it runs`,
            { hint: 'Leave --ft-arbiter out.' },
          );
        }
        if (this.#shell.figures().phase === 'protected') {
          throw new VmmError('FT_PROTECTED', 'this guest is protected already', {
            hint: 'End its standby first, if another one is to take its place.',
          });
        }
        const { timeoutNs, onPeerLoss } = this.#settings;
        if (settings.timeoutNs !== timeoutNs || settings.onPeerLoss !== onPeerLoss) {
          throw new VmmError(
            'FT_FIXED',
            '--ft-timeout and --ft-on-peer-loss are fixed when a guest is first protected',
            { hint: 'Leave them out.' },
          );
        }
        this.configure(settings);
        this.#shell.setPeers(this.#links(peers));
      }
      await outcome;
    } finally {
      this.#waiting = undefined;
    }
    return { peer: this.#shell?.figures().peer ?? '' };
  }

  async #startLate(peers: Peers, arbiterName: string): Promise<void> {
    // What can be wrong is found before the arbiter is asked for the guest.
    this.#parts.describe();
    this.#links(peers);
    const { io, machine } = this.#parts;
    const arbiter = openArbiter(io, machine.log, arbiterName);
    // Named before the primary, which is closed first then.
    if (arbiter) this.#parts.atEnd(() => arbiter.close());
    try {
      const generation = arbiter === undefined ? 1 : await arbiter.begin();
      this.start({ arbiter, generation }, arbiterName, peers);
    } catch (error) {
      await arbiter?.close();
      throw error;
    }
  }

  /** Resolves when the guest is protected, fails when every peer has failed once. */
  #outcome(): Promise<void> {
    return new Promise((resolve, reject) => {
      const why: string[] = [];
      const timer = setTimeout(() => {
        const message = 'the first copy is still under way; tsvmm status shows its end';
        reject(new VmmError('FT_SLOW', message));
      }, FIRST_COPY_WAIT_MS);
      timer.unref();
      this.#waiting = {
        protected: () => {
          clearTimeout(timer);
          resolve();
        },
        failed: (name, sentence, all) => {
          why.push(`${name}: ${sentence}`);
          if (!all) return;
          clearTimeout(timer);
          reject(
            new VmmError('FT_NOT_PROTECTED', `no standby protects this guest (${why.join('; ')})`, {
              hint: 'The guest runs on without protection, and it is tried again.',
            }),
          );
        },
      };
    });
  }

  /** What is set, as it holds now. */
  get settings(): ProtectionSettings {
    return this.#settings;
  }

  /** Changes policy, interval and downtime, also while the guest is protected. */
  configure(settings: ProtectionSettings): void {
    this.#settings = settings;
    const { policy, intervalNs, maxDowntimeNs } = settings;
    const live: LiveSettings = {
      policy: { ...POLICY_DEFAULTS, policy, intervalNs },
      maxDowntimeNs,
    };
    this.#shell?.configure(live);
  }

  /**
   * An operator ends the guest: a standby is told first, so that it does not take the loss of this process for the loss of the
   * host. The second time it ends at once, whatever the peer says.
   */
  endGuest(): void {
    const { machine } = this.#parts;
    if (this.#shell === undefined || this.#shell.figures().phase === 'ending') machine.stop();
    else machine.requestEnd({ kind: 'stopped' });
  }

  /** The guest is handed over to its standby. @throws VmmError `FT_NOT_PROTECTED` */
  switchover(): void {
    if (this.#shell?.switchover() === true) return;
    throw notProtected();
  }
}
