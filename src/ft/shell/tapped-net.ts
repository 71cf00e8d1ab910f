/**
 * The event-tap in front of a network: while it holds, sent frames are copied into the tap and leave on release; a full tap
 * is back-pressure. Received frames are input and pass. Released frames that the network does not take at once wait in
 * a bounded queue here.
 */
import { FrameBatch, type NetBackend, type NetHandler, type NetInfo } from '../../net/backend.ts';
import type { EventTap } from '../core/event-tap.ts';
import type { Lease } from './lease.ts';

/** What a tapped backend tells its owner. */
export interface TapEvents {
  /** An output found the tap full: a commit should start. */
  tapFull(): void;
}

/** Released frames waiting for the network; more than one batch's worth is only there while the network is stuck. */
const QUEUE_FRAMES = 4096;

/** See the module's head. */
export class TappedNet implements NetBackend {
  readonly #inner: NetBackend;
  readonly #tap: EventTap;
  readonly #events: TapEvents;
  readonly #device: number;
  readonly #queue: FrameBatch;
  #sent = 0;
  #handler: NetHandler | undefined;
  #refused = false;
  #lease: Lease | undefined;

  /**
   * @param device number of this output in the tap's log
   * @param queueBytes at least what the tap holds
   */
  constructor(
    inner: NetBackend,
    tap: EventTap,
    device: number,
    events: TapEvents,
    queueBytes: number,
  ) {
    this.#inner = inner;
    this.#tap = tap;
    this.#device = device;
    this.#events = events;
    this.#queue = new FrameBatch(QUEUE_FRAMES, queueBytes);
  }

  /** Frames leave only while this runs. */
  setLease(lease: Lease): void {
    this.#lease = lease;
  }

  get info(): NetInfo {
    return this.#inner.info;
  }

  /** While nothing is held, frames pass; one that is held has to be a copy, because its buffer is the guest's again. */
  get sendsGuestMemory(): boolean {
    return !this.#tap.holding && this.#inner.sendsGuestMemory === true;
  }

  get linkUp(): boolean {
    return this.#inner.linkUp;
  }

  setHandler(handler: NetHandler): void {
    this.#handler = handler;
    this.#inner.setHandler({
      receivable: () => handler.receivable(),
      linkChanged: (up) => handler.linkChanged(up),
      writable: () => {
        this.flush();
        if (this.#queue.count === 0) handler.writable();
      },
    });
  }

  send(batch: FrameBatch, from: number): number {
    const tap = this.#tap;
    if (!tap.holding) {
      if (this.#queue.count === 0 && this.#lease?.valid !== false) {
        return this.#inner.send(batch, from);
      }
      this.#refused = true;
      return 0;
    }
    let taken = 0;
    for (let i = from; i < batch.count; i++) {
      const start = batch.offsets[i]!;
      if (!tap.holdFrame(this.#device, batch.bytes, start, start + batch.lengths[i]!)) {
        this.#refused = true;
        this.#events.tapFull();
        break;
      }
      taken++;
    }
    return taken;
  }

  receive(batch: FrameBatch, maxFrames: number): number {
    return this.#inner.receive(batch, maxFrames);
  }

  setReceiveEnabled(enabled: boolean): void {
    this.#inner.setReceiveEnabled(enabled);
  }

  setReceiveOffloads(bits: number): void {
    this.#inner.setReceiveOffloads(bits);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  /** A released frame, header included. Sent by the next {@link flush}. */
  released(bytes: Uint8Array, start: number, end: number): void {
    if (!this.#queue.room(end - start)) this.flush();
    const at = this.#queue.add(end - start);
    // No room: the network has been stuck for a whole tap's worth. Ethernet may lose it; the guest's TCP resends.
    if (at >= 0) this.#queue.bytes.set(bytes.subarray(start, end), at);
  }

  /** Gives released frames to the network as far as it takes them. */
  flush(): void {
    const queue = this.#queue;
    if (this.#lease?.valid === false) return;
    if (queue.count > this.#sent) this.#sent += this.#inner.send(queue, this.#sent);
    if (this.#sent === queue.count) {
      queue.clear();
      this.#sent = 0;
    }
  }

  /** The tap has room again. */
  wake(): void {
    if (!this.#refused || this.#lease?.valid === false) return;
    this.#refused = false;
    this.#handler?.writable();
  }
}
