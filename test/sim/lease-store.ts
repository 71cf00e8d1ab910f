/**
 * The arbiter with leases, simulated: a store with compare-and-swap that both hosts reach over lines of their own, which are slow,
 * lossy or cut, and the real lease machine (src/ft/core/lease-arbiter.ts) in each process. The store has no clock: every lease
 * is measured by the processes, whose clocks run differently, and run on while a process is stopped.
 */
import type { Prng } from '../../src/base/prng.ts';
import type { ArbiterAnswer, ArbiterRequest } from '../../src/ft/core/failover.ts';
import type { LeaseConfig, StoreState, StoreWrite } from '../../src/ft/core/lease-arbiter.ts';
import { ANY_REVISION, makeLeaseArbiter, type Planted } from './planted.ts';
import { SimProcess } from './process.ts';
import type { Schedule } from './schedule.ts';
import type { World } from './world.ts';

/** How long nobody else takes the guest after a beat. */
const LEASE = 4000;
/**
 * How much earlier outputs stop: clocks differ by up to 22 %, and what was given to a disk just before may take that long. The
 * client's patience is longer than that, so a lease that counts from an answer would be too long.
 */
const MARGIN = 0.23 * LEASE + 850;
const PATIENCE = 2400;
/** How often a guest that is to start looks whether it may. */
const EAGER = 50;

/** What the clients of the store share. */
export class LeaseStore {
  state: StoreState = { recordRevision: 0, record: undefined, ownerRevision: 0, owner: undefined };
  /** Chance that a call, or its answer, is lost. */
  failing = 0;
  latency = 100;
  /** By host: how much longer answers take. */
  readonly lag = [0, 0];
  /** Hosts that do not reach the store. */
  readonly cut = [false, false];
  #revision = 0;
  readonly #schedule: Schedule;
  readonly #prng: Prng;

  constructor(schedule: Schedule, prng: Prng) {
    this.#schedule = schedule;
    this.#prng = prng;
  }

  /** Carries `call` to the store and its result back, each of which may never arrive. */
  call<T>(host: number, call: () => T, answered: (result: T) => void): void {
    const prng = this.#prng;
    if (this.cut[host] || prng.chance(this.failing)) return;
    this.#schedule.after(5 + prng.below(this.latency), () => {
      if (this.cut[host]) return;
      const result = call();
      if (prng.chance(this.failing)) return;
      this.#schedule.after(this.lag[host]! + prng.below(this.latency), () => {
        if (!this.cut[host]) answered(result);
      });
    });
  }

  /** @returns the new revision, or 0 where other revisions are there */
  swap(write: StoreWrite): number {
    const { state } = this;
    const fits = (expected: number, is: number): boolean =>
      expected === ANY_REVISION || expected === is;
    if (!fits(write.recordRevision, state.recordRevision)) return 0;
    if (!fits(write.ownerRevision, state.ownerRevision)) return 0;
    const revision = ++this.#revision;
    this.state = {
      record: write.record ?? state.record,
      recordRevision: write.record === undefined ? state.recordRevision : revision,
      owner: write.owner,
      ownerRevision: write.owner === undefined ? 0 : revision,
    };
    return revision;
  }
}

/** Whose authority a client looks after. */
export interface LeaseUser extends SimProcess {
  arbiterAnswer(answer: ArbiterAnswer): void;
  leaseChanged(untilNs: number): void;
  superseded(generation: number): void;
}

/** The lease machine of one process. It stays with the process when that changes its role. */
export class LeaseClient {
  user: LeaseUser;
  /** Called when a guest may start here. */
  began: ((generation: number) => void) | undefined;
  readonly #machine: ReturnType<typeof makeLeaseArbiter>;
  readonly #store: LeaseStore;
  readonly #schedule: Schedule;

  constructor(user: LeaseUser, bug: Planted | undefined, retryNs = 200) {
    this.user = user;
    this.#store = user.world.leases;
    this.#schedule = user.world.schedule;
    const config: LeaseConfig = {
      token: user.instance,
      leaseNs: LEASE,
      marginNs: MARGIN,
      beatNs: 600,
      retryNs,
    };
    this.#machine = makeLeaseArbiter(bug, config);
  }

  get untilNs(): number {
    return this.#machine.untilNs;
  }

  begin(): void {
    this.#machine.begin(this.user.now);
    this.#run();
  }

  request(ticket: number, request: ArbiterRequest): void {
    this.#machine.request(ticket, request, this.user.now);
    this.#run();
  }

  tick(): void {
    if (this.user.now < this.#machine.nextNs) return;
    this.#machine.tick(this.user.now);
    this.#run();
  }

  #run(): void {
    const { out } = this.#machine;
    for (let e = out.shift(); e !== undefined; e = out.shift()) {
      switch (e.type) {
        case 'read':
          this.#call(
            e.call,
            () => this.#store.state,
            (state) => this.#machine.state(e.call, state, this.user.now),
          );
          break;
        case 'write':
          this.#call(
            e.call,
            () => this.#store.swap(e.write) || this.#store.state,
            (result) => {
              if (typeof result === 'number') this.#machine.written(e.call, result, this.user.now);
              else this.#machine.state(e.call, result, this.user.now);
            },
          );
          break;
        case 'answer':
          this.user.arbiterAnswer(e.answer);
          break;
        case 'began':
          this.began?.(e.generation);
          break;
        case 'lease':
          this.user.leaseChanged(e.untilNs);
          break;
        case 'superseded':
          this.user.superseded(e.generation);
          break;
        default:
          break;
      }
    }
  }

  #call<T>(number: number, call: () => T, answered: (result: T) => void): void {
    const { host } = this.user;
    const here = (run: () => void): void => {
      this.user.handle(() => {
        run();
        this.#run();
      });
    };
    this.#store.call(host, call, (result) => here(() => answered(result)));
    this.#schedule.after(PATIENCE, () =>
      here(() => this.#machine.failed(number, 'no answer', this.user.now)),
    );
  }
}

/** A process that an operator started to run the guest from scratch, and that waits for authority. */
export class StartingProcess extends SimProcess implements LeaseUser {
  readonly client: LeaseClient;

  constructor(world: World, host: number, instance: string) {
    super(world, host, instance);
    this.client = new LeaseClient(this, world.bug, EAGER);
    this.client.began = (generation) => world.began(this, generation);
    this.post(0, () => {
      this.client.begin();
      this.#tick();
    });
    // An operator does not wait for ever: somebody else runs the guest.
    this.post(3 * LEASE, () => this.die(false));
  }

  get name(): string {
    return `host-${'ab'[this.host]}/starting`;
  }

  #tick(): void {
    this.client.tick();
    this.post(EAGER, () => this.#tick());
  }

  arbiterAnswer(): void {}
  leaseChanged(): void {}
  superseded(): void {}
  accepted(): void {}
  protected carryOut(): void {}
  protected received(): void {}
  protected lost(): void {}
}
