/**
 * Carries out what the primary's state machine (ft/core/primary.ts) decides: takes checkpoints, moves bytes, asks the arbiter,
 * keeps time. One for each run of a guest; without a peer it only holds the seams and does nothing (R6).
 *
 * Everything happens on the event loop. Events of devices (an output was held) are noted and handled in the loop's next
 * turn, never inside a vCPU's exit, because a checkpoint has to stop the vCPUs.
 */
import { assert } from '../../base/assert.ts';
import { PAGE_SIZE } from '../../memory/dirty-set.ts';
import { Primary } from '../core/primary.ts';
import type { PrimaryEffect, PrimaryPhase } from '../core/primary-types.ts';
import { faultSentence } from '../wire/fault.ts';
import type { END_REASON } from '../wire/spec.ts';
import { type Arbiter, ArbiterTrouble } from './arbiter.ts';
import { Checkpoints } from './checkpoints.ts';
import { FirstSync } from './first-sync.ts';
import type { Lease } from './lease.ts';
import type { LinkOptions } from './link.ts';
import { type EpochSink, PageSender } from './page-sender.ts';
import { PeerConnection } from './peer-connection.ts';
import { Peers } from './peers.ts';
import type { LiveSettings, PrimaryFigures, PrimaryShellOptions } from './primary-parts.ts';
import { Staging } from './staging.ts';

/** Blocks of staging: 128 MiB of copied pages in all. */
const STAGING_BLOCKS = 64;
/** Longest time between two looks at the clock. */
const TICK_NS = 50e6;
/** Contents kept for deltas, at most: 64 Ki pages, 256 MiB. */
const CACHE_PAGES_MAX = 65536;

type EndReason = (typeof END_REASON)[keyof typeof END_REASON];

/** See the module's head. */
export class PrimaryShell {
  readonly primary: Primary;
  readonly #o: PrimaryShellOptions;
  readonly #link: PeerConnection;
  readonly #peers: Peers;
  #maxDowntimeNs: number;
  readonly #sender: PageSender;
  readonly #staging: Staging;
  readonly #timer: { arm(deadlineNs: number): void; cancel(): void; close(): void };
  readonly #checkpoints: Checkpoints;
  #scheduled = false;
  #running = false;
  #closed = false;
  #logging = false;
  /** The first copy that the present stream takes. */
  #sync: FirstSync | undefined;
  /** The guest stands still until an ACK (or for good), and whether it is to run after that. */
  #still = false;
  #runAfter = false;
  readonly #afterStill: (() => void)[] = [];
  /** Why the guest is to end should it come back from the hand-over that is under way. */
  #endWanted: EndReason | undefined;
  readonly #trouble: ArbiterTrouble;
  #lapsed = false;
  #started = false;

