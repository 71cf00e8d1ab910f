/**
 * The whole simulated world of one seed: two hosts, the line between them, the client, the disk, the arbiter, an
 * operator who knows the truth and acts on it, and the faults. Everything is drawn from the seed; the same seed
 * gives the same run, to the last byte.
 *
 * A run has a safety phase, in which things break, and a liveness phase, in which nothing breaks any more and
 * protection and progress must come back by themselves (R7).
 */
import { AssertionError } from '../../src/base/assert.ts';
import { Prng } from '../../src/base/prng.ts';
import type { PrimaryPhase } from '../../src/ft/core/primary-types.ts';
import { continues } from '../../src/ft/disk/storage.ts';
import { Checker, OutsideView, Violation } from './checkers.ts';
import { type Config, drawConfig, type FaultKind, guestHasDisks } from './config.ts';
import { Faults } from './faults.ts';
import { blockOfRequest, mix, SECTORS, SimGuest } from './guest.ts';
import { type LeaseClient, LeaseStore, StartingProcess } from './lease-store.ts';
import { Connection, type Network } from './network.ts';
import { Operator } from './operator.ts';
import { LockArbiter, SharedDisk } from './outside.ts';
import { DISK_BUGS, LEASE_BUGS, type Planted } from './planted.ts';
import { faultsFor } from './planted-disks.ts';
import { PrimaryProcess } from './primary-process.ts';
import type { SimProcess } from './process.ts';
import { Schedule } from './schedule.ts';
import { StandbyProcess } from './standby-process.ts';
import { HostStorage } from './storage.ts';

/** What a run did, for statistics and for proving that two runs are the same. */
export interface Tally {
  outputs: number;
  answered: number;
  repeated: number;
  takeovers: number;
  /** Copies that were offered what a lost primary's host still had. */
  returns: number;
  coldStarts: number;
  faults: number;
  commits: number;
  effects: number;
  ended: boolean;
  time: number;
}

/** How a seed is run. */
export interface RunOptions {
  readonly bug?: Planted | undefined;
  /** Collects what happened. */
  readonly trace?: string[] | undefined;
  /** Whether the disks are replicated; undefined: as the seed says. */
  readonly replicated?: boolean | undefined;
  /** What befalls; undefined: as the seed says. */
  readonly faults?: readonly FaultKind[] | undefined;
}

/** Set the draws for leases, and for replicated disks, apart from the others. */
const LEASE_SEED = 2 ** 41;
const DISK_SEED = 2 ** 42;

const HEX = (n: number, digits: number): string => n.toString(16).padStart(digits, '0');

export class World {
  readonly schedule = new Schedule();
  readonly prng: Prng;
  readonly config: Config;
  readonly bug: Planted | undefined;
  readonly checker = new Checker();
  readonly client = new OutsideView();
  readonly disk: SharedDisk;
  readonly arbiter: LockArbiter;
  /** The arbiter with leases, where the seed has that one. */
  readonly leases: LeaseStore;
  readonly network: Network;
  /** Of each host, where the guest's disks are replicated. */
  readonly storage: readonly HostStorage[];
  /** Scratch memories in use. */
  scratch = 0;
  readonly tally: Tally;
  readonly trace: string[] | undefined;
  readonly faults = new Faults(this);
  readonly operator = new Operator(this);
  /** By host. */
  readonly processes: (SimProcess | undefined)[] = [undefined, undefined];
  /** By host: when the operator starts it again. */
  readonly downUntil = [0, 0];
  #instances = 0;
  #incarnation = 0;
  #generation = 0;
  #ended = false;
  #protectedNow = false;
  /** What was found where throwing it would not end the run. */
  #found: unknown;
  /** By block: the last answered request whose write went there, of this start of the guest. */
  readonly #answered = new Map<number, number>();

  constructor(seed: number, { bug, trace, replicated, faults }: RunOptions = {}) {
    this.prng = new Prng(seed);
    this.bug = bug;
    this.trace = trace;
    const diskBug = bug !== undefined && DISK_BUGS.includes(bug);
    this.config = drawConfig(this.prng, new Prng(seed + LEASE_SEED), new Prng(seed + DISK_SEED), {
      onlyLeases: bug !== undefined && LEASE_BUGS.includes(bug),
      replicated: diskBug ? true : (replicated ?? (bug === undefined ? undefined : false)),
      faults: diskBug ? faultsFor(bug) : faults,
    });
    this.storage = this.config.replicated ? [new HostStorage(this), new HostStorage(this)] : [];
    this.disk = new SharedDisk(this.schedule, this.prng);
    this.arbiter = new LockArbiter(this.schedule, this.prng);
    this.leases = new LeaseStore(this.schedule, this.prng);
    this.network = {
      schedule: this.schedule,
      prng: this.prng,
      meddling: { flip: 0, drop: 0, double: 0, repeat: 0 },
      delay: this.config.delay,
      partitioned: false,
      connections: new Set(),
      acks: [],
    };
    this.tally = {
      outputs: 0,
      answered: 0,
      repeated: 0,
      takeovers: 0,
      returns: 0,
      coldStarts: 0,
      faults: 0,
      commits: 0,
      effects: 0,
      ended: false,
      time: 0,
    };
    this.checker.lateFramesAllowed = this.config.standbyTakesOver;
    if (this.config.leases) {
      this.checker.recordedInSync = () => this.leases.state.record?.inSync ?? '';
    } else if (this.config.arbiter) this.checker.recordedInSync = () => this.arbiter.inSync;
  }

