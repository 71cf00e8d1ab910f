/**
 * Authority from a store with linearizable compare-and-swap (an etcd cluster): one guest has two keys there. The *record* says
 * which generation runs and which standby is in sync; the *owner* key says who runs it, and counts beats. Whoever runs the guest
 * adds a beat again and again; from the moment a beat that succeeded was SENT its lease runs, and ends a margin earlier here
 * than anybody may take it elsewhere. Whoever wants the guest has to see the owner key unchanged for the whole lease, on its
 * own clock, and then swaps both keys in one transaction that names the revisions it saw.
 *
 * So nothing is trusted but the transaction: no clock or timer of the store counts (docs/decisions/0011). Pure: the shell and
 * the simulator carry out the effects. One call to the store is under way at a time. Two things are assumed: the clocks of both
 * hosts run equally fast to within the margin, and they count the time in which a process, or the host, was suspended.
 */

import { EffectQueue } from './effects.ts';
import type { ArbiterAnswer, ArbiterRequest } from './failover.ts';

/** The persistent part of a guest's state at the store. */
export interface GuestRecord {
  readonly generation: number;
  /** The standby instance that may take over; '' for none. */
  readonly inSync: string;
  /** The guest was given up in favour of that standby. */
  readonly handed: boolean;
  /** Token of the process that began this generation. */
  readonly by: string;
}

/** Who runs the guest. */
export interface OwnerRecord {
  readonly token: string;
  readonly beat: number;
  /** How long others have to see this key unchanged before they may take the guest. */
  readonly leaseNs: number;
}

/** Both keys, as one read shows them. A revision of 0: there is no such key. */
export interface StoreState {
  readonly recordRevision: number;
  readonly record: GuestRecord | undefined;
  readonly ownerRevision: number;
  readonly owner: OwnerRecord | undefined;
}

/** One transaction: happens only when both revisions are (still) those. */
export interface StoreWrite {
  readonly recordRevision: number;
  readonly ownerRevision: number;
  /** undefined: stays as it is. */
  readonly record: GuestRecord | undefined;
  /** undefined: the key is deleted. */
  readonly owner: OwnerRecord | undefined;
}

/** What has to be done. Calls are answered with the same number, or by {@link LeaseArbiter.failed}. */
export type LeaseEffect =
  /** Read both keys at once, linearizably. Answer: {@link LeaseArbiter.state}. */
  | { readonly type: 'read'; readonly call: number }
  /** Swap. Answer: {@link LeaseArbiter.written}, or {@link LeaseArbiter.state} with what is there instead. */
  | { readonly type: 'write'; readonly call: number; readonly write: StoreWrite }
  /** The answer to {@link LeaseArbiter.request}. */
  | { readonly type: 'answer'; readonly answer: ArbiterAnswer }
  /** {@link LeaseArbiter.begin} succeeded. */
  | { readonly type: 'began'; readonly generation: number }
  /** Outputs may leave until then and no longer. */
  | { readonly type: 'lease'; readonly untilNs: number }
  /** A later generation of the guest runs elsewhere: stop for good. */
  | { readonly type: 'superseded'; readonly generation: number }
  /** What goes wrong, for a person; '' when it is over. */
  | { readonly type: 'trouble'; readonly sentence: string }
  /** {@link LeaseArbiter.release} is through. */
  | { readonly type: 'released' };

/** How long things take. */
export interface LeaseConfig {
  /** Names this process; no other has the same. */
  readonly token: string;
  /** How long others wait after the last beat they saw. */
  readonly leaseNs: number;
  /** How much earlier outputs stop here: difference of the clocks, and what was released just before may still be on its way. */
  readonly marginNs: number;
  /** From one beat that succeeded to the next. */
  readonly beatNs: number;
  /** After a failure. */
  readonly retryNs: number;
}

type Job =
  | { readonly kind: 'begin' }
  | { readonly kind: 'request'; readonly ticket: number; readonly request: ArbiterRequest };

interface Call {
  readonly number: number;
  readonly sentNs: number;
  readonly write: StoreWrite | undefined;
  readonly job: Job | undefined;
}

