/**
 * The operator of a simulated world: knows the truth about both hosts, starts what is down, gives the word that only people may give,
 * and starts the guest anew where it is lost.
 */
import { StartingProcess } from './lease-store.ts';
import { PrimaryProcess } from './primary-process.ts';
import type { World } from './world.ts';

export class Operator {
  readonly #world: World;
  /** Whether the guest showed something that the standby's state knows nothing of (and no arbiter recorded). */
  standbyStale = false;

  constructor(world: World) {
    this.#world = world;
  }

  /** Looks at the hosts now and then, and does what an operator would. */
  turn(): void {
    const world = this.#world;
    world.schedule.after(400, () => this.turn());
    if (world.over) return;
    for (const host of [0, 1]) {
      if (world.processes[host] === undefined && world.schedule.now >= world.downUntil[host]!) {
        world.startStandby(host);
      }
    }
    const { primary } = world;
    if (primary === undefined) this.#withoutPrimary();
    else if (!world.config.arbiter) this.#withoutArbiter(primary);
  }

  /** Nobody runs the guest: either a standby still can, or it is lost and is started anew. */
  #withoutPrimary(): void {
    const world = this.#world;
    const { arbiter, config } = world;
    const standbys = world.standbys();
    if (config.leases) {
      if (world.processes.some((p) => p instanceof StartingProcess && p.alive)) return;
      const { record } = world.leases.state;
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
    } else if (!this.standbyStale) {
      for (const s of standbys) {
        if (s.machine.eligible) {
          s.order();
          return;
        }
      }
      // A hasty operator tries it on whatever is there; it must refuse.
      for (const s of standbys) if (world.prng.chance(0.5)) s.order();
      if (world.primary !== undefined) return;
    }
    const free = standbys.find((s) => !s.frozen) ?? standbys[0];
    const host = free?.host ?? (world.processes[0] === undefined ? 0 : 1);
    const other = world.processes[1 - host] === undefined && world.prng.chance(0.5);
    this.coldStart(other ? 1 - host : host);
  }

  #withoutArbiter(primary: PrimaryProcess): void {
    const world = this.#world;
    // An operator looks at the other host before saying anything.
    if (world.processes.some((p) => p !== primary && p instanceof PrimaryProcess && p.active))
      return;
    if (world.generation > primary.generation) {
      // A newer run of the guest is dead: going on with this one would go back in time.
      primary.die(false);
      return;
    }
    if (primary.machine.authority.waitsForOperator) {
      const eligible = world.standbys().some((s) => s.machine.eligible);
      if (!eligible) {
        this.#stopStandbys();
        primary.handle(() => primary.machine.operatorGoOn(primary.now));
      }
    }
    const { machine } = primary;
    // Handed over into the void: the standby died before it had the word.
    if (machine.phase === 'handing' && machine.authority.handed) {
      if (!world.standbys().some((s) => s.machine.eligible)) {
        this.#stopStandbys();
        primary.handle(() => machine.operatorGoOn(primary.now));
      }
    }
  }

  /** Where a standby may take over by policy, an operator stops it before deciding anything else. */
  #stopStandbys(): void {
    const world = this.#world;
    if (world.config.standbyTakesOver) for (const s of world.standbys()) s.die(false);
  }

  /** Starts the guest on `host` from scratch, as soon as the arbiter lets it. */
  coldStart(host: number): void {
    const world = this.#world;
    this.#stopStandbys();
    world.processes[host]?.die(false);
    world.downUntil[host] = 0;
    if (world.config.leases) {
      const starting = new StartingProcess(world, host, world.newInstance());
      world.processes[host] = starting;
      world.log(`operator wants the guest on ${starting.name}`);
      return;
    }
    const generation = Math.max(world.generation, world.arbiter.generation) + 1;
    world.arbiter.start(world.boot(host, world.newInstance(), generation), generation);
  }
}
