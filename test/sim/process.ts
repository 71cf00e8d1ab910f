/** What every simulated process has: a life, a clock that runs a little wrong, and the chance to be stopped. */
import type { HeldCopy, ReturnedCopy } from '../../src/ft/disk/storage.ts';
import { encodeMessage } from '../../src/ft/wire/codec.ts';
import type { Message } from '../../src/ft/wire/message.ts';
import type { Connection, Endpoint } from './network.ts';
import type { World } from './world.ts';

const scratch = new Uint8Array(16_384);

/** The bytes of a frame, of its own. */
export function frameBytes(message: Message): Uint8Array {
  return scratch.slice(0, encodeMessage(scratch, 0, message));
}

export abstract class SimProcess implements Endpoint {
  readonly world: World;
  readonly host: number;
  readonly instance: string;
  alive = true;
  connection: Connection | undefined;
  #frozen = false;
  readonly #deferred: (() => void)[] = [];
  #rate: number;
  #offset: number;

  constructor(world: World, host: number, instance: string) {
    this.world = world;
    this.host = host;
    this.instance = instance;
    // Where leases are measured, clocks differ more, and are often as wrong as they may be.
    this.#rate = world.config.leases
      ? 0.9 + Math.min(200, Math.max(0, world.prng.between(-100, 300))) / 1000
      : 0.95 + world.prng.below(100) / 1000;
    this.#offset = world.prng.below(1_000_000);
  }

  abstract readonly name: string;

  /** Whether it takes connections yet. */
  get listens(): boolean {
    return true;
  }

  /** What its copies of the guest's disks hold, as a primary is told that connects. */
  get held(): HeldCopy | undefined {
    return undefined;
  }

  /** What its images are, where its host was a primary that was lost. */
  get returned(): ReturnedCopy | undefined {
    return undefined;
  }

  /** This process's own monotonic clock. */
  get now(): number {
    return this.world.schedule.now * this.#rate + this.#offset;
  }

  /** This is the same process as `other`, in another role. */
  protected keepClock(other: SimProcess): void {
    this.#rate = other.#rate;
    this.#offset = other.#offset;
  }

  get frozen(): boolean {
    return this.#frozen;
  }

  /** `run` happens in this process `delay` from now, unless it is dead by then. */
  post(delay: number, run: () => void): void {
    this.world.schedule.after(delay, () => this.handle(run));
  }

  /** Runs an event here, or keeps it while the process is stopped. */
  handle(run: () => void): void {
    if (!this.alive) return;
    if (this.#frozen) {
      this.#deferred.push(run);
      return;
    }
    run();
    this.carryOut();
  }

  /** Carries out the effects of what happened. */
  protected abstract carryOut(): void;
  /** A connection was accepted here. */
  abstract accepted(connection: Connection, toldReturned: boolean): void;
  protected abstract received(bytes: Uint8Array): void;
  protected abstract lost(): void;

  bytes(connection: Connection, bytes: Uint8Array): void {
    this.handle(() => {
      if (this.connection === connection) this.received(bytes);
    });
  }

  gone(connection: Connection): void {
    this.handle(() => {
      if (this.connection !== connection) return;
      this.connection = undefined;
      this.lost();
    });
  }

  protected hangUp(): void {
    this.connection?.close(this);
    this.connection = undefined;
  }

  freeze(): void {
    this.#frozen = true;
  }

  thaw(): void {
    if (!this.#frozen) return;
    this.#frozen = false;
    for (const run of this.#deferred.splice(0)) this.handle(run);
  }

  /** Dies. `silently`: its host is gone and says nothing to anybody. */
  die(silently: boolean): void {
    if (!this.alive) return;
    this.alive = false;
    this.#frozen = false;
    if (silently) this.connection?.vanish(this);
    else this.connection?.close(this);
    this.connection = undefined;
    this.world.died(this, silently);
  }
}
