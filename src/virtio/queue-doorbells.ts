/** The doorbells of a function's queues while the host watches them (KVM ioeventfd). Used by `VirtioPciFunction`. */
import { hex } from '../base/bits.ts';
import { VmmError } from '../base/error.ts';
import type { Doorbell, DoorbellRegistrar } from '../bus/doorbell.ts';
import { NOTIFY_MULTIPLIER } from './pci-window.ts';
import type { VirtQueue } from './queue.ts';

/** Who hears of them. */
export interface DoorbellListener {
  /** Queue `index` was rung. */
  ring(index: number): void;
  /** The host watches no doorbell there: the same write arrives as an ordinary one. */
  refused(why: string): void;
}

export class QueueDoorbells {
  readonly #queues: readonly VirtQueue[];
  readonly #registrar: DoorbellRegistrar | undefined;
  readonly #listener: DoorbellListener;
  readonly #rings: (Doorbell | undefined)[];

  /** @param registrar without one nothing is watched */
  constructor(
    queues: readonly VirtQueue[],
    registrar: DoorbellRegistrar | undefined,
    listener: DoorbellListener,
  ) {
    this.#queues = queues;
    this.#registrar = registrar;
    this.#listener = listener;
    this.#rings = queues.map(() => undefined);
  }

  /** Has every enabled queue's doorbell watched; the first queue's is at `base`. */
  place(base: number): void {
    for (let i = 0; i < this.#queues.length; i++) {
      if (!this.#queues[i]!.enabled || this.#rings[i] !== undefined) continue;
      this.#rings[i] = this.#add(base + NOTIFY_MULTIPLIER * i, i);
    }
  }

  /** Gives all of them back. */
  drop(): void {
    for (let i = 0; i < this.#rings.length; i++) {
      this.#rings[i]?.remove();
      this.#rings[i] = undefined;
    }
  }

  /** A doorbell, or undefined where the host refuses it: a guest may put two BARs at one address. */
  #add(address: number, index: number): Doorbell | undefined {
    try {
      return this.#registrar?.add(address, () => this.#listener.ring(index));
    } catch (error) {
      if (!(error instanceof VmmError)) throw error;
      this.#listener.refused(`no doorbell at ${hex(address)}: ${error.message}`);
      return undefined;
    }
  }
}
