/**
 * The transactions that a standby holds apart from the guest, in the order of their ids: at most one is still arriving, one is being
 * validated, one is being applied. Bookkeeping for the receiver (receiver.ts), which decides; the content is the shell's.
 */
import type { Manifest } from '../wire/message.ts';

/** One transaction. */
export interface Staged {
  readonly id: number;
  /** Payload bytes and CONTINUE frames so far. */
  bytes: number;
  frames: number;
  manifest: Manifest | undefined;
  stage: 'open' | 'complete' | 'validating' | 'acked' | 'applying';
}

function unacknowledged({ stage }: Staged): boolean {
  return stage === 'open' || stage === 'complete' || stage === 'validating';
}

/** See the module's head. */
export class StagedList {
  readonly #list: Staged[] = [];
  #bytes = 0;

  /** Payload bytes of all of them. */
  get bytes(): number {
    return this.#bytes;
  }

  /** The oldest. */
  get first(): Staged | undefined {
    return this.#list[0];
  }

  /** The one that is still arriving. */
  get open(): Staged | undefined {
    const last = this.#list.at(-1);
    return last?.stage === 'open' ? last : undefined;
  }

  /** The id of the newest, if there is one. */
  get lastId(): number | undefined {
    return this.#list.at(-1)?.id;
  }

  /** The oldest one that is not acknowledged. */
  get unacked(): Staged | undefined {
    return this.#list.find(unacknowledged);
  }

  /** The oldest one in this stage. */
  in(stage: Staged['stage']): Staged | undefined {
    return this.#list.find((staged) => staged.stage === stage);
  }

  count(stage: Staged['stage']): number {
    let count = 0;
    for (const staged of this.#list) if (staged.stage === stage) count++;
    return count;
  }

  /** Transaction `id` begins to arrive. */
  begin(id: number): void {
    this.#list.push({ id, bytes: 0, frames: 0, manifest: undefined, stage: 'open' });
  }

  /** A part of the open one arrived. */
  part(open: Staged, bytes: number): void {
    open.frames++;
    open.bytes += bytes;
    this.#bytes += bytes;
  }

  /** The oldest one is applied. */
  shift(): void {
    this.#bytes -= this.#list.shift()?.bytes ?? 0;
  }

  /** Drops `id` and what follows it. @returns whether there was any */
  dropFrom(id: number): boolean {
    const index = this.#list.findIndex((staged) => staged.id >= id);
    if (index < 0) return false;
    for (const dropped of this.#list.splice(index)) this.#bytes -= dropped.bytes;
    return true;
  }

  clear(): void {
    this.#list.length = 0;
    this.#bytes = 0;
  }
}
