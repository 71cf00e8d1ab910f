/**
 * A connection to a foreign peer in memory: the one side is a socket to the code under test, the other is the fuzzer's.
 * Nothing of the operating system is in between, so a seed gives the same splits and the same order every time.
 */
import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import type { Prng } from '../../src/base/prng.ts';

export class PeerSocket extends Duplex {
  /** What the code under test wrote; the fuzzer takes it from here. */
  received = Buffer.alloc(0);
  /** While true the peer does not read, and writes do not end. */
  stalled = false;
  #written: (() => void)[] = [];
  #connected = false;

  constructor() {
    super({ allowHalfOpen: false });
    setImmediate(() => {
      this.#connected = true;
      this.emit('connect');
    });
  }

  /** As the code under test takes it. */
  get socket(): Socket {
    return this as unknown as Socket;
  }

  setNoDelay(): this {
    return this;
  }
  setKeepAlive(): this {
    return this;
  }

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.received = Buffer.concat([this.received, chunk]);
    if (this.stalled) this.#written.push(done);
    else setImmediate(done);
  }

  /** The peer reads again. */
  unstall(): void {
    this.stalled = false;
    for (const done of this.#written.splice(0)) done();
  }

  /** The peer sends `bytes`, cut where chance has it. */
  say(random: Prng, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && !this.destroyed; ) {
      const most = random.pick([1, 3, 20, 1000, 65_536]);
      const end = Math.min(bytes.length, at + random.between(1, most));
      this.push(Buffer.from(bytes.subarray(at, end)));
      at = end;
    }
  }

  /** The peer goes away: in good order, or not. */
  hangUp(random: Prng): void {
    if (this.destroyed) return;
    const inOrder = random.chance(0.5);
    const go = (): void => {
      if (inOrder) this.push(null);
      this.destroy();
    };
    // Nobody hangs up before there is a connection.
    if (this.#connected) go();
    else this.once('connect', () => setImmediate(go));
  }
}

/** Lets the event loop turn. */
export function turns(count = 1): Promise<void> {
  return new Promise((resolve) => {
    const next = (left: number): void => {
      if (left === 0) resolve();
      else setImmediate(() => next(left - 1));
    };
    next(count);
  });
}

/** Changes, inserts, removes or cuts off some bytes. */
export function mutated(random: Prng, bytes: Uint8Array): Uint8Array {
  let out = bytes.slice();
  for (let i = random.between(1, 3); i > 0; i--) {
    const at = random.below(out.length + 1);
    switch (random.below(5)) {
      case 0:
      case 1:
        if (at < out.length) out[at] = random.pick([0, 1, 0x7f, 0x80, 0xff, random.below(256)]);
        break;
      case 2: {
        const extra = new Uint8Array(random.below(random.pick([4, 100, 20_000])));
        random.fill(extra.subarray(0, 64));
        out = Buffer.concat([out.subarray(0, at), extra, out.subarray(at)]);
        break;
      }
      case 3:
        out = Buffer.concat([out.subarray(0, at), out.subarray(at + random.below(8))]);
        break;
      default:
        out = out.slice(0, at);
    }
  }
  return out;
}
