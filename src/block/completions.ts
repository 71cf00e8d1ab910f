/**
 * Bookkeeping that every disk backend needs: who receives completions, which tags are in flight, who waits for none.
 */
import { assert } from '../base/assert.ts';
import type { BlockHandler } from './backend.ts';
import { Drain } from './drain.ts';

export class Completions {
  inFlight = 0;
  #handler: BlockHandler | undefined;
  #delivering = false;
  #delivered = 0;
  #closed = false;
  readonly #busy: Uint8Array;
  readonly #drain = new Drain(() => this.inFlight);

  constructor(maxRequests: number) {
    this.#busy = new Uint8Array(maxRequests);
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** True while a batch is being handed over: `poll` must do nothing then. */
  get delivering(): boolean {
    return this.#delivering;
  }

  setHandler(handler: BlockHandler): void {
    this.#handler = handler;
  }

  /** A request was queued. */
  begin(tag: number): void {
    assert(!this.#closed, 'no request after close');
    assert(this.#handler !== undefined, 'a disk has a handler before its first request');
    assert(tag >= 0 && tag < this.#busy.length && this.#busy[tag] === 0, 'the tag is free');
    this.#busy[tag] = 1;
    this.inFlight++;
  }

  /** Whether `tag` is in flight. */
  isBusy(tag: number): boolean {
    return this.#busy[tag] === 1;
  }

  /** One request is done. Between {@link start} and {@link end}. */
  deliver(tag: number, result: number): void {
    assert(this.#busy[tag] === 1, 'only a request in flight completes');
    this.#busy[tag] = 0;
    this.inFlight--;
    this.#delivered++;
    this.#handler!.complete(tag, result);
  }

  start(): void {
    assert(!this.#delivering, 'batches do not nest');
    this.#delivering = true;
    this.#delivered = 0;
  }

  /** Ends a batch and wakes who waited for the last request; how many were delivered. */
  end(): number {
    const count = this.#delivered;
    if (count > 0) this.#handler!.batchEnd();
    this.#delivering = false;
    this.#drain.settle();
    return count;
  }

  drain(done: () => void): void {
    this.#drain.wait(done);
  }

  /** Resolves when nothing is in flight; nothing can be queued from now on. */
  async close(): Promise<void> {
    this.#closed = true;
    await new Promise<void>((resolve) => this.drain(resolve));
  }
}
