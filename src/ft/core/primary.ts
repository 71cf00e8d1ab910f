/**
 * The primary as a whole: sender, event-tap, epoch policy, liveness and authority composed, still without I/O.
 * It decides when the guest is stopped for a capture, when held outputs leave, what the loss of the peer means,
 * how the guest is handed over and how it ends. The shell feeds it what happens and carries out its effects in
 * order; the simulator does the same with the same code.
 *
 * Phases: alone - joining - protected - lost - handing - ending - fenced - over. Table: docs/replication.md.
 */
import { assert } from '../../base/assert.ts';
import type { DecodeFault } from '../wire/decoder.ts';
import { FAULT, type FaultCode, fault } from '../wire/fault.ts';
import type { Hello, Manifest, Message, NackMessage } from '../wire/message.ts';
import { type END_REASON, ON_PEER_LOSS } from '../wire/spec.ts';
import { EffectQueue } from './effects.ts';
import { EpochPolicy, NOTHING_AHEAD, type SentAhead } from './epoch-policy.ts';
import type { EventTap } from './event-tap.ts';
import { type ArbiterAnswer, type ArbiterEffect, PrimaryAuthority } from './failover.ts';
import { PeerWatch } from './peer-watch.ts';
import type { PrimaryConfig, PrimaryEffect, PrimaryParts, PrimaryPhase } from './primary-types.ts';
import { Sender, type SenderEffect } from './sender.ts';

const PARTS: PrimaryParts = {
  sender: (hello, out) => new Sender(hello, out),
  authority: (generation, config, out) => new PrimaryAuthority(generation, config, out),
};

type EndReason = (typeof END_REASON)[keyof typeof END_REASON];

/** The primary machine. */
export class Primary {
  readonly out = new EffectQueue<PrimaryEffect>();
  readonly sender: Sender;
  readonly policy: EpochPolicy;
  readonly authority: PrimaryAuthority;
  readonly tap: EventTap;
  readonly #config: PrimaryConfig;
  readonly #peer: PeerWatch;
  readonly #senderOut = new EffectQueue<SenderEffect>();
  readonly #arbiterOut = new EffectQueue<ArbiterEffect>();
  #phase: PrimaryPhase = 'alone';
  #protect: boolean;
  #refused = false;
  /** The first copy is done (or not needed): captures may start. */
  #ready = false;
  #ackedSinceOpen = false;
  /** Whether outputs pass because the arbiter or the operator said so, and not by an ACK. */
  #passing = true;
  #capturing: { readonly epoch: number; readonly atomic: boolean } | undefined;
  /** Epochs have come back since that was asked for: what it captured would be given back with them. It is asked for anew. */
  #captureVoid = false;
  #captureAtNs = Number.NEGATIVE_INFINITY;
  #stopped = false;
  #ackedEpoch = 0;
  #intent:
    | { readonly kind: 'hand' }
    | { readonly kind: 'end'; readonly reason: EndReason }
    | undefined;
  #finalAcked = false;
  #takingBack = false;
  #endAlone = false;

