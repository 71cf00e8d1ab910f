/** Two network backends joined back to back in one process: what one sends the other receives. For tests and demos. */
import type { FrameBatch, NetBackend, NetHandler, NetInfo } from './backend.ts';
import { FrameQueue } from './frame-queue.ts';
import { Readiness } from './readiness.ts';

const QUEUE_BYTES = 256 * 1024;

/** Both ends of a new cable. */
export function createLoop(queueBytes: number = QUEUE_BYTES): [LoopBackend, LoopBackend] {
  const a = new LoopBackend('loop a', queueBytes);
  const b = new LoopBackend('loop b', queueBytes);
  a.join(b);
  b.join(a);
  return [a, b];
}

export class LoopBackend implements NetBackend {
  readonly info: NetInfo;
  linkUp = true;
  readonly #queue: FrameQueue;
  readonly #readiness = new Readiness(() => this.#queue.hasFrame());
  #peer: LoopBackend | undefined;
  #blocked = false;

  constructor(name: string, queueBytes: number) {
    this.info = { name, sendOffloads: 0, receiveOffloads: 0, mtu: undefined };
    this.#queue = new FrameQueue(queueBytes);
  }

  /** Connects this end's sending side to `peer`. */
  join(peer: LoopBackend): void {
    this.#peer = peer;
  }

  setHandler(handler: NetHandler): void {
    this.#readiness.handler = handler;
    this.#readiness.check();
  }

  send(batch: FrameBatch, from: number): number {
    const count = batch.count - from;
    const peer = this.#peer;
    if (peer === undefined) return count;
    const taken = peer.#queue.appendFrames(batch, from);
    this.#blocked = taken < count;
    peer.#readiness.check();
    return taken;
  }

  receive(batch: FrameBatch, maxFrames: number): number {
    const added = this.#queue.takeFrames(batch, maxFrames);
    const peer = this.#peer;
    if (added > 0 && peer !== undefined && peer.#blocked) {
      peer.#blocked = false;
      setImmediate(() => peer.#readiness.handler?.writable());
    }
    return Math.max(added, 0);
  }

  setReceiveEnabled(enabled: boolean): void {
    this.#readiness.enabled = enabled;
    this.#readiness.check();
  }

  setReceiveOffloads(): void {}

  /** Unplugs or plugs this end. */
  setLink(up: boolean): void {
    if (this.linkUp === up) return;
    this.linkUp = up;
    setImmediate(() => this.#readiness.handler?.linkChanged(up));
  }

  async close(): Promise<void> {
    this.#readiness.close();
    const peer = this.#peer;
    this.#peer = undefined;
    if (peer === undefined) return;
    peer.#peer = undefined;
    peer.setLink(false);
  }
}