/** See the module's head. */
export class LeaseArbiter {
  readonly out = new EffectQueue<LeaseEffect>();
  readonly #config: LeaseConfig;
  #job: Job | undefined;
  #call: Call | undefined;
  #calls = 0;
  /** What the keys are as far as is known; undefined where that may have changed. */
  #state: StoreState | undefined;
  /** The generation that this process runs as owner; 0 for none. */
  #holds = 0;
  #untilNs = Number.NEGATIVE_INFINITY;
  #nextBeatNs = 0;
  #retryAtNs = Number.NEGATIVE_INFINITY;
  /** Since when the owner key is seen unchanged. */
  #seen = { revision: -1, sinceNs: 0 };
  #trouble = '';
  #closing = false;

  constructor(config: LeaseConfig) {
    this.#config = config;
  }

  /** The generation that this process holds, or held last before its lease ran out; 0 for none. */
  get holds(): number {
    return this.#holds;
  }

  /** Until when outputs may leave. */
  get untilNs(): number {
    return this.#untilNs;
  }

  /** When {@link tick} has something to do next; Infinity for never. */
  get nextNs(): number {
    if (this.#call !== undefined) return Number.POSITIVE_INFINITY;
    if (this.#job !== undefined) return this.#retryAtNs;
    return this.#holds === 0 || this.#closing
      ? Number.POSITIVE_INFINITY
      : Math.max(this.#nextBeatNs, this.#retryAtNs);
  }

  /** A new guest starts here. Goes on trying until `began`, or until the owner of this stops asking. */
  begin(nowNs: number): void {
    this.#job = { kind: 'begin' };
    this.#state = undefined;
    this.#step(nowNs);
  }

  /** A request of the failover machine; one at a time, answered by the effect `answer`. */
  request(ticket: number, request: ArbiterRequest, nowNs: number): void {
    this.#job = { kind: 'request', ticket, request };
    if (this.#holds === 0) this.#state = undefined;
    this.#step(nowNs);
  }

  /**
   * Nothing leaves any more; the guest is given up, so that nobody has to wait for the lease's end. Tried once, then `released`.
   * Duty of the caller: the guest stands still for good.
   */
  release(nowNs: number): void {
    this.#closing = true;
    this.#job = undefined;
    this.#setLease(Number.NEGATIVE_INFINITY);
    if (this.#call === undefined) this.#giveUp(nowNs);
  }

  /** Time passes; called at {@link nextNs} at the latest. */
  tick(nowNs: number): void {
    this.#step(nowNs);
  }

  /** Both keys: the answer to a read, or to a write that came too late. */
  state(call: number, state: StoreState, nowNs: number): void {
    if (!this.#take(call)) return;
    this.#setTrouble('');
    if (state.ownerRevision !== this.#seen.revision) {
      // The beat was there when the answer arrived; when the question was sent it need not have been.
      this.#seen = { revision: state.ownerRevision, sinceNs: this.seenSince(nowNs) };
    }
    this.#state = state;
    this.#step(nowNs);
  }

  /** A write has happened, and gave what it wrote this revision. */
  written(call: number, revision: number, nowNs: number): void {
    const done = this.#call;
    if (!this.#take(call) || done?.write === undefined) return;
    this.#setTrouble('');
    const { write, job, sentNs } = done;
    const record = write.record ?? this.#state?.record;
    this.#state =
      record === undefined
        ? undefined
        : {
            record,
            recordRevision: write.record === undefined ? write.recordRevision : revision,
            owner: write.owner,
            ownerRevision: write.owner === undefined ? 0 : revision,
          };
    if (write.owner === undefined || record === undefined) {
      this.#holds = 0;
      this.#setLease(Number.NEGATIVE_INFINITY);
    } else if (!this.#closing) {
      this.#holds = record.generation;
      this.#nextBeatNs = sentNs + this.#config.beatNs;
      this.#setLease(this.leaseFrom(sentNs, nowNs) + this.#config.leaseNs - this.margin());
    }
    // So late an answer that the lease is over again: this side was stopped, or the way was slow. What it granted is asked for anew.
    const stale = write.owner !== undefined && this.#untilNs <= nowNs;
    if (job !== undefined && job === this.#job && !stale) {
      this.#job = undefined;
      const generation = record?.generation ?? 0;
      if (job.kind === 'begin') this.out.push({ type: 'began', generation });
      else this.#answer(job.ticket, 'ok', generation, '');
    }
    this.#step(nowNs);
  }

  /** A call has failed, or nobody knows what became of it. */
  failed(call: number, sentence: string, nowNs: number): void {
    const done = this.#call;
    if (!this.#take(call)) return;
    this.#setTrouble(sentence);
    this.#state = undefined;
    this.#retryAtNs = nowNs + this.#config.retryNs;
    if (this.#closing) this.#holds = 0;
    const job = this.#job;
    if (job?.kind === 'request' && job === done?.job) {
      this.#job = undefined;
      this.#answer(job.ticket, 'unreachable', 0, sentence);
    }
    this.#step(nowNs);
  }

  // --- what planted bugs replace

  /** From when a lease counts: the sending of the beat. Its answer may have been on its way for longer than the lease. */
  protected leaseFrom(sentNs: number, _answeredNs: number): number {
    return sentNs;
  }

  protected margin(): number {
    return this.#config.marginNs;
  }

  protected seenSince(answeredNs: number): number {
    return answeredNs;
  }

  /** Whether the owner has been silent for its whole lease. */
  protected leaseIsOver(leaseNs: number, sinceNs: number, nowNs: number): boolean {
    return nowNs - sinceNs >= leaseNs;
  }

  /** The revisions that a transaction insists on. */
  protected expected(state: StoreState): Pick<StoreWrite, 'recordRevision' | 'ownerRevision'> {
    return { recordRevision: state.recordRevision, ownerRevision: state.ownerRevision };
  }

  // --- inside

  #take(call: number): boolean {
    if (this.#call?.number !== call) return false;
    this.#call = undefined;
    return true;
  }

  #step(nowNs: number): void {
    if (this.#call !== undefined) return;
    if (this.#closing) {
      this.#giveUp(nowNs);
      return;
    }
    const job = this.#job;
    const beat = job === undefined && this.#holds !== 0 && nowNs >= this.#nextBeatNs;
    if (job === undefined && !beat) return;
    if (nowNs < this.#retryAtNs && job?.kind !== 'request') return;
    if (this.#state === undefined) this.#read(nowNs, job);
    else if (job === undefined) this.#beat(this.#state, nowNs);
    else if (job.kind === 'begin') this.#begin(this.#state, job, nowNs);
    else this.#carryOut(this.#state, job, nowNs);
  }

  #begin(state: StoreState, job: Job, nowNs: number): void {
    const { record } = state;
    const mine = this.#isMine(state);
    if (!mine && !this.#free(state, nowNs)) {
      this.#setTrouble('Another process runs this guest, or did a moment ago.');
      this.#state = undefined;
      this.#retryAtNs = nowNs + this.#config.retryNs;
      return;
    }
    // The answer to an earlier try may have been lost: then the record is there already.
    const generation =
      mine && record !== undefined ? record.generation : (record?.generation ?? 0) + 1;
    const next = { generation, inSync: '', handed: false, by: this.#config.token };
    this.#own(state, next, job, nowNs);
  }

  #carryOut(state: StoreState, job: Job & { kind: 'request' }, nowNs: number): void {
    const { record, owner } = state;
    const { request } = job;
    const { token } = this.#config;
    if (record === undefined) {
      this.#refuse(job, 0, 'There is no record of this guest.');
      return;
    }
    const mine = this.#isMine(state);
    if (request.kind === 'acquire') {
      const { generation } = request;
      if (record.generation === generation + 1 && record.by === token) {
        // An earlier answer was lost on its way.
        if (owner === undefined || mine) this.#own(state, undefined, job, nowNs);
        else this.#refuse(job, record.generation, 'Another process holds this guest.');
      } else if (record.generation !== generation) {
        this.#refuse(job, record.generation, 'Another generation of this guest is on record.');
      } else if (record.inSync !== request.instance) {
        this.#refuse(job, generation, 'This standby is not on record as in sync.');
      } else if (!this.#free(state, nowNs)) {
        this.#refuse(job, generation, 'The lease of the primary has not run out.');
      } else {
        const next = { generation: generation + 1, inSync: '', handed: false, by: token };
        this.#own(state, next, job, nowNs);
      }
      return;
    }
    if (record.generation !== request.generation) {
      this.#lose(record.generation);
      this.#refuse(job, record.generation, 'Another generation of this guest is on record.');
    } else if (owner !== undefined && !mine) {
      this.#refuse(job, record.generation, 'Another process holds this guest.');
    } else if (request.kind === 'hand') {
      if (owner === undefined && record.handed) {
        // Done by an earlier try.
        this.#job = undefined;
        this.#holds = 0;
        this.#setLease(Number.NEGATIVE_INFINITY);
        this.#answer(job.ticket, 'ok', record.generation, '');
      } else {
        this.#write(state, { record: { ...record, handed: true }, owner: undefined }, job, nowNs);
      }
    } else {
      // Written even where nothing would change, so that an earlier try of unknown fate can have no effect any more.
      this.#own(state, { ...record, handed: false, inSync: request.inSync }, job, nowNs);
    }
  }

  #beat(state: StoreState, nowNs: number): void {
    const { record, owner } = state;
    if (record === undefined) {
      this.#setTrouble('The record of this guest is gone.');
      this.#state = undefined;
      this.#retryAtNs = nowNs + this.#config.retryNs;
    } else if (
      record.generation !== this.#holds ||
      (owner !== undefined && owner.token !== this.#config.token)
    ) {
      this.#lose(Math.max(record.generation, this.#holds));
    } else if (owner === undefined && record.handed) {
      // Given up by a try whose answer was lost; the failover machine asks again.
      this.#holds = 0;
      this.#setLease(Number.NEGATIVE_INFINITY);
    } else {
      this.#own(state, undefined, undefined, nowNs);
    }
  }

  /** Whether nobody runs the guest: it was given up, or its owner has been silent for as long as a lease lasts. */
  #free({ record, owner }: StoreState, nowNs: number): boolean {
    if (owner === undefined && (record === undefined || record.handed)) return true;
    // Somebody else may have deleted the owner key: its lease runs on without it.
    const leaseNs = Math.max(owner?.leaseNs ?? 0, this.#config.leaseNs);
    return this.leaseIsOver(leaseNs, this.#seen.sinceNs, nowNs);
  }

  #giveUp(nowNs: number): void {
    const state = this.#state;
    if (this.#holds !== 0 && state === undefined) {
      this.#read(nowNs, undefined);
    } else if (this.#holds !== 0 && state?.record !== undefined && this.#isMine(state)) {
      const record = { ...state.record, handed: true };
      this.#write(state, { record, owner: undefined }, undefined, nowNs);
    } else {
      this.#holds = 0;
      this.out.push({ type: 'released' });
    }
  }

  #isMine({ owner }: StoreState): boolean {
    return owner?.token === this.#config.token;
  }

  /** This process has the guest no longer. */
  #lose(generation: number): void {
    if (this.#holds === 0) return;
    const newer = generation > this.#holds;
    this.#holds = 0;
    this.#state = undefined;
    this.#setLease(Number.NEGATIVE_INFINITY);
    if (newer) this.out.push({ type: 'superseded', generation });
    else this.#setTrouble('Another process holds this guest.');
  }

  /** Writes the owner key with one beat more. */
  #own(
    state: StoreState,
    record: GuestRecord | undefined,
    job: Job | undefined,
    nowNs: number,
  ): void {
    const { token, leaseNs } = this.#config;
    const beat = (state.owner?.token === token ? state.owner.beat : 0) + 1;
    this.#write(state, { record, owner: { token, beat, leaseNs } }, job, nowNs);
  }

  #read(nowNs: number, job: Job | undefined): void {
    const number = ++this.#calls;
    this.#call = { number, sentNs: nowNs, write: undefined, job };
    this.out.push({ type: 'read', call: number });
  }

  #write(
    state: StoreState,
    to: Pick<StoreWrite, 'record' | 'owner'>,
    job: Job | undefined,
    nowNs: number,
  ): void {
    const write = { ...this.expected(state), ...to };
    const number = ++this.#calls;
    this.#call = { number, sentNs: nowNs, write, job };
    this.out.push({ type: 'write', call: number, write });
  }

  #refuse(job: Job & { kind: 'request' }, generation: number, sentence: string): void {
    this.#job = undefined;
    this.#state = undefined;
    this.#answer(job.ticket, 'refused', generation, sentence);
  }

  #answer(
    ticket: number,
    result: ArbiterAnswer['result'],
    generation: number,
    sentence: string,
  ): void {
    this.out.push({ type: 'answer', answer: { ticket, result, generation, sentence } });
  }

  #setLease(untilNs: number): void {
    if (untilNs === this.#untilNs) return;
    this.#untilNs = untilNs;
    this.out.push({ type: 'lease', untilNs });
  }

  #setTrouble(sentence: string): void {
    if (sentence === this.#trouble) return;
    this.#trouble = sentence;
    this.out.push({ type: 'trouble', sentence });
  }
}
