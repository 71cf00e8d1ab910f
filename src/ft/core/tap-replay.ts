/**
 * The standby's copy of the event-tap's log: the outputs that the primary may not have released yet, as of the
 * last applied transaction, and that transaction's triggers. At a takeover the outputs are sent again from
 * their bytes and the triggers are executed (R2). Bounded by what the two ends agreed on (R5).
 */
import { assert } from '../../base/assert.ts';
import { LOGGED, LOGGED_HEADER_BYTES, TapLogReader } from '../wire/tap-log.ts';

/** Where a takeover sends the log. */
export interface ReplaySink {
  /** A net frame; the bytes are lent for the call. */
  frame(device: number, bytes: Uint8Array, start: number, end: number): void;
  console(device: number, bytes: Uint8Array, start: number, end: number): void;
  /** A guest write that no device has seen: run it through the bus, with all its `size` bytes. */
  trigger(space: number, size: number, address: number, valueLo: number, valueHi: number): void;
}

/** What is wrong with a log, or undefined. */
export type LogVerdict = 'malformed' | 'gap' | 'too large' | undefined;

interface Logged {
  readonly seq: number;
  readonly kind: number;
  readonly device: number;
  readonly data: Uint8Array;
}

interface Trigger {
  readonly space: number;
  readonly size: number;
  readonly address: number;
  readonly valueLo: number;
  readonly valueHi: number;
}

/** The log as the standby keeps it. */
export class TapReplay {
  readonly #reader = new TapLogReader();
  readonly #bytesMax: number;
  #outputs: Logged[] = [];
  #triggers: Trigger[] = [];
  #bytes = 0;
  /** Number that the next log has to start with, as far as logs were accepted; undefined: any. */
  #nextAccepted: number | undefined;
  #nextApplied = 1;

  /** @param bytesMax the agreed `tapBytesMax` */
  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** Bytes of output kept. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Outputs kept. */
  get count(): number {
    return this.#outputs.length;
  }

  /** Number for the first output of the guest that goes on from here. */
  get nextSeq(): number {
    return this.#nextApplied;
  }

  /** A first copy begins: nothing is known. */
  reset(): void {
    this.#outputs = [];
    this.#triggers = [];
    this.#bytes = 0;
    this.#nextAccepted = undefined;
    this.#nextApplied = 1;
  }

  /** Looks at the log of a transaction that is to be acknowledged next; changes nothing. */
  check(body: Uint8Array, start: number, end: number): LogVerdict {
    const r = this.#reader.reset(body, start, end);
    if (!r.check()) return 'malformed';
    if (r.releasedThrough >= r.firstSeq) return 'malformed';
    // Numbers may be missing only where the primary, on its own for a while, let everything out.
    const next = this.#nextAccepted ?? r.firstSeq;
    const released = r.firstSeq > next && r.releasedThrough === r.firstSeq - 1;
    if (r.firstSeq !== next && !released) return 'gap';
    return end - start > this.#bytesMax + LOGGED_HEADER_BYTES * (r.outputs + r.triggers * 3 + 3)
      ? 'too large'
      : undefined;
  }

  /** The transaction with this log, which {@link check} found sound, is acknowledged. */
  accept(body: Uint8Array, start: number, end: number): void {
    const r = this.#reader.reset(body, start, end);
    this.#nextAccepted = r.firstSeq + r.outputs;
  }

  /** The transaction with this log is applied: forget what was released, add what is new. */
  apply(body: Uint8Array, start: number, end: number): void {
    const r = this.#reader.reset(body, start, end);
    const through = r.releasedThrough;
    while (this.#outputs[0] !== undefined && this.#outputs[0].seq <= through) {
      this.#bytes -= this.#outputs.shift()!.data.length;
    }
    let seq = r.firstSeq;
    while (r.nextOutput()) {
      const data = body.slice(r.dataStart, r.dataEnd);
      this.#outputs.push({ seq: seq++, kind: r.kind, device: r.device, data });
      this.#bytes += data.length;
    }
    this.#triggers = [];
    while (r.nextTrigger()) {
      const { space, size, address, valueLo, valueHi } = r;
      this.#triggers.push({ space, size, address, valueLo, valueHi });
    }
    assert(!r.malformed, 'only a checked log is applied');
    this.#nextApplied = seq;
  }

  /**
   * Sends everything again, in order, then executes the triggers. Once, after the devices are restored and
   * before their queues are kicked.
   */
  replay(sink: ReplaySink): void {
    for (const { kind, device, data } of this.#outputs) {
      if (kind === LOGGED.frame) sink.frame(device, data, 0, data.length);
      else sink.console(device, data, 0, data.length);
    }
    for (const t of this.#triggers) sink.trigger(t.space, t.size, t.address, t.valueLo, t.valueHi);
    this.#outputs = [];
    this.#triggers = [];
    this.#bytes = 0;
  }
}