  /** Runs the seed to its end. @throws Violation when a promise is broken */
  async run(): Promise<Tally> {
    const { config, schedule, prng } = this;
    this.operator.coldStart(0);
    this.startStandby(1);
    this.#clientTurn();
    this.operator.turn();
    schedule.after(500, () => this.faults.turn());
    await this.#runUntil(config.safetyEnd, () => false);
    this.faults.calmDown();
    const answeredBefore = this.client.answered;
    const done = (): boolean =>
      this.#ended
        ? schedule.now > config.safetyEnd + 6000
        : this.#protectedNow && this.client.answered >= answeredBefore + 6;
    await this.#runUntil(config.safetyEnd + config.livenessMax, done);
    if (!done()) this.#complain(answeredBefore);
    const { tally } = this;
    tally.outputs = this.checker.outputs;
    tally.answered = this.client.answered;
    tally.repeated = this.client.repeated;
    tally.ended = this.#ended;
    tally.time = schedule.now;
    // One more draw pins down the whole sequence of draws.
    tally.effects = mix(tally.effects, prng.u32());
    return tally;
  }

  async #runUntil(end: number, stop: () => boolean): Promise<void> {
    const { schedule } = this;
    while (!schedule.runUntil(end, stop)) {
      await new Promise((resolve) => setImmediate(resolve));
      if (this.#found !== undefined) throw this.#found;
    }
  }

  /** Something was found inside a promise: it ends the run as soon as all promises have been heard. */
  found(error: unknown): void {
    this.#found ??= error;
    this.schedule.unsettled = true;
  }

  /** Something that uses the storage of `host` has failed: a finding, unless that storage has a reason. */
  failed(host: number, error: unknown): void {
    const excused = !(error instanceof Violation || error instanceof AssertionError);
    if (!excused || this.sound(host)) this.found(error);
  }

  /** Whether nothing is wrong with the storage of `host` that its processes may complain of. */
  sound(host: number): boolean {
    return this.faults.sound(host);
  }

  /** Whatever the outside was told is on the disks from which `guest` goes on. */
  answersAreThere(host: number, guest: SimGuest): void {
    for (const [block, n] of this.#answered) {
      const there = this.storage[host]!.words(block, 1);
      if (this.storage[host]!.words(block, 0) === guest.incarnation && there >= n) continue;
      throw new Violation('R2', `request ${n} was answered, and block ${block} is from ${there}`);
    }
  }

