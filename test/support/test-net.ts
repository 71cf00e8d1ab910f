/** A network backend that a test drives by hand: nothing happens before {@link TestNet.pump}. */

import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import {
  type FrameBatch,
  type NetBackend,
  type NetHandler,
  type NetInfo,
  VNET_HEADER_BYTES,
} from '../../src/net/backend.ts';

export class TestNet implements NetBackend {
  readonly info: NetInfo;
  linkUp = true;
  /** Entries sent by the device, headers included. */
  readonly sent: Uint8Array[] = [];
  /** How many more entries it takes. */
  room = Number.POSITIVE_INFINITY;
  /** Entries that wait to be received, headers included. */
  readonly incoming: Uint8Array[] = [];
  receiveEnabled = false;
  receiveOffloads = 0;
  /** When set, frames may go on in this memory. */
  memory: GuestMemory | undefined;
  /** Segments of guest memory that were sent. */
  tails = 0;
  #handler: NetHandler | undefined;

  constructor(info: Partial<NetInfo> = {}) {
    this.info = { name: 'test', sendOffloads: 0, receiveOffloads: 0, mtu: undefined, ...info };
  }

  get sendsGuestMemory(): boolean {
    return this.memory !== undefined;
  }

  setHandler(handler: NetHandler): void {
    this.#handler = handler;
  }

  send(batch: FrameBatch, from: number): number {
    let taken = 0;
    for (let i = from; i < batch.count && this.room > 0; i++, taken++, this.room--) {
      const at = batch.offsets[i]!;
      const entry = [...batch.bytes.subarray(at, at + batch.lengths[i]!)];
      if (this.memory !== undefined) entry.push(...this.#tail(this.memory, batch, i));
      this.sent.push(Uint8Array.from(entry));
    }
    return taken;
  }

  #tail(memory: GuestMemory, batch: FrameBatch, index: number): number[] {
    const bytes: number[] = [];
    for (let k = batch.tailEnds[index - 1] ?? 0; k < batch.tailEnds[index]!; k++) {
      const segment = new Uint8Array(batch.tailLengths[k]!);
      memory.read(batch.tailAddresses[k]!, segment);
      bytes.push(...segment);
      this.tails++;
    }
    return bytes;
  }

  receive(batch: FrameBatch, maxFrames: number): number {
    let added = 0;
    while (added < maxFrames && this.incoming.length > 0) {
      const entry = this.incoming[0]!;
      const at = batch.add(entry.length);
      if (at < 0) break;
      batch.bytes.set(entry, at);
      this.incoming.shift();
      added++;
    }
    return added;
  }

  setReceiveEnabled(enabled: boolean): void {
    this.receiveEnabled = enabled;
  }

  setReceiveOffloads(bits: number): void {
    this.receiveOffloads = bits;
  }

  async close(): Promise<void> {}

  /** A frame (behind a zero header, or `header`) arrives. */
  arrive(frame: Uint8Array, header = new Uint8Array(VNET_HEADER_BYTES)): void {
    const entry = new Uint8Array(VNET_HEADER_BYTES + frame.length);
    entry.set(header);
    entry.set(frame, VNET_HEADER_BYTES);
    this.incoming.push(entry);
  }

  /** Turns of the event loop, until nothing is left to receive or the device does not want it. */
  pump(): void {
    for (let turn = 0; turn < 1000; turn++) {
      if (!this.receiveEnabled || this.incoming.length === 0) return;
      this.#handler?.receivable();
    }
    throw new Error('the device keeps receiving enabled and takes nothing');
  }

  /** Takes `room` more entries and says so. */
  becomeWritable(room: number): void {
    this.room = room;
    this.#handler?.writable();
  }

  setLink(up: boolean): void {
    this.linkUp = up;
    this.#handler?.linkChanged(up);
  }
}

/** An Ethernet frame of `length` bytes with a recognisable content. */
export function frameTo(mac: readonly number[], length: number, fill = 0x5a): Uint8Array {
  const frame = new Uint8Array(length).fill(fill);
  frame.set(mac, 0);
  frame.set([2, 0, 0, 0, 0, 99], 6);
  frame.set([0x08, 0x00], 12);
  return frame;
}
