/**
 * Authority: who may run the guest with its outputs enabled (R3). It comes from an arbiter's answer, an
 * operator's command, or the policy both ends chose at start; never from silence. One machine for each side.
 *
 * The arbiter keeps one record per guest: its generation, and which standby instance is in sync (none: ''). The
 * primary records "in sync" after that standby's ACK of a complete state and "out of sync" before its first
 * unprotected output; a standby acquires the next generation only when it is the one recorded. Requests are
 * numbered and made one at a time. Duty of whoever carries them out: an answer is given only when the request
 * can no longer take effect afterwards; `unreachable` says that it may or may not have taken effect.
 */
import { assert } from '../../base/assert.ts';
import type { EffectQueue } from './effects.ts';

/** A request to the arbiter. */
export type ArbiterRequest =
  /**
   * Primary of `generation`: set which standby instance is in sync ('' for none). It also takes the guest back
   * after `hand`, where nobody has acquired it since.
   */
  | { readonly kind: 'record'; readonly generation: number; readonly inSync: string }
  /** Primary of `generation`: give the guest up in favour of the standby in sync (planned switch-over). */
  | { readonly kind: 'hand'; readonly generation: number }
  /** Standby `instance` holding `generation`: become the primary of `generation + 1`. */
  | { readonly kind: 'acquire'; readonly generation: number; readonly instance: string };

/** What the arbiter said. */
export interface ArbiterAnswer {
  readonly ticket: number;
  readonly result: 'ok' | 'refused' | 'unreachable';
  /** The generation on record; 0 where unknown. */
  readonly generation: number;
  /** Why it refused, one sentence. */
  readonly sentence: string;
}

/** The effect both sides use. Answer with `arbiterAnswer` carrying the same ticket. */
export interface ArbiterEffect {
  readonly type: 'arbiter';
  readonly ticket: number;
  readonly request: ArbiterRequest;
}

/** How a side is set up. */
export interface AuthorityConfig {
  /** Whether there is an arbiter to ask. */
  readonly arbiter: boolean;
  /** What happens at the loss of the peer. Primary: 'go-on' or 'wait'. Standby: 'takeover' or 'wait'. */
  readonly onPeerLoss: 'wait' | 'go-on' | 'takeover';
  /** From one try to the next when the arbiter did not answer or refused. */
  readonly retryNs: number;
}

/** The primary's side. */
export class PrimaryAuthority {
  readonly #config: AuthorityConfig;
  readonly #generation: number;
  readonly #out: EffectQueue<ArbiterEffect>;
  /** What is on record: '' out of sync, an instance in sync, undefined not known. */
  #recorded: string | undefined = '';
  #wanted = '';
  #handing = false;
  #handed = false;
  #ticket = 0;
  #pending: ArbiterRequest | undefined;
  #retryAtNs = Number.NEGATIVE_INFINITY;
  #operatorSaysGoOn = false;
  #aloneWanted = false;
  #fencedBy = 0;
  #leaseUntilNs = Number.POSITIVE_INFINITY;

  /** At start the record says: this generation, nobody in sync. */
  constructor(generation: number, config: AuthorityConfig, out: EffectQueue<ArbiterEffect>) {
    this.#generation = generation;
    this.#config = config;
    this.#out = out;
  }

  /** The instance on record as in sync; '' for none, undefined while not known. */
  get recorded(): string | undefined {
    return this.#recorded;
  }

  /** The higher generation that the arbiter knows, 0 for none: this side is fenced. */
  get fencedBy(): number {
    return this.#fencedBy;
  }

  /** Whether the guest was given up at the arbiter. */
  get handed(): boolean {
    return this.#handed;
  }

  /** Whether giving the guest up was begun, or done. */
  get handing(): boolean {
    return this.#handing || this.#handed;
  }

  /** Whether the operator has to decide. */
  get waitsForOperator(): boolean {
    return this.#aloneWanted && this.#config.onPeerLoss !== 'go-on' && !this.#operatorSaysGoOn;
  }

