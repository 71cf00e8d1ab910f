/**
 * A decorator for the policy "pause when the disk is full": a write that fails with ENOSPC is kept instead of being
 * reported to the guest; the owner is told, stops the guest, and after an operator made room lets the writes go again.
 * Without this decorator (policy "report") the guest sees the error.
 */
import { assert } from '../base/assert.ts';
import {
  type BlockBackend,
  type BlockHandler,
  type BlockInfo,
  type BlockOp,
  ERRNO,
} from './backend.ts';
import { Drain } from './drain.ts';
import { KeptRequests } from './kept-requests.ts';

export class PauseWhenFull implements BlockBackend {
  readonly #inner: BlockBackend;
  readonly #onFull: () => void;
  readonly #kept: KeptRequests;
  #held: number[] = [];
  #told = false;
  #handler: BlockHandler | undefined;
  #delivered = 0;
  readonly #drain = new Drain(() => this.inFlight);

  /** @param onFull the first write of a series was kept: stop the guest, tell the operator, later call {@link resume} */
  constructor(inner: BlockBackend, onFull: () => void) {
    this.#inner = inner;
    this.#onFull = onFull;
    this.#kept = new KeptRequests(inner.info.maxRequests);
  }

  get info(): BlockInfo {
    return this.#inner.info;
  }

  get inFlight(): number {
    return this.#inner.inFlight + this.#held.length;
  }

  /** Writes that wait for room. */
  get heldCount(): number {
    return this.#held.length;
  }

  setHandler(handler: BlockHandler): void {
    this.#handler = handler;
    this.#inner.setHandler({
      complete: (tag, result) => this.#complete(tag, result),
      batchEnd: () => this.#batchEnd(),
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
    assert(!this.#held.includes(tag), 'the tag is free');
    this.#kept.keep(tag, op, offsetBytes, lengthBytes, addresses, lengths, first, count);
    this.#inner.queue(tag, op, offsetBytes, lengthBytes, addresses, lengths, first, count);
  }

  submit(): void {
    this.#inner.submit();
  }

  poll(): number {
    return this.#inner.poll();
  }

  /** With writes kept this waits for {@link resume} as well. */
  drain(done: () => void): void {
    this.#drain.wait(done);
  }

  /** Kept writes are given up. */
  abandon(): void {
    const held = this.#held;
    this.#held = [];
    this.#told = false;
    for (const tag of held) {
      this.#delivered++;
      this.#handler!.complete(tag, ERRNO.ECANCELED);
    }
    if (held.length > 0) this.#batchEnd();
    this.#inner.abandon?.();
  }

  setLeaseDeadlineNs(deadlineNs: number): void {
    this.#inner.setLeaseDeadlineNs?.(deadlineNs);
  }

  /** Issues the kept writes again; those that find the disk still full are kept again, and `onFull` is called again. */
  resume(): void {
    const held = this.#held;
    this.#held = [];
    this.#told = false;
    for (const tag of held) this.#kept.queueAt(this.#inner, tag);
    if (held.length > 0) this.#inner.submit();
  }

  /** Kept writes complete with ENOSPC. */
  async close(): Promise<void> {
    const held = this.#held;
    this.#held = [];
    for (const tag of held) this.#handler!.complete(tag, ERRNO.ENOSPC);
    if (held.length > 0) this.#handler!.batchEnd();
    await this.#inner.close();
    this.#drain.settle();
  }

  #complete(tag: number, result: number): void {
    if (result === ERRNO.ENOSPC) {
      this.#held.push(tag);
      return;
    }
    this.#delivered++;
    this.#handler!.complete(tag, result);
  }

  #batchEnd(): void {
    const delivered = this.#delivered;
    this.#delivered = 0;
    if (delivered > 0) this.#handler!.batchEnd();
    if (this.#held.length > 0 && !this.#told) {
      this.#told = true;
      this.#onFull();
    }
    this.#drain.settle();
  }
}
