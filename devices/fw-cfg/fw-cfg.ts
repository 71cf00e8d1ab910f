/**
 * The firmware configuration device: a selector, a data port, and DMA. Everything it offers is read-only. Leaves out:
 * items that the guest writes (`etc/vmgenid_addr`, `etc/ramfb`): such a write answers with the error bit.
 */
import { assert } from '../../src/base/assert.ts';
import { hex } from '../../src/base/bits.ts';
import type { Clock } from '../../src/base/clock.ts';
import { GuestComplaints, type Logger } from '../../src/base/log.ts';
import type { Device } from '../../src/bus/device.ts';
import type { AccessSize, IoRegion } from '../../src/bus/io-bus.ts';
import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import type { FwCfgContent } from './content.ts';
import { DMA, DMA_DESCRIPTOR_BYTES, DMA_SIGNATURE, OFFSET } from './spec.ts';
import { type FwCfgState, fwCfgSchema } from './state.ts';

const EMPTY = new Uint8Array(0);

/** What a {@link FwCfg} is made of. */
export interface FwCfgOptions {
  readonly id: string;
  readonly content: FwCfgContent;
  readonly memory: GuestMemory;
  readonly clock: Clock;
  readonly log: Logger;
}

/** The device; map it with length `FW_CFG_PORTS`. */
export class FwCfg implements Device<FwCfgState>, IoRegion {
  readonly id: string;
  readonly name: string;
  readonly schema = fwCfgSchema;
  readonly #items: ReadonlyMap<number, Uint8Array>;
  readonly #memory: GuestMemory;
  readonly #complaints: GuestComplaints;
  readonly #descriptor = new DataView(new ArrayBuffer(DMA_DESCRIPTOR_BYTES));

  #key = 0;
  #item: Uint8Array = EMPTY;
  #offset = 0;
  #dmaHigh = 0;
  #running = false;

  constructor({ id, content, memory, clock, log }: FwCfgOptions) {
    this.id = id;
    this.name = id;
    this.#items = content.build();
    this.#memory = memory;
    this.#complaints = new GuestComplaints(log, clock, id);
    this.#select(0);
  }

  read(offset: number, size: AccessSize): number {
    if (offset === OFFSET.data && size === 1) return this.#next();
    let value = 0;
    for (let i = 0; i < size; i++) {
      const at = offset + i - OFFSET.dmaHigh;
      if (at >= 0 && at < DMA_SIGNATURE.length) value |= DMA_SIGNATURE.charCodeAt(at) << (8 * i);
    }
    return value >>> 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (offset === OFFSET.selector && size === 2) {
      this.#select(value);
    } else if (offset === OFFSET.dmaHigh && size === 4) {
      this.#dmaHigh = swap32(value);
    } else if (offset === OFFSET.dmaLow && size === 4) {
      const address = this.#dmaHigh * 0x1_0000_0000 + swap32(value);
      this.#dmaHigh = 0;
      this.#transfer(address);
    }
  }

  reset(): void {
    this.#select(0);
    this.#dmaHigh = 0;
  }

  pause(): void {
    this.#running = false;
  }

  resume(): void {
    this.#running = true;
  }

  save(): FwCfgState {
    assert(!this.#running, `${this.id}: state is saved only while paused`);
    return { key: this.#key, offset: this.#offset, dmaHigh: this.#dmaHigh };
  }

  load(state: FwCfgState): void {
    assert(!this.#running, `${this.id}: state is loaded only while paused`);
    const item = this.#items.get(state.key) ?? EMPTY;
    requireState(state.offset <= item.length, 'fw-cfg: offset');
    this.#select(state.key);
    this.#offset = state.offset;
    this.#dmaHigh = state.dmaHigh;
  }

  /** Selects an item from its start; a key that nobody set has an empty one. */
  #select(key: number): void {
    this.#key = key;
    this.#item = this.#items.get(key) ?? EMPTY;
    this.#offset = 0;
  }

  /** The next byte; zero behind the end ("Data Register"). */
  #next(): number {
    return this.#offset < this.#item.length ? this.#item[this.#offset++]! : 0;
  }

  /** Carries out the descriptor at `address`, and says there how it went. */
  #transfer(address: number): void {
    const descriptor = this.#descriptor;
    const bytes = new Uint8Array(descriptor.buffer);
    if (!this.#memory.read(address, bytes)) {
      this.#complaints.warn(`DMA descriptor at ${hex(address)}, which is not RAM`);
      return;
    }
    const control = descriptor.getUint32(0);
    const length = descriptor.getUint32(4);
    const target = descriptor.getUint32(8) * 0x1_0000_0000 + descriptor.getUint32(12);
    if ((control & DMA.select) !== 0) this.#select(control >>> 16);
    let failed = false;
    if ((control & DMA.read) !== 0) {
      failed = !this.#readInto(target, length);
      if (failed) this.#complaints.warn(`DMA to ${hex(target)}+${length}, which is not RAM`);
    } else if ((control & DMA.write) !== 0) {
      failed = true;
      this.#complaints.warn(`DMA write to read-only item ${hex(this.#key)}`);
    } else if ((control & DMA.skip) !== 0) {
      this.#offset = Math.min(this.#offset + length, this.#item.length);
    }
    descriptor.setUint32(0, failed ? DMA.error : 0);
    this.#memory.write(address, bytes, 0, 4);
  }

  /** Copies the next `length` bytes into guest memory, zeros behind the end; false when that is not all RAM. */
  #readInto(target: number, length: number): boolean {
    if (length === 0) return true;
    if (!this.#memory.contains(target, length)) return false;
    const copied = Math.min(length, this.#item.length - this.#offset);
    this.#memory.write(target, this.#item, this.#offset, copied);
    this.#offset += copied;
    if (copied < length) this.#memory.fill(target + copied, length - copied, 0);
    return true;
  }
}

/** The DMA address register is big-endian; the port access was little-endian. */
function swap32(value: number): number {
  return (
    (((value & 0xff) << 24) |
      ((value & 0xff00) << 8) |
      ((value >>> 8) & 0xff00) |
      ((value >>> 24) & 0xff)) >>>
    0
  );
}
