/**
 * The standby as a whole: receiver, liveness and authority composed, still without I/O. The shell feeds it what
 * happens and carries out its effects; the simulator does the same. When authority is granted the shell
 * builds a primary machine from the new generation and this one only turns the old primary away.
 */
import type { FrameHeader } from '../wire/codec.ts';
import type { DecodeFault } from '../wire/decoder.ts';
import { FAULT, type Fault, type FaultCode } from '../wire/fault.ts';
import type { Hello, Message } from '../wire/message.ts';
import { EffectQueue } from './effects.ts';
import {
  type ArbiterAnswer,
  type ArbiterEffect,
  type AuthorityConfig,
  StandbyAuthority,
} from './failover.ts';
import { Liveness, type LivenessConfig } from './liveness.ts';
import { Receiver, type ReceiverEffect } from './receiver.ts';

/** How a standby is set up. */
export interface StandbyConfig {
  /** What this end announces; the state fields are filled in. */
  readonly hello: Hello;
  readonly authority: AuthorityConfig;
  readonly liveness: LivenessConfig;
  /** How long a lost connection may stay lost before authority is sought. */
  readonly suspectNs: number;
}

/** What the shell does for the standby. Receiver effects keep their duties (receiver.ts). */
export type StandbyEffect =
  | ReceiverEffect
  | ArbiterEffect
  /**
   * Authority is here, as `generation`; everything committed is applied. Duty, in this order: create the vCPUs
   * and load the state, replay the log, kick every queue, announce the MAC addresses, run; with a
   * primary machine of that generation in front of the outputs.
   */
  | { readonly type: 'take-over'; readonly generation: number }
  /** The arbiter said no; the standby goes on listening. */
  | { readonly type: 'take-over-refused'; readonly sentence: string };

/** The parts that a test may replace. */
export interface StandbyParts {
  receiver(hello: Hello, out: EffectQueue<ReceiverEffect>): Receiver;
  authority(
    instance: string,
    config: AuthorityConfig,
    suspectNs: number,
    out: EffectQueue<ArbiterEffect>,
  ): StandbyAuthority;
}

const PARTS: StandbyParts = {
  receiver: (hello, out) => new Receiver(hello, out),
  authority: (instance, config, suspectNs, out) =>
    new StandbyAuthority(instance, config, suspectNs, out),
};

/** The standby machine. */
export class Standby {
  readonly out = new EffectQueue<StandbyEffect>();
  readonly receiver: Receiver;
  readonly authority: StandbyAuthority;
  readonly #liveness: Liveness;
  readonly #receiverOut = new EffectQueue<ReceiverEffect>();
  readonly #arbiterOut = new EffectQueue<ArbiterEffect>();
  #connected = false;
  #detaching = false;
  #takenOver = false;

