/** What lies outside the two hosts: the shared disk and the arbiter. */
import type { Prng } from '../../src/base/prng.ts';
import type { ArbiterAnswer, ArbiterRequest } from '../../src/ft/core/failover.ts';
import { SECTORS, SLOT_OP } from './guest.ts';
import type { Schedule } from './schedule.ts';

/** Whoever writes to the disk. */
export interface DiskUser {
  readonly alive: boolean;
  diskDone(slot: number, ok: boolean): void;
}

interface Pending {
  readonly user: DiskUser;
  readonly op: number;
  readonly sector: number;
  readonly value: number;
  done: boolean;
}

/** A disk both hosts reach. What is completed is on the medium; what is not may be. */
export class SharedDisk {
  readonly sectors = new Uint32Array(SECTORS);
  readonly #schedule: Schedule;
  readonly #prng: Prng;
  readonly #pending = new Set<Pending>();
  /** Chance that a request fails (EIO, ENOSPC). */
  failing = 0;
  latency = 60;

  constructor(schedule: Schedule, prng: Prng) {
    this.#schedule = schedule;
    this.#prng = prng;
  }

  submit(user: DiskUser, slot: number, op: number, sector: number, value: number): void {
    const pending: Pending = { user, op, sector, value, done: false };
    this.#pending.add(pending);
    const ok = !this.#prng.chance(this.failing);
    this.#schedule.after(5 + this.#prng.below(this.latency), () => {
      if (pending.done) return;
      this.#finish(pending, ok);
      user.diskDone(slot, ok);
    });
  }

  #finish(pending: Pending, apply: boolean): void {
    pending.done = true;
    this.#pending.delete(pending);
    if (apply && pending.op === SLOT_OP.write) this.sectors[pending.sector] = pending.value;
  }

  /** A user dies: each of its requests in flight has reached the medium or never will. */
  died(user: DiskUser): void {
    for (const pending of [...this.#pending]) {
      if (pending.user === user) this.#finish(pending, this.#prng.chance(0.5));
    }
  }
}

/** Whoever asks the arbiter. */
export interface ArbiterUser {
  /** Stays the same for the life of a process. */
  readonly instance: string;
  readonly alive: boolean;
  arbiterAnswer(answer: ArbiterAnswer): void;
}

/** A lock on shared storage with a record in it; held as long as its holder's process lives. */
export class LockArbiter {
  generation = 0;
  inSync = '';
  holder: ArbiterUser | undefined;
  #handedBy: ArbiterUser | undefined;
  readonly #schedule: Schedule;
  readonly #prng: Prng;
  /** Chance that a request, or its answer, is lost. */
  failing = 0;
  latency = 100;

  constructor(schedule: Schedule, prng: Prng) {
    this.#schedule = schedule;
    this.#prng = prng;
  }

  /** An operator starts the guest: the record begins anew. */
  start(user: ArbiterUser, generation: number): void {
    this.generation = generation;
    this.holder = user;
    this.inSync = '';
    this.#handedBy = undefined;
  }

  /** The same process, now in the other role. */
  transfer(from: ArbiterUser, to: ArbiterUser): void {
    if (this.holder === from) this.holder = to;
  }

  /** A process has died; `later`: its host vanished, and the lock is only given up after a while. */
  died(user: ArbiterUser, later: boolean): void {
    this.#schedule.after(later ? 500 : 0, () => {
      if (this.holder === user) this.holder = undefined;
    });
  }

  request(user: ArbiterUser, ticket: number, request: ArbiterRequest): void {
    const unheard = this.#prng.chance(this.failing);
    const lost = this.#prng.chance(this.failing);
    this.#schedule.after(5 + this.#prng.below(this.latency), () => {
      const { result, sentence } =
        unheard || !user.alive
          ? { result: 'unreachable' as const, sentence: '' }
          : this.#decide(user, request);
      const answer: ArbiterAnswer = lost
        ? { ticket, result: 'unreachable', generation: 0, sentence: 'no answer' }
        : {
            ticket,
            result,
            generation: result === 'unreachable' ? 0 : this.generation,
            sentence,
          };
      this.#schedule.after(this.#prng.below(this.latency), () => user.arbiterAnswer(answer));
    });
  }

  #decide(
    user: ArbiterUser,
    request: ArbiterRequest,
  ): { result: 'ok' | 'refused'; sentence: string } {
    const ok = { result: 'ok' as const, sentence: '' };
    const no = (sentence: string) => ({ result: 'refused' as const, sentence });
    switch (request.kind) {
      case 'record':
        if (this.generation !== request.generation) return no('another generation is on record');
        if (this.holder !== undefined && this.holder !== user) return no('the lock is held');
        this.holder = user;
        this.inSync = request.inSync;
        return ok;
      case 'hand':
        if (this.#handedBy === user && this.generation === request.generation) return ok;
        if (this.holder !== user || this.generation !== request.generation) return no('not holder');
        this.#handedBy = user;
        this.holder = undefined;
        return ok;
      case 'acquire':
        if (this.holder === user && this.generation === request.generation + 1) return ok;
        if (this.holder !== undefined) return no('the lock is held');
        if (this.generation !== request.generation) return no('another generation is on record');
        if (this.inSync !== request.instance) return no('not in sync');
        this.holder = user;
        this.generation++;
        this.inSync = '';
        this.#handedBy = undefined;
        return ok;
    }
  }
}
