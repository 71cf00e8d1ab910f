/**
 * The primary's connection to its standby as time sees it: whether there is one and its stream is open, when to dial again, how long the
 * peer has been lost, and whether an answer is overdue. Hints only; what they mean is for the primary machine (primary.ts).
 */
import { Liveness, type LivenessConfig } from './liveness.ts';

/** What is waited for, and how long. */
export interface PeerWatchConfig {
  readonly liveness: LivenessConfig;
  /** From one connection attempt to the next. */
  readonly reconnectNs: number;
  /** An answer that takes this long means that the peer is lost, although it may still speak. */
  readonly ackDeadlineNs: number;
}

const NEVER = Number.POSITIVE_INFINITY;

/** See the module's head. */
export class PeerWatch {
  readonly #config: PeerWatchConfig;
  readonly #liveness: Liveness;
  #connected = false;
  #streamOpen = false;
  /** An attempt to connect has not ended yet, or is the next thing to come. */
  #dialling = false;
  #dialAtNs = Number.NEGATIVE_INFINITY;
  #lostSinceNs = NEVER;
  /** When time was last looked at: a long gap means that this side was stopped. */
  #lookedNs = NEVER;
  /** Since when the oldest epoch in flight waits for its ACK. */
  #epochSinceNs = NEVER;
  /** Since when another answer is due: to HELLO and INIT, HANDOVER, END. */
  #answerSinceNs = NEVER;

  constructor(config: PeerWatchConfig) {
    this.#config = config;
    this.#liveness = new Liveness(config.liveness);
  }

  /** Whether there is a connection. */
  get connected(): boolean {
    return this.#connected;
  }

  /** Whether its stream is open: the standby has acknowledged INIT. */
  get streamOpen(): boolean {
    return this.#streamOpen;
  }

  /** A connection is up; HELLO waits for its answer. */
  connect(nowNs: number): void {
    this.#connected = true;
    this.#dialling = false;
    this.#answerSinceNs = nowNs;
    this.#liveness.start(nowNs);
  }

  /** The stream is open. */
  opened(): void {
    this.#streamOpen = true;
    this.#answerSinceNs = NEVER;
    this.#lostSinceNs = NEVER;
  }

  /** The connection is gone, or given up. */
  lost(nowNs: number): void {
    // A stream that was open is dialled again at once: a standby that has taken over says so before this side goes on alone.
    if (this.#connected && !this.#streamOpen) this.#dialAtNs = nowNs + this.#config.reconnectNs;
    // After a connection another one is going to be tried.
    this.#dialling = this.#connected;
    this.#connected = false;
    this.#streamOpen = false;
    this.#epochSinceNs = NEVER;
    this.#answerSinceNs = NEVER;
    if (this.#lostSinceNs === NEVER) this.#lostSinceNs = nowNs;
  }

  /** The guest goes on without the peer: it is not lost any more, but gone. */
  letGo(): void {
    this.#lostSinceNs = NEVER;
  }

  /** How long the peer has been lost; negative infinity while it is not. */
  lostForNs(nowNs: number): number {
    return nowNs - this.#lostSinceNs;
  }

  /** Whether to dial now; counts as an attempt. */
  dialDue(nowNs: number): boolean {
    if (this.#connected || nowNs < this.#dialAtNs) return false;
    this.#dialAtNs = nowNs + this.#config.reconnectNs;
    this.#dialling = true;
    return true;
  }

  /** The attempt to connect has failed: nobody is there. */
  dialFailed(): void {
    this.#dialling = false;
  }

  /**
   * Whether the peer may be about to say how things stand: it is connected and its HELLO is due, or an attempt to connect is under
   * way and the peer has not been lost for as long as a silence lasts.
   */
  aboutToSpeak(nowNs: number): boolean {
    if (this.#connected) return true;
    return this.#dialling && this.lostForNs(nowNs) < this.#config.liveness.deadlineNs;
  }

  /** Something was heard. */
  heard(nowNs: number): void {
    this.#liveness.heard(nowNs);
  }

  /** Whether to say something now. */
  sendDue(nowNs: number): boolean {
    return this.#connected && this.#liveness.sendDue(nowNs);
  }

  /** An epoch is on its way. */
  epochSent(nowNs: number): void {
    if (this.#epochSinceNs === NEVER) this.#epochSinceNs = nowNs;
  }

  /** Epochs were acknowledged or returned. @param more whether others still wait */
  epochsSettled(more: boolean, nowNs: number): void {
    this.#epochSinceNs = more ? nowNs : NEVER;
  }

  /** An answer other than the ACK of an epoch is due from now on. */
  answerDue(nowNs: number): void {
    this.#answerSinceNs = nowNs;
  }

  /** Whether the peer is silent, or an answer overdue. */
  dead(nowNs: number): boolean {
    if (!this.#connected) return false;
    const since = Math.min(this.#epochSinceNs, this.#answerSinceNs);
    return this.#liveness.silent(nowNs) || nowNs - since >= this.#config.ackDeadlineNs;
  }

  /** Time is looked at. @returns whether that was not done for as long as a silence lasts */
  overslept(nowNs: number): boolean {
    const slept = nowNs - this.#lookedNs >= this.#config.liveness.deadlineNs;
    this.#lookedNs = nowNs;
    return slept;
  }
}