  constructor(config: StandbyConfig, parts: StandbyParts = PARTS) {
    this.receiver = parts.receiver(config.hello, this.#receiverOut);
    this.authority = parts.authority(
      config.hello.instance,
      config.authority,
      config.suspectNs,
      this.#arbiterOut,
    );
    this.#liveness = new Liveness(config.liveness);
  }

  /** Whether this standby may seek authority at all: a complete state of a guest that has not ended. */
  get eligible(): boolean {
    return this.mayEverTakeOver();
  }

  protected mayEverTakeOver(): boolean {
    return this.receiver.complete && !this.receiver.ended;
  }

  /** Whether the guest was taken over here. */
  get takenOver(): boolean {
    return this.#takenOver;
  }

  /** A primary has connected; any earlier connection is gone. */
  connected(nowNs: number): void {
    if (this.#takenOver || this.receiver.state === 'closed') {
      this.#turnAway();
      return;
    }
    this.#connected = true;
    this.#liveness.start(nowNs);
    this.authority.peerBack();
    this.receiver.connected();
    this.#settle(nowNs);
  }

  /** The connection is gone. */
  disconnected(nowNs: number): void {
    this.#connected = false;
    this.receiver.disconnected();
    this.authority.peerLost(nowNs);
    this.#settle(nowNs);
  }

  /** The decoder asks about a frame. */
  admit(header: FrameHeader): FaultCode | 0 {
    return this.receiver.admit(header);
  }

  /** A message from the primary. */
  message(message: Message, nowNs: number): void {
    this.#liveness.heard(nowNs);
    this.receiver.receive(message);
    this.#settle(nowNs);
  }

  /** The decoder found something wrong. */
  decodeFault(found: DecodeFault, nowNs: number): void {
    this.receiver.fault(found);
    this.#settle(nowNs);
  }

  /** The shell has validated a transaction. */
  validated(id: number, wrong: Fault | undefined, nowNs: number): void {
    this.receiver.validated(id, wrong);
    this.#settle(nowNs);
  }

  /** The shell has applied a transaction. */
  applied(id: number, degraded: boolean, nowNs: number): void {
    this.receiver.applied(id, degraded);
    this.#settle(nowNs);
  }

  /** The arbiter has answered. */
  arbiterAnswer(answer: ArbiterAnswer, nowNs: number): void {
    this.authority.answer(answer, nowNs);
    this.#settle(nowNs);
  }

  /** An operator orders the takeover. @returns why not, or undefined when it is under way */
  orderTakeover(nowNs: number): string | undefined {
    const refused = this.authority.order(this.eligible);
    this.#settle(nowNs);
    return refused;
  }

  /**
   * Time passes; called at least every liveness interval.
   * @param reading whether anything is read from the connection now: who is not listened to cannot be silent
   */
  tick(nowNs: number, reading = true): void {
    if (this.#takenOver) return;
    if (this.#connected) {
      if (!reading) this.#liveness.heard(nowNs);
      if (this.#liveness.sendDue(nowNs)) this.receiver.heartbeat();
      if (this.#liveness.silent(nowNs)) {
        this.#connected = false;
        this.out.push({
          type: 'close',
          code: FAULT.PEER_SILENT,
          sentence: 'The primary is silent.',
        });
        this.receiver.disconnected();
        this.authority.peerLost(nowNs);
      }
    }
    this.authority.tick(nowNs, this.eligible);
    this.#settle(nowNs);
  }

  #turnAway(): void {
    const generation = this.authority.granted
      ? this.authority.newGeneration
      : this.receiver.generation;
    const code = this.#takenOver ? FAULT.TAKEN_OVER : FAULT.STATE_INVALID;
    const sentence = this.#takenOver
      ? 'The standby has taken over.'
      : 'The standby is asking for authority.';
    const message: Message = { cmd: 'NACK', generation, id: 0, seq: 0, code, sentence };
    this.out.push({ type: 'send', message });
    this.out.push({ type: 'close', code, sentence });
  }

  #settle(nowNs: number): void {
    this.#forward(nowNs);
    switch (this.authority.takeWish()) {
      case 'detach':
        this.#detaching = true;
        this.#connected = false;
        this.receiver.detach(FAULT.SUPERSEDED);
        this.#forward(nowNs);
        break;
      case 'reattach':
        this.receiver.reattach();
        this.out.push({ type: 'take-over-refused', sentence: this.authority.refusal });
        break;
      default:
        break;
    }
    // What was acknowledged is rolled forward before anybody is asked: a takeover finds it applied.
    if (this.#detaching && this.receiver.appliedId === this.receiver.committedId) {
      this.#detaching = false;
      this.authority.detached(this.receiver.generation);
    }
    for (let e = this.#arbiterOut.shift(); e !== undefined; e = this.#arbiterOut.shift()) {
      this.out.push(e);
    }
    if (this.authority.granted && !this.#takenOver) {
      this.authority.takeWish();
      this.#takenOver = true;
      this.out.push({ type: 'take-over', generation: this.authority.newGeneration });
    }
  }

  #forward(nowNs: number): void {
    for (let e = this.#receiverOut.shift(); e !== undefined; e = this.#receiverOut.shift()) {
      if (e.type === 'handover') this.authority.handover();
      else if (e.type === 'close') {
        this.#connected = false;
        this.authority.peerLost(nowNs);
      } else if (e.type === 'agreed') this.authority.agreed();
      this.out.push(e);
    }
  }
}