  constructor(options: PrimaryShellOptions) {
    this.#o = options;
    const { guest, outputs, io, config, log, introduction, images } = options;
    this.#maxDowntimeNs = options.maxDowntimeNs;
    this.#trouble = new ArbiterTrouble(log);
    this.#peers = new Peers(
      {
        nowNs: () => this.#now(),
        free: () => this.primary.passing,
        askAgain: () => this.#askAgain(),
        failed: (name, why, all) => options.events.peerFailed(name, why, all),
      },
      log,
    );
    this.primary = new Primary(config, outputs.tap);
    const frames = guest.memory.totalBytes / PAGE_SIZE;
    this.#sender = new PageSender(io, Math.min(frames, CACHE_PAGES_MAX));
    this.#staging = new Staging(STAGING_BLOCKS, (sizeBytes) => guest.map.allocate(sizeBytes));
    const { disks } = options;
    const [sender, staging] = [this.#sender, this.#staging];
    this.#checkpoints = new Checkpoints({ guest, outputs, disks, sender, staging, log });
    const timer = new io.PreciseTimer(() => this.#tick());
    timer.keepAlive(false);
    this.#timer = timer;
    outputs.setEvents({
      held: () => {
        this.primary.held(this.#now());
        this.#schedule();
      },
      tapFull: () => {
        this.primary.tapFull(this.#now());
        this.#schedule();
      },
      blockDone: (device, tag) => {
        this.primary.blockDone(device, tag, this.#now());
        this.#schedule();
      },
    });
    if (disks !== undefined) {
      disks.onWait = () => {
        this.primary.tapFull(this.#now());
        this.#schedule();
      };
    }
    const lease = options.arbiter?.lease;
    if (lease !== undefined) this.#watchLease(lease);
    this.#link = new PeerConnection(
      { io, log, introduction, images, sender: this.#sender },
      {
        connected: (storage, held, returned) => {
          disks?.setStorage(storage, held, returned);
          for (const [i, disk] of outputs.disks.entries()) {
            // While outputs wait for a standby that shares a disk, another one's copy of it lets none of them go.
            const free = !disk.isOutput || this.primary.passing;
            outputs.setShared(i, !(free && disks?.isCopied(i) === true));
          }
          this.primary.connected(this.#now());
        },
        message: (message) => {
          if (
            message.cmd === 'HEARTBEAT' &&
            message.generation === this.primary.sender.generation
          ) {
            disks?.confirmed(message.appliedId);
          }
          // What a device or disk has asked for meanwhile, and waits for its turn: a return in this message comes behind it.
          this.#run();
          this.primary.message(message, this.#now());
          // Before the next message: what this one asked for comes first, or a capture mixes with a return behind it.
          this.#run();
        },
        fault: (fault) => {
          this.#run();
          this.primary.decodeFault(fault, this.#now());
          this.#run();
        },
        disconnected: (why) => this.#disconnected(why),
        failed: (why) => {
          this.#peers.failed(`cannot be reached: ${why}`);
          this.primary.dialFailed(this.#now());
          this.#schedule();
        },
        settled: () => this.#run(),
      },
    );
    this.#peers.set(options.peers);
  }

  /** A lease must run out also while the host is suspended, so this clock goes on then. */
  #now(): number {
    return this.#o.io.boottimeNs();
  }

  /** Authority that lapses: the tap and every output look at it. */
  #watchLease(lease: Lease): void {
    const { outputs, log } = this.#o;
    outputs.setLease(lease);
    lease.setEvents({
      changed: (untilNs) => {
        outputs.leaseChanged();
        this.primary.leaseExtended(untilNs, this.#now());
        if (this.#started) this.#schedule();
      },
      superseded: (generation) => {
        log.error(`the arbiter says that generation ${generation} of this guest runs elsewhere`);
        this.primary.superseded(generation, this.#now());
        if (this.#started) this.#schedule();
      },
    });
  }

  /** Begins: from now on the guest may run. */
  start(): void {
    this.#started = true;
    this.#tick();
  }

  /**
   * Protection is wanted from one of these standbys, tried in this order. One that protects the guest now goes on doing so.
   * @throws VmmError `FT_KEY_NEEDED`
   */
  setPeers(peers: readonly LinkOptions[]): void {
    this.#peers.set(peers);
    this.#askAgain();
  }

  /** Somebody to protect the guest is wanted, also if all have refused before. */
  #askAgain(): void {
    if (this.#closed) return;
    this.primary.protect(this.#now());
    this.#run();
  }

  /** What can be changed while the guest is protected, as it is now. */
  get settings(): LiveSettings {
    return { policy: this.primary.policy.config, maxDowntimeNs: this.#maxDowntimeNs };
  }

  /** Changes it; takes effect at the next checkpoint, or the next round of a first copy. */
  configure(settings: LiveSettings): void {
    this.primary.policy.configure(settings.policy);
    this.#maxDowntimeNs = settings.maxDowntimeNs;
    this.#tick();
  }

  /** Planned switch-over; false when there is no standby that could take over now. */
  switchover(): boolean {
    const begun = this.primary.switchover(this.#now());
    this.#run();
    return begun;
  }

  /**
   * The guest has ended (it stands still already): the peer is told, then `over` follows. In the middle of a hand-over its end is
   * the survivor's business; should the guest stay here after all, it ends then.
   */
  end(reason: EndReason): void {
    this.#still = true;
    this.#runAfter = false;
    this.#endWanted = this.primary.end(reason, this.#now()) ? undefined : reason;
    this.#run();
  }

  /** An operator stops the guest in place; checkpoints do not let it go on. */
  pauseGuest(): void {
    if (this.#still) this.#runAfter = false;
    else this.#o.guest.pause();
  }

  /** Runs `change` to the guest's memory or devices now, or when the checkpoint that is being copied out of them is through. */
  whenWhole(change: () => void): void {
    if (this.#still) this.#afterStill.push(change);
    else change();
  }

  /** An operator lets it go on; at once, or when the commit that it stands still for is through. */
  resumeGuest(): void {
    if (this.#still) this.#runAfter = true;
    else this.#o.guest.resume();
  }

  /** An operator takes the responsibility for going on without the peer. */
  operatorGoOn(): void {
    this.primary.operatorGoOn(this.#now());
    this.#run();
  }

  figures(): PrimaryFigures {
    const { primary } = this;
    const checkpoints = this.#checkpoints;
    const { policy, intervalNs } = primary.policy.config;
    return {
      phase: primary.phase,
      generation: primary.sender.generation,
      epochs: checkpoints.taken,
      ackedEpochs: checkpoints.acknowledged,
      inFlight: primary.sender.inFlight,
      lastPauseNs: checkpoints.lastPauseNs,
      lastPages: checkpoints.lastPages,
      lastAhead: checkpoints.lastAhead,
      lastAgain: checkpoints.lastAgain,
      outputDelayNs: checkpoints.outputDelayNs,
      heldOutputs: primary.tap.heldCount,
      sentBytes: this.#link.sentBytes,
      disks: this.#o.disks?.figures() ?? [],
      diskCopy: this.#o.disks?.progress,
      peer: this.#peers.name,
      policy,
      intervalMs: intervalNs / 1e6,
      maxDowntimeMs: this.#maxDowntimeNs / 1e6,
    };
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#timer.close();
    this.#peers.close();
    this.#link.close();
    this.#checkpoints.close();
  }

  // --- the loop

  /** Handles what was noted, in the loop's next turn. */
  #schedule(): void {
    if (this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#tick();
    });
  }

  #tick(): void {
    if (this.#closed) return;
    this.primary.tick(this.#now());
    this.#run();
  }

  /** Carries out effects, in order, until there are none; then sleeps until something is due. */
  #run(): void {
    if (this.#running || this.#closed) return;
    this.#running = true;
    try {
      for (let e = this.primary.out.shift(); e !== undefined; e = this.primary.out.shift()) {
        this.#perform(e);
      }
    } finally {
      this.#running = false;
    }
    if (this.#closed) return;
    const now = this.#now();
    const due =
      this.primary.phase === 'alone' ? Number.POSITIVE_INFINITY : this.primary.policy.nextNs(now);
    // A due capture that cannot be taken now (epochs in flight) is taken at the next ACK, not by polling.
    const waitNs = due > now ? Math.min(due - now, TICK_NS) : TICK_NS;
    this.#timer.arm(this.#o.io.monotonicNs() + waitNs);
    this.#noteLease();
  }

  #perform(e: PrimaryEffect): void {
    switch (e.type) {
      case 'send':
        this.#link.send(e.message, e.chunk);
        break;
      case 'close':
        if (!this.primary.passing) {
          this.#o.log.info(`the connection to the standby is closed: ${e.sentence}`);
        }
        this.#peers.failed(e.sentence);
        this.#link.drop();
        break;
      case 'connect':
        this.#peers.connect(this.#link);
        break;
      case 'agreed':
        this.#link.agreed();
        break;
      case 'opened':
        this.#opened(e.mode);
        break;
      case 'capture':
        this.#capture(e.epoch, e.atomic);
        break;
      case 'encode': {
        const epoch = this.#checkpoints.get(e.epoch);
        assert(epoch !== undefined, 'only a captured epoch is encoded');
        const disks = this.#o.disks;
        disks?.log.beginEncoding(e.epoch);
        const sink: EpochSink = {
          chunk: (number, chunk) => {
            const taken = this.primary.chunk(number, chunk, this.#now());
            this.#run();
            return taken;
          },
          sealed: (number, manifest) => {
            const taken = this.primary.sealed(number, manifest, this.#now());
            this.#run();
            return taken;
          },
        };
        this.#sender.sendEpoch(epoch, this.#staging.bytes, sink, disks?.log);
        break;
      }
      case 'acked':
        this.#checkpoints.acked(e.epoch, e.id, this.#now());
        break;
      case 'returned':
        this.#checkpoints.returned(e.fromEpoch);
        this.#o.log.debug(`checkpoints come back: ${faultSentence(e.code)}`);
        break;
      case 'run':
        if (this.#endWanted !== undefined) {
          // It was given back, and does not run again: what comes next is its end.
          const why = this.#endWanted;
          this.#endWanted = undefined;
          setImmediate(() => {
            if (!this.#closed) this.end(why);
          });
          break;
        }
        this.#still = false;
        for (const change of this.#afterStill.splice(0)) change();
        if (this.#runAfter) this.#o.guest.resume();
        break;
      case 'pre-copy':
        this.#sendAhead(e.epoch);
        break;
      case 'arbiter':
        this.#ask(e.ticket, e.request);
        break;
      case 'superseded':
        this.#o.log.error(`generation ${e.generation} of this guest runs elsewhere`);
        break;
      case 'refused':
        this.#peers.refused(e.sentence);
        break;
      case 'ended':
      case 'handed-over':
        break;
      case 'fence':
        this.#still = true;
        this.#runAfter = false;
        this.#o.guest.pause();
        this.#o.events.fenced(e.generation);
        break;
      case 'over':
        this.#o.events.over(e.why);
        break;
      case 'phase':
        this.#phase(e.phase, e.sentence);
        break;
    }
  }

  /** Says when the lease runs out, and when it is back. */
  #noteLease(): void {
    const lease = this.#o.arbiter?.lease;
    if (lease === undefined || lease.valid !== this.#lapsed) return;
    this.#lapsed = !lease.valid;
    const { log } = this.#o;
    if (!this.#lapsed) log.info("the arbiter's lease is back: outputs leave again");
    else if (this.primary.phase !== 'handing' && this.primary.phase !== 'over') {
      log.warn("the arbiter's lease has run out: outputs wait until the arbiter answers");
    }
  }

  #phase(phase: PrimaryPhase, sentence: string): void {
    if (phase === 'alone') this.#o.disks?.forget();
    if (phase === 'protected') this.#peers.succeeded();
    else if (phase === 'alone') this.#peers.failed('it was lost');
    if (phase === 'alone' && this.#logging && this.#sync === undefined) {
      this.#o.guest.setDirtyLog(false);
      this.#logging = false;
      // What is written from here on is not recorded, so no standby can go on from what it holds.
      this.primary.sender.forceFull();
    }
    this.#o.events.phase(phase, sentence);
  }

  async #ask(ticket: number, request: Parameters<Arbiter['request']>[0]): Promise<void> {
    const { arbiter } = this.#o;
    assert(arbiter !== undefined, 'only a primary with an arbiter asks one');
    const verdict = await arbiter.request(request);
    if (this.#closed) return;
    this.#trouble.answered(arbiter, verdict, true);
    this.primary.arbiterAnswer({ ticket, ...verdict }, this.#now());
    this.#run();
  }

  // --- the connection

  #disconnected(why: string): void {
    this.#sync = undefined;
    this.#peers.failed(why);
    this.primary.disconnected(this.#now());
    this.#schedule();
  }

  // --- the first copy

  #opened(mode: 'full' | 'resume'): void {
    if (mode === 'resume') return;
    const { guest, disks, io, log, copyBytesPerSecondMax, events } = this.#o;
    const sync = new FirstSync(
      {
        guest,
        disks,
        sender: this.#sender,
        staging: this.#staging,
        io,
        log,
        copyBytesPerSecondMax,
        maxDowntimeNs: this.#maxDowntimeNs,
        copyOf: { vm: this.#o.config.hello.vm, generation: this.primary.sender.generation },
        nowNs: () => this.#now(),
      },
      {
        wanted: (asking) =>
          this.#sync === asking && !this.#closed && this.primary.sender.state === 'sync',
        chunk: (chunk) => {
          this.primary.syncChunk(chunk, this.#now());
          this.#run();
        },
        memoryBegins: () => {
          if (!this.#logging) guest.setDirtyLog(true);
          this.#logging = true;
          this.#checkpoints.forgetDirty();
        },
        progress: (progress) => events.syncProgress(progress),
        diskProgress: (progress) => events.diskProgress(progress),
        done: (late) => this.#synchronised(late),
        failed: (why) => {
          log.error(`the disks cannot be copied to the standby: ${why}`);
          this.#peers.rest('the disks of this host cannot be copied to it');
          this.#link.drop();
        },
      },
    );
    this.#sync = sync;
    sync.run();
  }

  /** What is left belongs to the first transaction. */
  #synchronised(late: boolean): void {
    if (late) {
      this.#o.log.warn(
        'the guest writes memory faster than the link takes it: it stands still for the rest',
      );
    }
    this.#sync = undefined;
    this.primary.synchronised(this.#now());
    this.#run();
  }

  // --- checkpoints

  #sendAhead(number: number): void {
    this.#checkpoints.sendAhead(number, (chunk) => {
      const taken = this.primary.chunk(number, chunk, this.#now());
      this.#run();
      return taken;
    });
  }

  #capture(number: number, atomic: boolean): void {
    const { guest } = this.#o;
    const begin = this.#now();
    if (!this.#still) this.#runAfter = guest.running;
    guest.pause();
    if (!this.primary.paused(this.#now())) {
      if (this.#runAfter && !this.#still) guest.resume();
      return;
    }
    const taken = this.#checkpoints.take(number);
    if (taken === undefined) {
      if (!atomic && this.#runAfter) guest.resume();
      this.primary.cancelAhead(number, this.#now());
      this.primary.captureFailed(this.#now());
      // Without the peer: a guest whose state cannot be saved cannot be protected, and must not try in a loop.
      this.#link.drop();
      return;
    }
    this.#still = atomic || !taken.fits;
    if (!this.#still && this.#runAfter) guest.resume();
    const now = this.#now();
    const sentAhead = this.#checkpoints.settle(taken, begin, now);
    const { epoch, count } = taken;
    this.primary.captured(epoch.bytes, count, now - begin, now, this.#still, sentAhead);
  }
}