  /** Whether outputs may leave without the peer's ACK: the record says so, and nothing is under way to change it. */
  get mayRunAlone(): boolean {
    if (this.#fencedBy !== 0 || this.#handed) return false;
    if (!this.#config.arbiter) return this.#wanted === '' && !this.waitsForOperator;
    return this.aloneIsRecorded();
  }

  /** Whether the arbiter has recorded that no standby is in sync. */
  protected aloneIsRecorded(): boolean {
    return this.#recorded === '' && this.#wanted === '' && this.#pending === undefined;
  }

  /** The standby `instance` holds a complete state and outputs are held: let it take over from now on. */
  peerInSync(instance: string, nowNs: number): void {
    this.#wanted = instance;
    this.#aloneWanted = false;
    this.#operatorSaysGoOn = false;
    this.#step(nowNs);
  }

  /** The peer is lost: ask to go on alone. Then look at {@link mayRunAlone}. */
  goAlone(nowNs: number): void {
    this.#aloneWanted = true;
    if (this.waitsForOperator) return;
    this.#wanted = '';
    this.#step(nowNs);
  }

  /** The peer is back before anything was decided. */
  peerBack(): void {
    this.#aloneWanted = false;
  }

  /** An operator takes the responsibility for going on without the peer. */
  operatorGoOn(nowNs: number): void {
    this.#operatorSaysGoOn = true;
    if (!this.#config.arbiter) this.#handed = false;
    if (this.#aloneWanted) this.goAlone(nowNs);
  }

  /** Planned switch-over: the guest stands still for good, everything it showed is out. Ends in {@link handed}. */
  hand(nowNs: number): void {
    if (!this.#config.arbiter) {
      this.#handed = true;
      return;
    }
    this.#handing = true;
    this.#step(nowNs);
  }

  /**
   * The standby is lost in the middle of a hand-over: ask for the guest back. Ends with `recorded` '' (it is
   * here again) or {@link fencedBy} (the standby has it).
   */
  takeBack(nowNs: number): void {
    this.#handing = false;
    this.#handed = false;
    this.#wanted = '';
    this.#recorded = undefined;
    this.#step(nowNs);
  }

  /** Time passes. */
  tick(nowNs: number): void {
    this.#step(nowNs);
  }

  /** The arbiter has spoken. */
  answer(answer: ArbiterAnswer, nowNs: number): void {
    const pending = this.#pending;
    if (pending === undefined || answer.ticket !== this.#ticket) return;
    this.#pending = undefined;
    if (answer.generation > this.#generation) {
      this.#fencedBy = answer.generation;
      return;
    }
    if (answer.result === 'ok') {
      if (pending.kind === 'hand') this.#handed = this.#handing;
      else if (pending.kind === 'record') this.#recorded = pending.inSync;
    } else {
      if (answer.result === 'unreachable') this.#recorded = undefined;
      this.#retryAtNs = nowNs + this.#config.retryNs;
    }
    this.#step(nowNs);
  }

  /** A lease arbiter has extended the lease (Infinity: no lease). Outputs stop when it runs out. */
  lease(untilNs: number): void {
    this.#leaseUntilNs = untilNs;
  }

  /** `generation` of the guest is on record. */
  superseded(generation: number): void {
    if (generation > this.#generation) this.#fencedBy = generation;
  }

  /** Whether the lease, if there is one, still runs. Asked before every release, and by the native submit. */
  leaseValid(nowNs: number): boolean {
    return nowNs < this.#leaseUntilNs;
  }

  #step(nowNs: number): void {
    if (!this.#config.arbiter) {
      this.#recorded = this.#wanted;
      return;
    }
    if (this.#pending !== undefined || this.#fencedBy !== 0 || this.#handed) return;
    if (nowNs < this.#retryAtNs) return;
    const generation = this.#generation;
    if (this.#handing) this.#ask({ kind: 'hand', generation });
    else if (this.#recorded !== this.#wanted) {
      this.#ask({ kind: 'record', generation, inSync: this.#wanted });
    }
  }

  #ask(request: ArbiterRequest): void {
    this.#pending = request;
    if (request.kind === 'record') this.#recorded = undefined;
    this.#out.push({ type: 'arbiter', ticket: ++this.#ticket, request });
  }
}

/** What the standby's authority wants from the standby machine. */
export type StandbyWish =
  | 'none'
  /** Stop answering the primary for good or until refused; then call {@link StandbyAuthority.detached}. */
  | 'detach'
  /** Answer the primary again. */
  | 'reattach'
  /** Authority is here. */
  | 'take-over';

/** The standby's side. */
export class StandbyAuthority {
  readonly #config: AuthorityConfig;
  readonly #instance: string;
  readonly #out: EffectQueue<ArbiterEffect>;
  readonly #suspectNs: number;
  #state: 'following' | 'detaching' | 'asking' | 'granted' = 'following';
  #wish: StandbyWish = 'none';
  #lostSinceNs = Number.POSITIVE_INFINITY;
  #retryAtNs = Number.NEGATIVE_INFINITY;
  #ticket = 0;
  #pending = false;
  #byWord = false;
  #generation = 0;
  #newGeneration = 0;
  #refusal = '';
  #refusals = 0;

  /**
   * @param instance this process, as in its HELLO
   * @param suspectNs how long a lost connection may stay lost before the arbiter is asked
   */
  constructor(
    instance: string,
    config: AuthorityConfig,
    suspectNs: number,
    out: EffectQueue<ArbiterEffect>,
  ) {
    this.#instance = instance;
    this.#config = config;
    this.#suspectNs = suspectNs;
    this.#out = out;
  }

  /** What the arbiter said when it last refused. */
  get refusal(): string {
    return this.#refusal;
  }

  /** The generation to run as, once granted. */
  get newGeneration(): number {
    return this.#newGeneration;
  }

  get granted(): boolean {
    return this.#state === 'granted';
  }

  /** What the standby machine has to do; reading it takes it. */
  takeWish(): StandbyWish {
    const wish = this.#wish;
    this.#wish = 'none';
    return wish;
  }

  /** A connection is up: whatever was suspected is over. */
  peerBack(): void {
    this.#lostSinceNs = Number.POSITIVE_INFINITY;
  }

  /** The two ends understand each other: the next loss is a new story. */
  agreed(): void {
    this.#refusals = 0;
  }

  /** The connection closed, or nothing was heard for too long: a hint. */
  peerLost(nowNs: number): void {
    this.#lostSinceNs = Math.min(this.#lostSinceNs, nowNs);
  }

  /**
   * Time passes.
   * @param eligible a first COMMIT is complete and the guest has not ended
   */
  tick(nowNs: number, eligible: boolean): void {
    if (this.#state === 'asking') {
      if (!this.#pending && nowNs >= this.#retryAtNs) this.#ask();
      return;
    }
    if (this.#state !== 'following' || !eligible || nowNs < this.#retryAtNs) return;
    if (nowNs - this.#lostSinceNs < this.#suspectNs) return;
    if (this.hintSuffices()) this.#detach(false);
  }

  /** Whether the loss of the primary is reason enough to seek authority. */
  protected hintSuffices(): boolean {
    return this.#config.arbiter || this.#config.onPeerLoss === 'takeover';
  }

  /** An operator orders the takeover. @returns why not, or undefined */
  order(eligible: boolean): string | undefined {
    if (!eligible) return 'This standby holds no complete state of a running guest.';
    if (this.#state === 'following') this.#detach(true);
    return undefined;
  }

  /** HANDOVER arrived: the primary has stopped the guest for good. */
  handover(): void {
    if (this.#state === 'following') this.#detach(true);
  }

  /** No ACK leaves any more and all that was committed is applied. */
  detached(generation: number): void {
    assert(this.#state === 'detaching', 'detaching was asked for');
    this.#generation = generation;
    if (this.#config.arbiter) {
      this.#state = 'asking';
      this.#ask();
    } else {
      // An operator's word or the policy of both ends; hintSuffices() let nothing else come here.
      this.#grant(generation + 1);
    }
  }

  /** The arbiter has spoken. */
  answer(answer: ArbiterAnswer, nowNs: number): void {
    if (this.#state !== 'asking' || !this.#pending || answer.ticket !== this.#ticket) return;
    this.#pending = false;
    if (answer.result === 'ok') {
      this.#grant(answer.generation);
      return;
    }
    // Wait longer from one refusal to the next, so that a primary that lives gets through in between.
    this.#retryAtNs = nowNs + this.#config.retryNs * 2 ** Math.min(this.#refusals++, 4);
    this.#refusal = answer.sentence;
    // Unreachable: it may have been granted, so this side stays detached and asks until it knows.
    if (answer.result === 'unreachable') return;
    this.#state = 'following';
    this.#byWord = false;
    this.#wish = 'reattach';
  }

  /** Whether a takeover under way was ordered by a person or handed over. */
  get byWord(): boolean {
    return this.#byWord;
  }

  #detach(byWord: boolean): void {
    this.#byWord = byWord;
    this.#state = 'detaching';
    this.#wish = 'detach';
  }

  #ask(): void {
    this.#pending = true;
    const { instance, generation } = { instance: this.#instance, generation: this.#generation };
    const request: ArbiterRequest = { kind: 'acquire', generation, instance };
    this.#out.push({ type: 'arbiter', ticket: ++this.#ticket, request });
  }

  #grant(newGeneration: number): void {
    this.#newGeneration = newGeneration;
    this.#state = 'granted';
    this.#wish = 'take-over';
  }
}
