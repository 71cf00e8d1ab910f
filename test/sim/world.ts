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
import type { AuthorityConfig } from '../../src/ft/core/failover.ts';
import type { PrimaryConfig, PrimaryPhase } from '../../src/ft/core/primary-types.ts';
import type { StandbyConfig } from '../../src/ft/core/standby.ts';
import { continues } from '../../src/ft/disk/storage.ts';
import type { Hello } from '../../src/ft/wire/message.ts';
import { ARBITER, ON_PEER_LOSS, ROLE } from '../../src/ft/wire/spec.ts';
import { Checker, OutsideView, Violation } from './checkers.ts';
import { type Config, drawConfig, type FaultKind, guestHasDisks } from './config.ts';
import { blockOfRequest, mix, PAGE_BYTES, SECTORS, SimGuest } from './guest.ts';
import { type LeaseClient, LeaseStore, StartingProcess } from './lease-store.ts';
import { Connection, type Network } from './network.ts';
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
  stagingFlip = 0;
  #processes: (SimProcess | undefined)[] = [undefined, undefined];
  #instances = 0;
  #incarnation = 0;
  #generation = 0;
  /** Whether the guest showed something that the standby's state knows nothing of (and no arbiter recorded). */
  #standbyStale = false;
  #ended = false;
  #calm = false;
  #dieAfter = -1;
  #dieWho: 'primary' | 'standby' = 'primary';
  #downUntil = [0, 0];
  /** Whether no transaction was tampered with beneath its checksums. */
  #soundStream = true;
  #protectedNow = false;
  #killWhenProtected = false;
  /** What was found where throwing it would not end the run. */
  #found: unknown;
  /** Until when failures of a host's storage may still be noticed. */
  readonly #trouble = [-1, -1];
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
    this.#coldStart(0);
    this.#startStandby(1);
    this.#clientTurn();
    this.#operatorTurn();
    schedule.after(500, () => this.#faultTurn());
    await this.#runUntil(config.safetyEnd, () => false);
    this.#calmDown();
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
    return this.schedule.now > this.#trouble[host]!;
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
    const who = this.#processes.map((p) => {
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

  get #primary(): PrimaryProcess | undefined {
    for (const p of this.#processes) if (p instanceof PrimaryProcess && p.active) return p;
    return undefined;
  }

  #standbys(): StandbyProcess[] {
    return this.#processes.filter(
      (p) => p instanceof StandbyProcess && p.alive,
    ) as StandbyProcess[];
  }

  #newInstance(): string {
    return HEX(++this.#instances, 16);
  }

  /** Where a standby may take over by policy, an operator stops it before deciding anything else. */
  #stopStandbys(): void {
    if (this.config.standbyTakesOver) for (const s of this.#standbys()) s.die(false);
  }

  #coldStart(host: number): void {
    this.#stopStandbys();
    this.#processes[host]?.die(false);
    this.#downUntil[host] = 0;
    if (this.config.leases) {
      const starting = new StartingProcess(this, host, this.#newInstance());
      this.#processes[host] = starting;
      this.log(`operator wants the guest on ${starting.name}`);
      return;
    }
    const generation = Math.max(this.#generation, this.arbiter.generation) + 1;
    this.arbiter.start(this.#boot(host, this.#newInstance(), generation), generation);
  }

  /** The arbiter lets a guest start in this process. */
  began(from: StartingProcess, generation: number): void {
    from.alive = false;
    this.#boot(from.host, from.instance, generation, from.client);
  }

  /** A guest starts from scratch. */
  #boot(host: number, instance: string, generation: number, lease?: LeaseClient): PrimaryProcess {
    const guest = new SimGuest(guestHasDisks(this.config), this.config.replicated);
    this.storage[host]?.clear();
    this.#answered.clear();
    guest.boot(++this.#incarnation);
    this.client.restart(this.#incarnation);
    this.disk.sectors.fill(0);
    this.#generation = Math.max(this.#generation, generation);
    const p = new PrimaryProcess(this, host, instance, generation, guest, 1, lease);
    this.#processes[host] = p;
    this.#standbyStale = true;
    this.#protectedNow = false;
    this.checker.running(p.name, generation, true);
    if (this.#incarnation > 1) this.tally.coldStarts++;
    this.log(`operator starts the guest on ${p.name} as generation ${generation}`);
    return p;
  }

  #startStandby(host: number): void {
    const p = new StandbyProcess(this, host, this.#newInstance());
    this.#processes[host] = p;
    this.log(`${p.name} starts (${p.instance})`);
  }

  /** A standby has become a primary in the same process. */
  replaced(from: StandbyProcess, to: PrimaryProcess): void {
    from.alive = false;
    this.#processes[from.host] = to;
    this.arbiter.transfer(from, to);
    this.#generation = Math.max(this.#generation, to.generation);
    this.#standbyStale = true;
    this.#protectedNow = false;
    this.tally.takeovers++;
    this.log(`${from.name} takes over as generation ${to.generation}`);
  }

  /** A process has died. */
  died(p: SimProcess, silently: boolean): void {
    if (this.#processes[p.host] === p) this.#processes[p.host] = undefined;
    this.storage[p.host]?.died(p, silently);
    this.log(`${p.name} dies${silently ? ' with its host' : ''}`);
    if (p instanceof PrimaryProcess) {
      this.disk.died(p);
      if (p.passing) this.#standbyStale = true;
      this.#protectedNow = false;
      this.arbiter.died(p, silently);
    } else if (p instanceof StandbyProcess) {
      this.arbiter.died(p, silently);
    }
    const down = this.#calm ? 200 : 200 + this.prng.below(4000);
    this.#downUntil[p.host] = this.schedule.now + down;
  }

  /** Whether the process dies between two effects: a crash at any step. */
  mayDieHere(p: SimProcess): boolean {
    this.tally.effects++;
    if (this.#dieAfter < 0) return false;
    const role = p instanceof PrimaryProcess ? 'primary' : 'standby';
    if (role !== this.#dieWho || --this.#dieAfter >= 0) return false;
    p.die(this.prng.chance(0.3));
    return true;
  }

  note(p: PrimaryProcess, phase: PrimaryPhase): void {
    this.log(`${p.name} is ${phase}`);
    this.#protectedNow = phase === 'protected';
    if (phase === 'protected') this.#standbyStale = false;
    if (phase === 'protected' && this.#killWhenProtected) {
      this.#killWhenProtected = false;
      this.schedule.after(this.prng.below(900), () => {
        if (!this.#calm) p.die(this.prng.chance(0.3));
      });
    }
    if (phase === 'alone') this.#standbyStale = true;
  }

  ended(p: PrimaryProcess): void {
    this.#ended = true;
    this.checker.ended(p.generation);
    // Nobody wants it elsewhere any more.
    for (const other of this.#processes) if (other instanceof StartingProcess) other.die(false);
    this.log('the guest has ended');
  }

  /** A validation failed. Without damaged memory or exchanged frames that cannot be. */
  invalid(code: number): void {
    if (!this.#soundStream) return;
    throw new Violation('P', `a sound transaction was refused with code ${code}`);
  }

  // --- wiring

  connect(from: PrimaryProcess): void {
    const to = this.#processes[1 - from.host];
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
        for (const p of this.#processes) if (p instanceof PrimaryProcess) p.request(request);
      });
    }
    this.schedule.after(this.config.clientEvery, () => this.#clientTurn());
  }

  #hello(p: SimProcess, role: 0 | 1, generation: number): Hello {
    const { config } = this;
    return {
      protocolMin: 1,
      protocolMax: 1,
      role,
      onPeerLoss:
        role === ROLE.primary
          ? config.primaryGoesOn
            ? ON_PEER_LOSS.goOn
            : ON_PEER_LOSS.wait
          : config.standbyTakesOver
            ? ON_PEER_LOSS.takeover
            : ON_PEER_LOSS.wait,
      arbiter: config.leases ? ARBITER.lease : config.arbiter ? ARBITER.lock : ARBITER.none,
      vm: '0123456789abcdef0123456789abcdef',
      instance: p.instance,
      generation,
      committedId: 0,
      complete: false,
      ended: false,
      machineDigest: '11'.repeat(32),
      cpuDigest: '22'.repeat(32),
      pageBytes: PAGE_BYTES,
      tscKhz: 1_000_000,
      compression: 3,
      limits: {
        frameBytesMax: config.frameBytes,
        transactionBytesMax: config.transactionBytes,
        epochsInFlightMax: config.epochsInFlight,
        tapBytesMax: Math.max(256, config.tapBytes),
      },
      host: '',
    };
  }

  #authority(onPeerLoss: AuthorityConfig['onPeerLoss']): AuthorityConfig {
    return { arbiter: this.config.arbiter, onPeerLoss, retryNs: 400 };
  }

  primaryConfig(p: SimProcess, generation: number): PrimaryConfig {
    const { config } = this;
    return {
      hello: this.#hello(p, ROLE.primary, generation),
      authority: this.#authority(config.primaryGoesOn ? 'go-on' : 'wait'),
      policy: config.policy,
      liveness: { intervalNs: 500, deadlineNs: 3000 },
      protect: true,
      reconnectNs: 300,
      graceNs: config.grace,
      ackDeadlineNs: 5000,
    };
  }

  standbyConfig(p: SimProcess): StandbyConfig {
    const { config } = this;
    return {
      hello: this.#hello(p, ROLE.standby, 0),
      authority: this.#authority(config.standbyTakesOver ? 'takeover' : 'wait'),
      liveness: { intervalNs: 500, deadlineNs: 3000 },
      suspectNs: config.suspect,
    };
  }

  // --- the operator

  #operatorTurn(): void {
    this.schedule.after(400, () => this.#operatorTurn());
    if (this.#ended) return;
    const { schedule } = this;
    for (const host of [0, 1]) {
      if (this.#processes[host] === undefined && schedule.now >= this.#downUntil[host]!) {
        this.#startStandby(host);
      }
    }
    const primary = this.#primary;
    if (primary === undefined) this.#withoutPrimary();
    else if (!this.config.arbiter) this.#withoutArbiter(primary);
  }

  /** Nobody runs the guest: either a standby still can, or it is lost and is started anew. */
  #withoutPrimary(): void {
    const { arbiter, config } = this;
    const standbys = this.#standbys();
    if (config.leases) {
      if (this.#processes.some((p) => p instanceof StartingProcess && p.alive)) return;
      const { record } = this.leases.state;
      const able = standbys.some(
        (s) =>
          record?.by === s.instance ||
          (s.machine.eligible &&
            s.instance === record?.inSync &&
            s.machine.receiver.generation === record.generation),
      );
      if (able) return;
    } else if (config.arbiter) {
      if (arbiter.holder?.alive) return;
      const able = standbys.some(
        (s) =>
          s.machine.eligible &&
          s.instance === arbiter.inSync &&
          s.machine.receiver.generation === arbiter.generation,
      );
      if (able) return;
      // The lock of a vanished host is still held for a while.
      if (arbiter.holder !== undefined) return;
    } else if (!this.#standbyStale) {
      for (const s of standbys) {
        if (s.machine.eligible) {
          s.order();
          return;
        }
      }
      // A hasty operator tries it on whatever is there; it must refuse.
      for (const s of standbys) if (this.prng.chance(0.5)) s.order();
      if (this.#primary !== undefined) return;
    }
    const free = standbys.find((s) => !s.frozen) ?? standbys[0];
    const host = free?.host ?? (this.#processes[0] === undefined ? 0 : 1);
    const other = this.#processes[1 - host] === undefined && this.prng.chance(0.5);
    this.#coldStart(other ? 1 - host : host);
  }

  #withoutArbiter(primary: PrimaryProcess): void {
    // An operator looks at the other host before saying anything.
    if (this.#processes.some((p) => p !== primary && p instanceof PrimaryProcess && p.active))
      return;
    if (this.#generation > primary.generation) {
      // A newer run of the guest is dead: going on with this one would go back in time.
      primary.die(false);
      return;
    }
    if (primary.machine.authority.waitsForOperator) {
      const eligible = this.#standbys().some((s) => s.machine.eligible);
      if (!eligible) {
        this.#stopStandbys();
        primary.handle(() => primary.machine.operatorGoOn(primary.now));
      }
    }
    const { machine } = primary;
    // Handed over into the void: the standby died before it had the word.
    if (machine.phase === 'handing' && machine.authority.handed) {
      if (!this.#standbys().some((s) => s.machine.eligible)) {
        this.#stopStandbys();
        primary.handle(() => machine.operatorGoOn(primary.now));
      }
    }
  }

  // --- faults

  #faultTurn(): void {
    if (this.#calm || this.#ended) return;
    const { prng, config } = this;
    this.schedule.after(200 + prng.below(config.faultEvery), () => this.#faultTurn());
    const fault = prng.pick(config.faults);
    this.tally.faults++;
    this.log(`fault: ${fault}`);
    const some = this.#processes[prng.below(2)];
    switch (fault) {
      case 'kill-primary':
        this.#primary?.die(prng.chance(0.3));
        break;
      case 'kill-standby':
        this.#standbys()[0]?.die(prng.chance(0.3));
        break;
      case 'kill-at-step':
        this.#dieAfter = prng.below(60);
        this.#dieWho = prng.chance(0.6) ? 'primary' : 'standby';
        break;
      case 'freeze':
        if (some !== undefined) {
          some.freeze();
          this.schedule.after(200 + prng.below(6000), () => some.thaw());
        }
        break;
      case 'cut':
        for (const c of this.network.connections) c.cut();
        break;
      case 'partition':
        if (!this.network.partitioned) {
          this.network.partitioned = true;
          this.schedule.after(300 + prng.below(6000), () => this.#heal());
        }
        break;
      case 'slow-line':
        this.network.delay = config.delay * 8;
        this.schedule.after(2000, () => {
          this.network.delay = config.delay;
        });
        break;
      case 'meddle':
        this.#soundStream = false;
        this.network.meddling.drop = 0.02;
        this.network.meddling.double = 0.02;
        this.network.meddling.repeat = 0.03;
        this.schedule.after(1500, () => this.#unmeddle());
        break;
      case 'flip':
        this.network.meddling.flip = 0.05;
        this.schedule.after(1500, () => this.#unmeddle());
        break;
      case 'bad-memory':
        this.#soundStream = false;
        this.stagingFlip = 0.3;
        this.schedule.after(1500, () => {
          this.stagingFlip = 0;
        });
        break;
      case 'arbiter-down':
        this.arbiter.failing = 0.7;
        this.leases.failing = 0.7;
        this.schedule.after(2500, () => {
          this.arbiter.failing = 0;
          this.leases.failing = 0;
        });
        break;
      case 'store-cut':
        this.#cutStore(prng.below(2), 1000 + prng.below(9000));
        break;
      case 'store-slow':
        this.#storeLags(prng.below(2), 4000);
        break;
      case 'start-elsewhere': {
        const host = prng.below(2);
        const there = this.#processes[host];
        if (!(there instanceof PrimaryProcess || there instanceof StartingProcess)) {
          this.#coldStart(host);
          this.#troubleAt(1 - host);
        }
        break;
      }
      case 'disk-slow':
        this.disk.latency = 800;
        this.schedule.after(2500, () => {
          this.disk.latency = 60;
        });
        break;
      case 'disk-failing':
        this.disk.failing = 0.5;
        this.schedule.after(1500, () => {
          this.disk.failing = 0;
        });
        break;
      case 'host-disk-slow':
        this.#storageTrouble(2500, (storage) => {
          storage.latency = 700;
        });
        break;
      case 'host-disk-failing':
        this.#storageTrouble(1500, (storage) => {
          storage.failing = 0.3;
        });
        break;
      case 'host-disk-full':
        this.#storageTrouble(2500, (storage) => {
          storage.full = true;
        });
        break;
      case 'kill-when-protected':
        this.#killWhenProtected = true;
        break;
      case 'kill-host':
        some?.die(true);
        break;
      case 'switchover': {
        const primary = this.#primary;
        primary?.handle(() => {
          primary.machine.switchover(primary.now);
        });
        break;
      }
      case 'power-off':
        if (prng.chance(0.3)) this.#primary?.powerOff();
        break;
      case 'hasty-order':
        this.#hastyOrder();
        break;
    }
  }

  #storageTrouble(duration: number, make: (storage: HostStorage) => void): void {
    const host = this.prng.below(2);
    make(this.storage[host]!);
    this.#trouble[host] = Number.POSITIVE_INFINITY;
    this.schedule.after(duration, () => this.#storageHeals(host));
  }

  #storageHeals(host: number): void {
    const storage = this.storage[host]!;
    storage.failing = 0;
    storage.full = false;
    storage.latency = 30;
    // Who was stopped meanwhile may learn of it late.
    if (this.#trouble[host]! > this.schedule.now) this.#trouble[host] = this.schedule.now + 12_000;
  }

  /** Why an operator would start a guest elsewhere: soon the host is cut off, or stands still. */
  #troubleAt(host: number): void {
    const { prng } = this;
    if (prng.chance(0.5)) this.#storeLags(host, 8000);
    const cut = prng.chance(0.6);
    this.schedule.after(1500 + prng.below(3000), () => {
      const there = this.#processes[host];
      if (this.#calm || there === undefined) return;
      if (cut) this.#cutStore(host, 8000);
      else {
        there.freeze();
        this.schedule.after(4500 + prng.below(2000), () => there.thaw());
      }
    });
  }

  #cutStore(host: number, duration: number): void {
    if (this.#calm) return;
    this.leases.cut[host] = true;
    this.schedule.after(duration, () => {
      this.leases.cut[host] = false;
    });
  }

  #storeLags(host: number, duration: number): void {
    this.leases.lag[host] = 1500 + this.prng.below(800);
    this.schedule.after(duration, () => {
      this.leases.lag[host] = 0;
    });
  }

  /** Without an arbiter an operator's word counts; orders on a standby that cannot must be refused. */
  #hastyOrder(): void {
    for (const s of this.#standbys()) {
      const refused = !s.machine.eligible;
      if (refused || this.config.arbiter) s.order();
    }
  }

  #unmeddle(): void {
    const m = this.network.meddling;
    m.drop = 0;
    m.double = 0;
    m.repeat = 0;
    m.flip = 0;
  }

  #heal(): void {
    this.network.partitioned = false;
    for (const c of [...this.network.connections]) c.flush();
  }

  #calmDown(): void {
    this.log('calm');
    this.#calm = true;
    this.#dieAfter = -1;
    this.#unmeddle();
    this.#heal();
    this.network.delay = this.config.delay;
    this.stagingFlip = 0;
    this.arbiter.failing = 0;
    this.leases.failing = 0;
    this.leases.lag.fill(0);
    this.leases.cut.fill(false);
    this.disk.failing = 0;
    this.disk.latency = 60;
    for (const host of this.storage.keys()) this.#storageHeals(host);
    for (const p of this.#processes) p?.thaw();
    for (const host of [0, 1]) {
      this.#downUntil[host] = Math.min(this.#downUntil[host]!, this.schedule.now + 200);
    }
  }
}