  /** @param tap the tap in front of this guest's outputs, with `onHeld` calling {@link held} */
  constructor(config: PrimaryConfig, tap: EventTap, parts: PrimaryParts = PARTS) {
    this.#config = config;
    this.tap = tap;
    this.#protect = config.protect;
    this.sender = parts.sender(config.hello, this.#senderOut);
    this.authority = parts.authority(config.hello.generation, config.authority, this.#arbiterOut);
    this.policy = new EpochPolicy(config.policy);
    this.#peer = new PeerWatch(config);
  }

  get phase(): PrimaryPhase {
    return this.#phase;
  }

  /** Whether outputs leave without being held, by the arbiter's record or the operator's word. */
  get passing(): boolean {
    return this.#passing;
  }

  // --- the connection

  /** A connection to the standby is up. */
  connected(nowNs: number): void {
    this.#peer.connect(nowNs);
    this.sender.connected();
    this.#settle(nowNs);
  }

  /** The attempt to connect that was asked for has failed: nobody listens there. */
  dialFailed(nowNs: number): void {
    this.#peer.dialFailed();
    this.#settle(nowNs);
  }

  /** The connection is gone. */
  disconnected(nowNs: number): void {
    this.#connectionLost(nowNs);
    this.sender.disconnected();
    this.#settle(nowNs);
  }

  /** A message from the standby. */
  message(message: Message, nowNs: number): void {
    if (!this.overslept(nowNs)) {
      this.#peer.heard(nowNs);
      this.sender.receive(message);
    }
    this.#settle(nowNs);
  }

  /** The decoder found something wrong. */
  decodeFault(found: DecodeFault, nowNs: number): void {
    this.sender.fault(found);
    this.#settle(nowNs);
  }

  // --- checkpoints

  /** The first copy has converged: what is left fits the allowed downtime. Captures start. */
  synchronised(nowNs: number): void {
    if (this.sender.state !== 'sync') return;
    this.#ready = true;
    this.policy.force();
    this.#settle(nowNs);
  }

  /**
   * The vCPUs stand still for the capture that was asked for. From here on outputs are held; those held before
   * are covered by this epoch. False: the capture is not wanted any more, run on.
   */
  paused(nowNs: number): boolean {
    const capturing = this.#capturing;
    if (capturing === undefined) return false;
    if (this.#captureVoid) {
      this.#capturing = undefined;
      return false;
    }
    this.#passing = false;
    this.tap.holding = true;
    this.tap.seal(capturing.epoch);
    this.policy.captured(nowNs);
    return true;
  }

  /**
   * The checkpoint is in staging.
   * @param bytes what it occupies there
   * @param pages how many pages it holds
   * @param pauseNs how long the guest stood still
   * @param atomic whether it still does, until the ACK: as asked for, or because the harvest did not fit into
   * free staging
   * @param ahead what of this epoch was sent before the capture
   */
  captured(
    bytes: number,
    pages: number,
    pauseNs: number,
    nowNs: number,
    atomic = this.#capturing?.atomic ?? false,
    ahead: SentAhead = NOTHING_AHEAD,
  ): void {
    const capturing = this.#capturing;
    assert(capturing !== undefined, 'a capture was asked for');
    assert(atomic || !capturing.atomic, 'an atomic capture stays one');
    this.#capturing = undefined;
    this.policy.measured(pauseNs, pages + ahead.pages - ahead.again, ahead);
    this.#stopped = atomic;
    if (this.sender.canOpen) {
      // Without an arbiter the standby may count as complete as soon as it has a COMMIT, even if its ACK is lost.
      if (!this.#config.authority.arbiter) this.#inSync(nowNs);
      const epoch = this.sender.open(bytes, atomic);
      assert(epoch === capturing.epoch, 'epochs are opened in the order of their captures');
      this.#peer.epochSent(nowNs);
    } else {
      this.#giveBack(capturing.epoch, FAULT.CANCELLED);
    }
    this.#settle(nowNs);
  }

  /**
   * The capture could not be made; its pages stay dirty. It is tried again after a while. The guest runs on, unless the
   * capture was to be atomic.
   */
  captureFailed(nowNs: number): void {
    const capturing = this.#capturing;
    if (capturing === undefined) return;
    this.#capturing = undefined;
    this.#stopped = capturing.atomic;
    this.#captureAtNs = nowNs + this.#config.reconnectNs;
    this.tap.returnFrom(capturing.epoch);
    this.policy.returned(nowNs);
    this.#settle(nowNs);
  }

  /** What was sent ahead for `epoch` is of no use: the standby drops it, its pages are dirty again. */
  cancelAhead(epoch: number, nowNs: number): void {
    if (epoch < this.sender.nextEpoch) return; // captured meanwhile
    this.sender.cancel(epoch, FAULT.CANCELLED);
    this.#settle(nowNs);
  }

  /** A chunk of the epoch being encoded, or sent ahead. False: drop it. */
  chunk(epoch: number, chunk: number, nowNs: number): boolean {
    const taken = this.sender.chunk(epoch, chunk);
    this.#settle(nowNs);
    return taken;
  }

  /** All chunks of the epoch have been given. False: the epoch is gone. */
  sealed(epoch: number, manifest: Manifest, nowNs: number): boolean {
    const taken = this.sender.sealed(epoch, manifest);
    this.#settle(nowNs);
    return taken;
  }

  /** A chunk of the first copy. */
  syncChunk(chunk: number, nowNs: number): void {
    this.sender.syncChunk(chunk);
    this.#settle(nowNs);
  }

  /** The tap holds one more output; its `onHeld`. */
  held(nowNs: number): void {
    this.policy.held(nowNs);
  }

  /** An output found the tap full. The device keeps it and tries again on the sink's `released`. */
  tapFull(nowNs: number): void {
    this.policy.tapFull();
    this.#settle(nowNs);
  }

  /** A released block request is done; the shell completes it towards the guest. */
  blockDone(device: number, tag: number, nowNs: number): void {
    this.tap.blockDone(device, tag);
    this.#settle(nowNs);
  }

  // --- authority

  /** The arbiter has answered. */
  arbiterAnswer(answer: ArbiterAnswer, nowNs: number): void {
    this.authority.answer(answer, nowNs);
    this.#settle(nowNs);
  }

  /** A lease arbiter has extended the lease to `untilNs`, or it is over. */
  leaseExtended(untilNs: number, nowNs: number): void {
    this.authority.lease(untilNs);
    this.#settle(nowNs);
  }

  /** The arbiter has found, without being asked, that `generation` of the guest runs elsewhere. */
  superseded(generation: number, nowNs: number): void {
    this.authority.superseded(generation);
    this.#settle(nowNs);
  }

  /** An operator takes the responsibility for going on without the peer. */
  operatorGoOn(nowNs: number): void {
    this.authority.operatorGoOn(nowNs);
    if (this.#intent?.kind === 'hand' && !this.#config.authority.arbiter) this.#abandonHandover();
    this.#settle(nowNs);
  }

  /** Protection is wanted (again), with whatever peer the shell connects to. */
  protect(nowNs: number): void {
    this.#protect = true;
    this.#refused = false;
    this.#settle(nowNs);
  }

  /**
   * Planned switch-over. The guest stands still from the final capture on; block requests that are done after it
   * are reported with {@link blockDone} as ever, but not completed towards the guest: the survivor does them again.
   * False: there is no standby that could take over now.
   */
  switchover(nowNs: number): boolean {
    if (this.#phase !== 'protected' || this.#intent !== undefined) return false;
    this.#intent = { kind: 'hand' };
    this.#finalAcked = false;
    this.policy.force();
    this.#settle(nowNs);
    return true;
  }

  /**
   * Somebody connected to this end and said HELLO, although a primary runs here: an old primary that does not know
   * yet, or the new one looking for a standby. @returns the answer; close behind it
   */
  stranger(hello: Hello, nowNs: number): NackMessage {
    const { generation } = this.sender;
    const newer = hello.vm === this.#config.hello.vm && this.isOver(hello.generation);
    if (newer && !this.#isDone()) {
      this.#fence(hello.generation);
      this.#settle(nowNs);
    }
    const { code, sentence } = fault(newer ? FAULT.STATE_INVALID : FAULT.TAKEN_OVER);
    return { cmd: 'NACK', generation, id: 0, seq: 0, code, sentence };
  }

  /**
   * The guest has switched itself off, or an operator ends it. It stands still already.
   * False: it is being handed over, and its end is the survivor's business.
   */
  end(reason: EndReason, nowNs: number): boolean {
    if (this.#isDone() || this.authority.handing) return false;
    this.#intent = { kind: 'end', reason };
    this.#finalAcked = false;
    this.#stopped = true;
    this.policy.force();
    this.#settle(nowNs);
    return true;
  }

  /** Time passes; called at least every liveness interval and at {@link EpochPolicy.nextNs}. */
  tick(nowNs: number): void {
    if (this.#phase === 'fenced' || this.#phase === 'over') return;
    if (!this.overslept(nowNs)) {
      if (this.#peer.sendDue(nowNs)) this.sender.heartbeat();
      if (this.#peer.dead(nowNs)) this.#hangUp('The standby is silent.', nowNs);
    }
    this.authority.tick(nowNs);
    this.#settle(nowNs);
  }

  // --- inside

  /**
   * Whether this side was stopped for so long that somebody may have taken over meanwhile. An ACK that waited in the
   * socket is then from before that, and must let nothing out (R3): the connection is given up, and the next HELLO says how
   * things stand.
   */
  protected overslept(nowNs: number): boolean {
    const slept = this.#peer.overslept(nowNs);
    if (slept && this.#peer.connected) this.#hangUp('This side was stopped for too long.', nowNs);
    return slept;
  }

  #hangUp(sentence: string, nowNs: number): void {
    this.#drainSender(nowNs);
    this.out.push({ type: 'close', code: FAULT.PEER_SILENT, sentence });
    this.#connectionLost(nowNs);
    this.sender.disconnected();
  }

  /** Brings everything in line after an event. */
  #settle(nowNs: number): void {
    this.#drainSender(nowNs);
    if (this.#phase === 'fenced' || this.#phase === 'over') return;
    if (this.isOver(this.authority.fencedBy)) {
      // After a hand-over the next generation is the standby's, as it should be.
      const handed = this.#intent?.kind === 'hand' && this.#takingBack;
      if (handed && this.authority.fencedBy === this.sender.generation + 1) {
        this.#over('handed-over');
      } else this.#fence(this.authority.fencedBy);
      return;
    }
    this.#seekAuthority(nowNs);
    this.#drainSender(nowNs);
    this.#flushOutputs(nowNs);
    this.#finish(nowNs);
    this.#drainSender(nowNs);
    this.#drainArbiter();
    if (this.#isDone()) return;
    this.#connect(nowNs);
    this.#capture(nowNs);
    this.#enter(this.#phaseNow());
  }

  #drainSender(nowNs: number): void {
    for (let e = this.#senderOut.shift(); e !== undefined; e = this.#senderOut.shift()) {
      switch (e.type) {
        case 'opened':
          this.#peer.opened();
          this.#ready = e.mode === 'resume';
          this.#ackedSinceOpen = false;
          // What still waits here, also where an earlier standby has acknowledged it, is in no log of this one.
          if (e.mode === 'full') this.tap.returnFrom(1);
          this.authority.peerBack();
          if (this.#ready) this.policy.force();
          else if (this.#intent !== undefined) {
            this.#peerIsEmpty(nowNs);
            continue;
          }
          break;
        case 'acked':
          this.#ackedEpoch = e.epoch;
          this.#ackedSinceOpen = this.#peer.streamOpen;
          this.#peer.epochsSettled(this.sender.inFlight > 0, nowNs);
          if (this.#peer.streamOpen) this.#inSync(nowNs);
          if (e.atomic) this.#atomicAcked();
          break;
        case 'returned':
          this.#returned(e.fromEpoch, nowNs);
          break;
        case 'superseded':
          this.out.push(e);
          if (this.isOver(e.generation)) this.#fence(e.generation);
          continue;
        case 'refused':
          this.#refused = true;
          break;
        case 'ended':
        case 'handed-over':
          this.#over(e.type);
          break;
        case 'close':
          this.#connectionLost(nowNs);
          break;
        default:
          break;
      }
      this.out.push(e);
    }
  }

  /** A standby without state, when the guest stands still for its end or hand-over: not worth a first copy. */
  #peerIsEmpty(nowNs: number): void {
    const sentence = 'The standby holds no state, and the guest stands still.';
    this.out.push({ type: 'close', code: FAULT.CANCELLED, sentence });
    this.#connectionLost(nowNs);
    this.sender.disconnected();
    this.#endAlone = true;
  }

  #inSync(nowNs: number): void {
    const peer = this.sender.peer!;
    this.authority.peerInSync(peer.instance, nowNs);
    if (!this.#config.authority.arbiter && peer.onPeerLoss === ON_PEER_LOSS.takeover) {
      this.sender.expectedInstance = peer.instance;
    }
  }

  #atomicAcked(): void {
    if (this.#intent === undefined) {
      this.#stopped = false;
      this.out.push({ type: 'run' });
    } else {
      this.#finalAcked = true;
    }
  }

  #returned(fromEpoch: number, nowNs: number): void {
    this.tap.returnFrom(fromEpoch);
    this.#captureVoid = true;
    if (this.tap.uncovered) this.policy.returned(nowNs);
    if (this.sender.inFlight === 0) this.#peer.epochsSettled(false, nowNs);
    if (this.#intent !== undefined) this.policy.force();
    else if (this.#stopped && this.#capturing === undefined) {
      this.#stopped = false;
      this.out.push({ type: 'run' });
    }
  }

  #giveBack(epoch: number, code: FaultCode): void {
    this.out.push({ type: 'returned', fromEpoch: epoch, code });
    this.sender.skipEpoch(epoch);
    this.tap.returnFrom(epoch);
    if (this.#intent === undefined && this.#stopped) {
      this.#stopped = false;
      this.out.push({ type: 'run' });
    }
  }

  #connectionLost(nowNs: number): void {
    this.#peer.lost(nowNs);
    this.#ready = false;
  }

  /** A lost peer, for longer than the grace: may the guest go on alone? */
  #seekAuthority(nowNs: number): void {
    if (this.#takingBack) {
      if (this.authority.recorded === '') this.#abandonHandover();
      return;
    }
    if (this.#passing || this.#peer.streamOpen) return;
    if (this.#peer.lostForNs(nowNs) < this.#config.graceNs) return;
    // With nobody else to ask, what the peer is about to say comes first: it may have taken over.
    if (this.#peer.aboutToSpeak(nowNs) && !this.#config.authority.arbiter) return;
    if (this.#intent?.kind === 'hand' && this.#config.authority.arbiter) {
      if (this.authority.handing) {
        this.#takingBack = true;
        this.authority.takeBack(nowNs);
      } else this.#abandonHandover();
      return;
    }
    // A guest that has ended does not run on; where an arbiter can exclude the standby, nobody need be asked.
    if (this.#intent?.kind === 'end' && this.#config.authority.arbiter) {
      this.authority.operatorGoOn(nowNs);
    }
    this.authority.goAlone(nowNs);
    if (!this.mayPass()) return;
    this.#passing = true;
    this.sender.expectedInstance = '';
    this.#peer.letGo();
    if (this.#intent?.kind === 'hand') this.#intent = undefined;
    this.sender.abandonPeer();
    // What waits for the next lease may be in a log that the standby committed and whose ACK was lost: it would take
    // nothing behind that log under the same numbers, so it starts anew.
    if (!this.authority.leaseValid(nowNs) && this.tap.heldCount > 0) this.sender.forceFull();
  }

  /** The guest stays here after all, and runs on. */
  #abandonHandover(): void {
    this.#intent = undefined;
    this.#endAlone = false;
    this.#takingBack = false;
    this.#finalAcked = false;
    if (this.#capturing !== undefined || !this.#stopped) return;
    this.#stopped = false;
    this.out.push({ type: 'run' });
  }

  /** Whether this run of the guest is over, because `other` is a generation of it that has begun. */
  protected isOver(other: number): boolean {
    return other > this.sender.generation;
  }

  /** Whether outputs may leave without an ACK (R3). */
  protected mayPass(): boolean {
    return this.authority.mayRunAlone;
  }

  /** What may leave, leaves. */
  #flushOutputs(nowNs: number): void {
    const lease = this.authority.leaseValid(nowNs);
    if (!lease) {
      this.tap.holding = true;
      return;
    }
    if (this.#passing) {
      this.tap.releaseAll();
      this.tap.holding = false;
    } else {
      this.tap.release(this.releasableEpoch(this.#ackedEpoch));
    }
    if (this.#stopped && this.#passing && this.#intent === undefined && !this.#capturing) {
      this.#stopped = false;
      this.out.push({ type: 'run' });
    }
  }

  /** The last epoch whose outputs may leave: the last one acknowledged (R1). */
  protected releasableEpoch(ackedEpoch: number): number {
    return ackedEpoch;
  }

  /** Hand-over and end: one step further, if one is possible. */
  #finish(nowNs: number): void {
    const intent = this.#intent;
    if (intent === undefined) return;
    const drained = this.tap.heldCount === 0 && this.tap.blockCount === 0;
    if (intent.kind === 'end' && this.#passing && drained) {
      // Nobody is protected: the record says so, or there is no peer at all.
      this.#over('ended');
      return;
    }
    if (this.#takingBack || !this.#finalAcked || !drained || this.sender.inFlight > 0) return;
    if (intent.kind === 'hand') {
      const { arbiter } = this.#config.authority;
      if (!this.authority.handed && (arbiter || this.sender.state === 'stream')) {
        this.authority.hand(nowNs);
      }
      if (!this.authority.handed) return;
      // From here on the guest never runs here again, whatever becomes of the message.
      if (this.sender.state === 'stream') {
        this.sender.handOver(this.sender.generation + 1);
        this.#peer.answerDue(nowNs);
      }
    } else if (this.sender.state === 'stream') {
      this.sender.end(intent.reason);
      this.#peer.answerDue(nowNs);
    }
  }

  #isDone(): boolean {
    return this.#phase === 'over' || this.#phase === 'fenced';
  }

  #connect(nowNs: number): void {
    if (this.#peer.connected || !this.#protect || this.#refused) return;
    // Whoever has the guest now is for the arbiter to say, before anybody is synchronised.
    if (this.#intent !== undefined && this.#endAlone) return;
    if (this.#config.authority.arbiter && (this.authority.handing || this.#takingBack)) return;
    if (this.#peer.dialDue(nowNs)) this.out.push({ type: 'connect' });
  }

  #capture(nowNs: number): void {
    if (!this.#ready || this.#capturing !== undefined || !this.sender.canOpen) return;
    if (nowNs < this.#captureAtNs) return;
    if (this.authority.handed || (this.#stopped && this.#intent === undefined)) return;
    if (this.#intent !== undefined && this.#finalAcked) return;
    const reason = this.#intent === undefined ? this.policy.due(nowNs) : 'forced';
    if (reason === undefined) {
      if (this.sender.canSendAhead && this.policy.preCopyDue(nowNs)) {
        const ahead = this.sender.sendAhead();
        this.#drainSender(nowNs);
        this.out.push({ type: 'pre-copy', epoch: ahead });
      }
      return;
    }
    const atomic = this.#intent !== undefined;
    const epoch = this.sender.nextEpoch;
    this.#capturing = { epoch, atomic };
    this.#captureVoid = false;
    this.out.push({ type: 'capture', epoch, atomic, reason });
  }

  #phaseNow(): PrimaryPhase {
    if (this.#isDone()) return this.#phase;
    if (this.#intent?.kind === 'hand') return 'handing';
    if (this.#intent?.kind === 'end') return 'ending';
    if (this.#peer.streamOpen) {
      const peer = this.sender.peer;
      const onRecord = peer !== undefined && this.authority.recorded === peer.instance;
      return !this.#passing && onRecord && this.#ackedSinceOpen ? 'protected' : 'joining';
    }
    return this.#passing ? 'alone' : 'lost';
  }

  #enter(phase: PrimaryPhase, sentence = ''): void {
    if (phase === this.#phase) return;
    this.#phase = phase;
    const why =
      phase === 'lost' && this.authority.waitsForOperator
        ? 'The standby is lost; outputs wait for it or for an operator.'
        : sentence;
    this.out.push({ type: 'phase', phase, sentence: why });
  }

  #fence(generation: number): void {
    if (this.#phase === 'over') return;
    this.tap.holding = true;
    this.tap.drop();
    this.#passing = false;
    this.sender.shutDown();
    this.#enter('fenced', `Generation ${generation} of this guest runs elsewhere.`);
    this.out.push({ type: 'fence', generation });
    for (let e = this.#senderOut.shift(); e !== undefined; e = this.#senderOut.shift()) {
      this.out.push(e);
    }
  }

  #over(why: 'ended' | 'handed-over'): void {
    if (this.#isDone()) return;
    this.tap.holding = true;
    this.sender.shutDown();
    this.#enter('over');
    this.out.push({ type: 'over', why });
  }

  #drainArbiter(): void {
    for (let e = this.#arbiterOut.shift(); e !== undefined; e = this.#arbiterOut.shift()) {
      this.out.push(e);
    }
  }
}
