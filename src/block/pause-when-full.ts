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

/** What is remembered of a request, to issue it again. */
class Kept {
  op: BlockOp = 0;
  offset = 0;
  length = 0;
  count = 0;
  addresses = new Float64Array(8);
  lengths = new Uint32Array(8);
}

export class PauseWhenFull implements BlockBackend {
  readonly #inner: BlockBackend;
  readonly #onFull: () => void;
  readonly #kept: (Kept | undefined)[];
  #held: number[] = [];
  #told = false;
  #handler: BlockHandler | undefined;
  #delivered = 0;
  readonly #drain = new Drain(() => this.inFlight);

  /** @param onFull the first write of a series was kept: stop the guest, tell the operator, later call {@link resume} */
  constructor(inner: BlockBackend, onFull: () => void) {
    this.#inner = inner;
    this.#onFull = onFull;
    this.#kept = new Array<Kept | undefined>(inner.info.maxRequests).fill(undefined);
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
    let kept = this.#kept[tag];
    if (kept === undefined) {
      kept = new Kept();
      this.#kept[tag] = kept;
    }
    kept.op = op;
    kept.offset = offsetBytes;
    kept.length = lengthBytes;
    kept.count = count;
    if (kept.addresses.length < count) {
      kept.addresses = new Float64Array(2 * count);
      kept.lengths = new Uint32Array(2 * count);
    }
    for (let i = 0; i < count; i++) {
      kept.addresses[i] = addresses[first + i]!;
      kept.lengths[i] = lengths[first + i]!;
    }
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
    for (const tag of held) {
      const { op, offset, length, addresses, lengths, count } = this.#kept[tag]!;
      this.#inner.queue(tag, op, offset, length, addresses, lengths, 0, count);
    }
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
