/**
 * Connections between two simulated processes: bytes in order, late, in any split, and cut at any byte; during a
 * partition everything waits. Frames can be flipped, lost, doubled or repeated from earlier, as a faulty
 * transport would do.
 */
import type { Prng } from '../../src/base/prng.ts';
import { readU32 } from '../../src/ft/wire/cursor.ts';
import { CMD, HEADER } from '../../src/ft/wire/spec.ts';
import type { Schedule } from './schedule.ts';

/** One end of a connection. */
export interface Endpoint {
  bytes(connection: Connection, bytes: Uint8Array): void;
  gone(connection: Connection): void;
}

/** What can go wrong with frames, as chances. */
export interface Meddling {
  flip: number;
  drop: number;
  double: number;
  repeat: number;
}

/** What connections share. */
export interface Network {
  readonly schedule: Schedule;
  readonly prng: Prng;
  readonly meddling: Meddling;
  delay: number;
  partitioned: boolean;
  readonly connections: Set<Connection>;
  /** Acknowledgements of all connections so far, to be heard once more where they do not belong. */
  readonly acks: Uint8Array[];
}

type Side = 0 | 1;

export class Connection {
  readonly #network: Network;
  readonly #ends: readonly [Endpoint, Endpoint];
  readonly #open = [true, true];
  readonly #lastAt = [0, 0];
  readonly #stalled: [(Uint8Array | undefined)[], (Uint8Array | undefined)[]] = [[], []];
  readonly #left = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
  readonly #earlier: Uint8Array[] = [];

  constructor(network: Network, from: Endpoint, to: Endpoint) {
    this.#network = network;
    this.#ends = [from, to];
    network.connections.add(this);
  }

  #sideOf(end: Endpoint): Side {
    return this.#ends[0] === end ? 0 : 1;
  }

  /** `from` sends one frame. */
  send(from: Endpoint, frame: Uint8Array): void {
    const side = this.#sideOf(from);
    if (!this.#open[side]) return;
    const { prng, meddling } = this.#network;
    if (prng.chance(meddling.drop)) return;
    if (prng.chance(meddling.flip)) {
      frame = frame.slice();
      frame[prng.below(frame.length)]! ^= 1 << prng.below(8);
    }
    this.#put(side, frame);
    if (prng.chance(meddling.double)) this.#put(side, frame);
    if (side === 1) {
      this.#echoOldAck(frame);
      return;
    }
    if (meddling.repeat === 0) return;
    if (this.#earlier.length > 0 && prng.chance(meddling.repeat)) {
      this.#put(side, prng.pick(this.#earlier));
    }
    this.#earlier.push(frame);
    if (this.#earlier.length > 12) this.#earlier.shift();
  }

  /** Behind an ACK of N comes, from some earlier connection, an ACK of N + 1 of another generation. */
  #echoOldAck(frame: Uint8Array): void {
    if (frame[HEADER.cmd] !== CMD.ACK || frame[HEADER.cmd + 1] !== 0) return;
    const { prng, meddling, acks } = this.#network;
    if (meddling.repeat > 0 && prng.chance(0.6)) {
      const next = readU32(frame, HEADER.id) + 1;
      const old = acks.find(
        (a) =>
          readU32(a, HEADER.id) === next &&
          readU32(a, HEADER.generation) !== readU32(frame, HEADER.generation),
      );
      if (old !== undefined) this.#put(1, old);
    }
    if (acks.length < 400) acks.push(frame);
  }

  /** `from` closes: what it sent before still arrives. */
  close(from: Endpoint): void {
    const side = this.#sideOf(from);
    if (!this.#open[side]) return;
    this.#open[side] = false;
    this.#put(side, undefined);
  }

  /** The end vanishes without a word (its host is gone). */
  vanish(end: Endpoint): void {
    this.#open[this.#sideOf(end)] = false;
  }

  /** The line breaks a few bytes from now, in both directions; each end may or may not be told. */
  cut(): void {
    const { prng } = this.#network;
    for (const side of [0, 1] as const) {
      this.#left[side] = prng.below(200);
      if (prng.chance(0.7)) {
        this.#network.schedule.after(prng.below(600), () => this.#tell(side));
      }
    }
  }

  /** After a partition: what waited arrives. */
  flush(): void {
    for (const side of [0, 1] as const) {
      const waiting = this.#stalled[side].splice(0);
      for (const item of waiting) this.#deliver(side, item);
    }
  }

  #put(side: Side, item: Uint8Array | undefined): void {
    const { schedule, prng, delay } = this.#network;
    const at = Math.max(this.#lastAt[side]!, schedule.now + delay + prng.below(delay));
    this.#lastAt[side] = at;
    schedule.after(at - schedule.now, () => this.#arrive(side, item));
  }

  #arrive(side: Side, item: Uint8Array | undefined): void {
    if (this.#network.partitioned || this.#stalled[side].length > 0) this.#stalled[side].push(item);
    else this.#deliver(side, item);
  }

  #deliver(side: Side, item: Uint8Array | undefined): void {
    const other = (1 - side) as Side;
    if (!this.#open[other]) return;
    if (item === undefined) {
      this.#tell(other);
      return;
    }
    const left = this.#left[side]!;
    if (left <= 0) return;
    const bytes = item.length > left ? item.subarray(0, left) : item;
    this.#left[side] = left - bytes.length;
    const { prng } = this.#network;
    const end = this.#ends[other]!;
    if (bytes.length > 1 && prng.chance(0.2)) {
      const at = prng.between(1, bytes.length - 1);
      end.bytes(this, bytes.subarray(0, at));
      end.bytes(this, bytes.subarray(at));
    } else end.bytes(this, bytes);
  }

  #tell(side: Side): void {
    if (!this.#open[side]) return;
    this.#open[side] = false;
    this.#ends[side].gone(this);
    if (!this.#open[0] && !this.#open[1]) this.#network.connections.delete(this);
  }
}