  #complain(answeredBefore: number): never {
    const who = this.processes.map((p) => {
      if (p === undefined) return 'nobody';
      if (p instanceof StartingProcess) return p.name;
      if (p instanceof PrimaryProcess) {
        const { machine, tap } = p;
        return `${p.name} ${machine.phase} gen ${p.generation}, holds ${tap.heldCount}+${tap.blockCount}, ${machine.sender.inFlight} in flight, recorded ${machine.authority.recorded}`;
      }
      const { receiver } = (p as StandbyProcess).machine;
      return `${p.name} ${receiver.state} committed ${receiver.committedId}`;
    });
    throw new Violation(
      'R7',
      `no recovery after healing: ${who.join(', ')}; ${this.client.answered - answeredBefore} answers, arbiter ${JSON.stringify([this.arbiter.generation, this.arbiter.inSync, this.arbiter.holder?.instance, this.leases.state])}`,
    );
  }

  log(text: string): void {
    this.trace?.push(`${Math.floor(this.schedule.now).toString().padStart(6)} ${text}`);
  }

  // --- processes

  /** Whoever runs the guest. */
  get primary(): PrimaryProcess | undefined {
    for (const p of this.processes) if (p instanceof PrimaryProcess && p.active) return p;
    return undefined;
  }

  standbys(): StandbyProcess[] {
    return this.processes.filter((p) => p instanceof StandbyProcess && p.alive) as StandbyProcess[];
  }

  /** Whether the guest has ended. */
  get over(): boolean {
    return this.#ended;
  }

  /** The highest generation so far. */
  get generation(): number {
    return this.#generation;
  }

  newInstance(): string {
    return HEX(++this.#instances, 16);
  }

  /** The arbiter lets a guest start in this process. */
  began(from: StartingProcess, generation: number): void {
    from.alive = false;
    this.boot(from.host, from.instance, generation, from.client);
  }

  /** A guest starts from scratch. */
  boot(host: number, instance: string, generation: number, lease?: LeaseClient): PrimaryProcess {
    const guest = new SimGuest(guestHasDisks(this.config), this.config.replicated);
    this.storage[host]?.clear();
    this.#answered.clear();
    guest.boot(++this.#incarnation);
    this.client.restart(this.#incarnation);
    this.disk.sectors.fill(0);
    this.#generation = Math.max(this.#generation, generation);
    const p = new PrimaryProcess(this, host, instance, generation, guest, 1, lease);
    this.processes[host] = p;
    this.operator.standbyStale = true;
    this.#protectedNow = false;
    this.checker.running(p.name, generation, true);
    if (this.#incarnation > 1) this.tally.coldStarts++;
    this.log(`operator starts the guest on ${p.name} as generation ${generation}`);
    return p;
  }

  startStandby(host: number): void {
    const p = new StandbyProcess(this, host, this.newInstance());
    this.processes[host] = p;
    this.log(`${p.name} starts (${p.instance})`);
  }

  /** A standby has become a primary in the same process. */
  replaced(from: StandbyProcess, to: PrimaryProcess): void {
    from.alive = false;
    this.processes[from.host] = to;
    this.arbiter.transfer(from, to);
    this.#generation = Math.max(this.#generation, to.generation);
    this.operator.standbyStale = true;
    this.#protectedNow = false;
    this.tally.takeovers++;
    this.log(`${from.name} takes over as generation ${to.generation}`);
  }

  /** A process has died. */
  died(p: SimProcess, silently: boolean): void {
    if (this.processes[p.host] === p) this.processes[p.host] = undefined;
    this.storage[p.host]?.died(p, silently);
    this.log(`${p.name} dies${silently ? ' with its host' : ''}`);
    if (p instanceof PrimaryProcess) {
      this.disk.died(p);
      if (p.passing) this.operator.standbyStale = true;
      this.#protectedNow = false;
      this.arbiter.died(p, silently);
    } else if (p instanceof StandbyProcess) {
      this.arbiter.died(p, silently);
    }
    const down = this.faults.calm ? 200 : 200 + this.prng.below(4000);
    this.downUntil[p.host] = this.schedule.now + down;
  }

  /** Whether the process dies between two effects: a crash at any step. */
  mayDieHere(p: SimProcess): boolean {
    this.tally.effects++;
    return this.faults.mayDieHere(p);
  }

  note(p: PrimaryProcess, phase: PrimaryPhase): void {
    this.log(`${p.name} is ${phase}`);
    this.#protectedNow = phase === 'protected';
    if (phase === 'protected') {
      this.operator.standbyStale = false;
      this.faults.isProtected(p);
    }
    if (phase === 'alone') this.operator.standbyStale = true;
  }

  ended(p: PrimaryProcess): void {
    this.#ended = true;
    this.checker.ended(p.generation);
    // Nobody wants it elsewhere any more.
    for (const other of this.processes) if (other instanceof StartingProcess) other.die(false);
    this.log('the guest has ended');
  }

  /** A validation failed. Without damaged memory or exchanged frames that cannot be. */
  invalid(code: number): void {
    if (!this.faults.soundStream) return;
    throw new Violation('P', `a sound transaction was refused with code ${code}`);
  }

  // --- wiring

  connect(from: PrimaryProcess): void {
    const to = this.processes[1 - from.host];
    if (to === undefined || this.network.partitioned) return;
    const delay = this.network.delay * 2;
    this.schedule.after(delay, () => {
      if (!from.alive || !to.alive || !to.listens || this.network.partitioned) return;
      const connection = new Connection(this.network, from, to);
      const { held, returned } = to;
      const told = returned !== undefined && continues(from.origin, returned);
      to.accepted(connection, told);
      from.established(connection, held, told ? returned : undefined);
      if (told) this.tally.returns++;
    });
  }

  toClient(frame: Uint32Array): void {
    this.schedule.after(20, () => {
      const n = this.client.frame(frame);
      if (n === 0 || n % 2 !== 0 || !guestHasDisks(this.config)) return;
      if (this.config.replicated) {
        this.#answered.set(blockOfRequest(n), n);
        return;
      }
      const value = this.disk.sectors[n % SECTORS];
      if (value !== frame[3]) {
        throw new Violation('R2', `request ${n} was answered, but its write is not on the disk`);
      }
    });
  }

  #clientTurn(): void {
    if (this.#ended) return;
    const request = this.client.request;
    if (!this.prng.chance(0.1)) {
      const delay = 10 + this.prng.below(30);
      const incarnation = this.#incarnation;
      this.schedule.after(delay, () => {
        if (incarnation !== this.#incarnation) return;
        for (const p of this.processes) if (p instanceof PrimaryProcess) p.request(request);
      });
    }
    this.schedule.after(this.config.clientEvery, () => this.#clientTurn());
  }
}
