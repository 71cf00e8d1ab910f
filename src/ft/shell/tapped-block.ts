/**
 * The event-tap in front of a disk that both hosts share: while it holds, a write or flush is noted and waits, pinned in guest
 * memory; on release it goes to the disk, and only when the disk has done it does the guest hear of it. Reads pass.
 * A held request is never in the log: it is found again in the saved state of the device.
 */

import { assert } from '../../base/assert.ts';
import {
  BLOCK_OP,
  type BlockBackend,
  type BlockHandler,
  type BlockInfo,
  type BlockOp,
  ERRNO,
} from '../../block/backend.ts';
import { KeptRequests } from '../../block/kept-requests.ts';
import { type EventTap, HELD_BLOCK } from '../core/event-tap.ts';
import type { Lease } from './lease.ts';

/** What a tapped disk tells its owner. */
export interface BlockTapEvents {
  /** A released request is done at the disk. */
  blockDone(device: number, tag: number): void;
}

/** State of a tag here: not ours, held by the tap, or released to the disk. */
const PASSED = 0;
const HELD = 1;
const RELEASED = 2;
/** With a lease: given to the disk while nothing was held. Its segments are noted, in case the disk refuses it for the lease's end. */
const NOTED = 3;

/** See the module's head. */
export class TappedBlock implements BlockBackend {
  readonly #inner: BlockBackend;
  readonly #tap: EventTap;
  readonly #device: number;
  readonly #events: BlockTapEvents;
  readonly #state: Uint8Array;
  /** What is held, parked, or noted. */
  readonly #kept: KeptRequests;
  #heldCount = 0;
  #lease: Lease | undefined;
  /** Tags of requests that came after the lease's end, in order: the guest is not told, they wait for the next lease. */
  #parked: number[] = [];
  /** Whether a write can be seen from outside: not where the standby has a copy of its own, which gets it with the epoch. */
  isOutput = true;

  #drained: (() => void) | undefined;

  constructor(inner: BlockBackend, tap: EventTap, device: number, events: BlockTapEvents) {
    this.#inner = inner;
    this.#tap = tap;
    this.#device = device;
    this.#events = events;
    const { maxRequests } = inner.info;
    this.#state = new Uint8Array(maxRequests);
    this.#kept = new KeptRequests(maxRequests);
  }

  get info(): BlockInfo {
    return this.#inner.info;
  }

  get inFlight(): number {
    return this.#inner.inFlight + this.#heldCount + this.#parked.length;
  }

  setHandler(handler: BlockHandler): void {
    this.#inner.setHandler({
      complete: (tag, result) => {
        if (result === ERRNO.EKEYEXPIRED && this.#state[tag] !== PASSED) {
          this.#parked.push(tag);
          return;
        }
        const released = this.#state[tag] === RELEASED;
        this.#state[tag] = PASSED;
        handler.complete(tag, result);
        if (released) this.#events.blockDone(this.#device, tag);
      },
      batchEnd: () => {
        handler.batchEnd();
        this.#checkDrained();
      },
    });
  }

  queue(
    tag: number,
    op: BlockOp,
    offsetBytes: number,
    lengthBytes: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void {
    const { holding } = this.#tap;
    const passes = !this.isOutput || op === BLOCK_OP.read;
    if (passes || (!holding && this.#lease === undefined)) {
      this.#inner.queue(tag, op, offsetBytes, lengthBytes, addresses, lengths, first, count);
      return;
    }
    assert(this.#state[tag] === PASSED, 'a tag in flight is not queued again');
    this.#kept.keep(tag, op, offsetBytes, lengthBytes, addresses, lengths, first, count);
    if (!holding) {
      this.#state[tag] = NOTED;
      this.#pass(tag);
      return;
    }
    const kind = op === BLOCK_OP.flush ? HELD_BLOCK.flush : HELD_BLOCK.write;
    const held = this.#tap.holdBlock(this.#device, tag, kind, offsetBytes, lengthBytes);
    assert(held, "the tap has room for every disk's every request");
    this.#state[tag] = HELD;
    this.#heldCount++;
  }

  submit(): void {
    this.#inner.submit();
  }

  poll(): number {
    return this.#inner.poll();
  }

  drain(done: () => void): void {
    this.#drained = done;
    this.#checkDrained();
  }

  #checkDrained(): void {
    if (this.#drained === undefined || this.inFlight > 0) return;
    const done = this.#drained;
    this.#drained = undefined;
    done();
  }

  /** What the disk has is given up; what the tap holds is covered by an epoch and goes to the disk in its turn. */
  abandon(): void {
    this.#inner.abandon?.();
  }

  setLeaseDeadlineNs(deadlineNs: number): void {
    this.#inner.setLeaseDeadlineNs?.(deadlineNs);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  /** The tap releases request `tag`. Given to the disk by the next {@link submit}. */
  released(tag: number): void {
    assert(this.#state[tag] === HELD, 'only a held request is released');
    this.#state[tag] = RELEASED;
    this.#heldCount--;
    this.#pass(tag);
  }

  /** Writes and flushes leave only while this runs. */
  setLease(lease: Lease): void {
    this.#lease = lease;
  }

  /** What waited for a lease goes to the disk, and everything that was given to it is submitted. */
  unpark(): void {
    if (this.#parked.length > 0 && this.#lease?.valid !== false) {
      for (const tag of this.#parked.splice(0)) this.#pass(tag);
    }
    this.#inner.submit();
  }

  /** Gives the noted request to the disk, or parks it behind the lease's end. */
  #pass(tag: number): void {
    if (this.#lease?.valid === false) {
      this.#parked.push(tag);
      return;
    }
    this.#kept.queueAt(this.#inner, tag);
  }
}
