/** What breaks in a simulated world, and when it is mended: drawn by the seed from the kinds that its configuration names. */
import { StartingProcess } from './lease-store.ts';
import { PrimaryProcess } from './primary-process.ts';
import type { SimProcess } from './process.ts';
import type { HostStorage } from './storage.ts';
import type { World } from './world.ts';

export class Faults {
  readonly #world: World;
  /** Nothing breaks any more. */
  calm = false;
  /** Whether no transaction was tampered with beneath its checksums. */
  soundStream = true;
  /** Chance that memory goes bad before it is sent. */
  stagingFlip = 0;
  #dieAfter = -1;
  #dieWho: 'primary' | 'standby' = 'primary';
  #killWhenProtected = false;
  /** Until when failures of a host's storage may still be noticed. */
  readonly #trouble = [-1, -1];

  constructor(world: World) {
    this.#world = world;
  }

  /** Whether nothing is wrong with the storage of `host` that its processes may complain of. */
  sound(host: number): boolean {
    return this.#world.schedule.now > this.#trouble[host]!;
  }

  /** Whether the process dies between two effects: a crash at any step. */
  mayDieHere(p: SimProcess): boolean {
    if (this.#dieAfter < 0) return false;
    const role = p instanceof PrimaryProcess ? 'primary' : 'standby';
    if (role !== this.#dieWho || --this.#dieAfter >= 0) return false;
    p.die(this.#world.prng.chance(0.3));
    return true;
  }

  /** `p` is protected now. */
  isProtected(p: PrimaryProcess): void {
    if (!this.#killWhenProtected) return;
    this.#killWhenProtected = false;
    const { schedule, prng } = this.#world;
    schedule.after(prng.below(900), () => {
      if (!this.calm) p.die(prng.chance(0.3));
    });
  }

  /** Something breaks, and the next thing after a while. */
  turn(): void {
    const world = this.#world;
    if (this.calm || world.over) return;
    const { prng, config, network, schedule } = world;
    schedule.after(200 + prng.below(config.faultEvery), () => this.turn());
    const fault = prng.pick(config.faults);
    world.tally.faults++;
    world.log(`fault: ${fault}`);
    const some = world.processes[prng.below(2)];
    switch (fault) {
      case 'kill-primary':
        world.primary?.die(prng.chance(0.3));
        break;
      case 'kill-standby':
        world.standbys()[0]?.die(prng.chance(0.3));
        break;
      case 'kill-at-step':
        this.#dieAfter = prng.below(60);
        this.#dieWho = prng.chance(0.6) ? 'primary' : 'standby';
        break;
      case 'freeze':
        if (some !== undefined) {
          some.freeze();
          schedule.after(200 + prng.below(6000), () => some.thaw());
        }
        break;
      case 'cut':
        for (const c of network.connections) c.cut();
        break;
      case 'partition':
        if (!network.partitioned) {
          network.partitioned = true;
          schedule.after(300 + prng.below(6000), () => this.#heal());
        }
        break;
      case 'slow-line':
        network.delay = config.delay * 8;
        schedule.after(2000, () => {
          network.delay = config.delay;
        });
        break;
      case 'meddle':
        this.soundStream = false;
        network.meddling.drop = 0.02;
        network.meddling.double = 0.02;
        network.meddling.repeat = 0.03;
        schedule.after(1500, () => this.#unmeddle());
        break;
      case 'flip':
        network.meddling.flip = 0.05;
        schedule.after(1500, () => this.#unmeddle());
        break;
      case 'bad-memory':
        this.soundStream = false;
        this.stagingFlip = 0.3;
        schedule.after(1500, () => {
          this.stagingFlip = 0;
        });
        break;
      case 'arbiter-down':
        world.arbiter.failing = 0.7;
        world.leases.failing = 0.7;
        schedule.after(2500, () => {
          world.arbiter.failing = 0;
          world.leases.failing = 0;
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
        const there = world.processes[host];
        if (!(there instanceof PrimaryProcess || there instanceof StartingProcess)) {
          world.operator.coldStart(host);
          this.#troubleAt(1 - host);
        }
        break;
      }
      case 'disk-slow':
        world.disk.latency = 800;
        schedule.after(2500, () => {
          world.disk.latency = 60;
        });
        break;
      case 'disk-failing':
        world.disk.failing = 0.5;
        schedule.after(1500, () => {
          world.disk.failing = 0;
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
        const { primary } = world;
        primary?.handle(() => {
          primary.machine.switchover(primary.now);
        });
        break;
      }
      case 'power-off':
        if (prng.chance(0.3)) world.primary?.powerOff();
        break;
      case 'hasty-order':
        this.#hastyOrder();
        break;
    }
  }

  #storageTrouble(duration: number, make: (storage: HostStorage) => void): void {
    const world = this.#world;
    const host = world.prng.below(2);
    make(world.storage[host]!);
    this.#trouble[host] = Number.POSITIVE_INFINITY;
    world.schedule.after(duration, () => this.#storageHeals(host));
  }

  #storageHeals(host: number): void {
    const { storage: all, schedule } = this.#world;
    const storage = all[host]!;
    storage.failing = 0;
    storage.full = false;
    storage.latency = 30;
    // Who was stopped meanwhile may learn of it late.
    if (this.#trouble[host]! > schedule.now) this.#trouble[host] = schedule.now + 12_000;
  }

  /** Why an operator would start a guest elsewhere: soon the host is cut off, or stands still. */
  #troubleAt(host: number): void {
    const { prng, schedule, processes } = this.#world;
    if (prng.chance(0.5)) this.#storeLags(host, 8000);
    const cut = prng.chance(0.6);
    schedule.after(1500 + prng.below(3000), () => {
      const there = processes[host];
      if (this.calm || there === undefined) return;
      if (cut) this.#cutStore(host, 8000);
      else {
        there.freeze();
        schedule.after(4500 + prng.below(2000), () => there.thaw());
      }
    });
  }

  #cutStore(host: number, duration: number): void {
    const { leases, schedule } = this.#world;
    if (this.calm) return;
    leases.cut[host] = true;
    schedule.after(duration, () => {
      leases.cut[host] = false;
    });
  }

  #storeLags(host: number, duration: number): void {
    const { leases, prng, schedule } = this.#world;
    leases.lag[host] = 1500 + prng.below(800);
    schedule.after(duration, () => {
      leases.lag[host] = 0;
    });
  }

  /** Without an arbiter an operator's word counts; orders on a standby that cannot must be refused. */
  #hastyOrder(): void {
    const world = this.#world;
    for (const s of world.standbys()) {
      const refused = !s.machine.eligible;
      if (refused || world.config.arbiter) s.order();
    }
  }

  #unmeddle(): void {
    const m = this.#world.network.meddling;
    m.drop = 0;
    m.double = 0;
    m.repeat = 0;
    m.flip = 0;
  }

  #heal(): void {
    const { network } = this.#world;
    network.partitioned = false;
    for (const c of [...network.connections]) c.flush();
  }

  /** Nothing breaks any more, and what was broken is mended. */
  calmDown(): void {
    const world = this.#world;
    world.log('calm');
    this.calm = true;
    this.#dieAfter = -1;
    this.#unmeddle();
    this.#heal();
    world.network.delay = world.config.delay;
    this.stagingFlip = 0;
    world.arbiter.failing = 0;
    world.leases.failing = 0;
    world.leases.lag.fill(0);
    world.leases.cut.fill(false);
    world.disk.failing = 0;
    world.disk.latency = 60;
    for (const host of world.storage.keys()) this.#storageHeals(host);
    for (const p of world.processes) p?.thaw();
    for (const host of [0, 1]) {
      world.downUntil[host] = Math.min(world.downUntil[host]!, world.schedule.now + 200);
    }
  }
}
