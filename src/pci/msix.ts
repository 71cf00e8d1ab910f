/**
 * MSI-X of one function: the vector table and the pending bits, as a register region for a BAR of its own
 * (PCI 3.0, 6.8.2). The table lies at offset 0, the pending bits in the upper half. Message control lives in
 * configuration space; the function tells this object when it changes.
 *
 * Vectors of the controller are made when a guest first unmasks them, and pointed at a message only when it has
 * changed, since that is a change of the host's interrupt routing.
 */
import { assert } from '../base/assert.ts';
import type { MsiController, MsiVector } from '../bus/interrupts.ts';
import type { AccessSize, IoRegion } from '../bus/io-bus.ts';
import { MSIX_CONTROL, MSIX_ENTRY_BYTES } from './spec.ts';

/** Most vectors of a function here; the specification's 2048 serve nobody with so few queues. */
export const MSIX_MAX_VECTORS = 128;
/** Bytes of the BAR that {@link Msix.region} answers. */
export const MSIX_BAR_BYTES = 4096;
/** Offset of the pending bits in that BAR. */
export const MSIX_PBA_OFFSET = 2048;

export class Msix {
  readonly vectors: number;
  readonly region: IoRegion;
  readonly #table: Uint8Array;
  readonly #view: DataView;
  readonly #pending: Uint8Array;
  readonly #handles: (MsiVector | undefined)[];
  /** 1 where the table entry differs from what the handle was last configured with. */
  readonly #stale: Uint8Array;
  #controller: MsiController | undefined;
  #enabled = false;
  #functionMasked = false;

  constructor(name: string, vectors: number) {
    assert(
      vectors >= 1 && vectors <= MSIX_MAX_VECTORS,
      `${name}: 1 to ${MSIX_MAX_VECTORS} vectors`,
    );
    this.vectors = vectors;
    this.#table = new Uint8Array(vectors * MSIX_ENTRY_BYTES);
    this.#view = new DataView(this.#table.buffer);
    this.#pending = new Uint8Array(Math.ceil(vectors / 64) * 8);
    this.#handles = new Array<MsiVector | undefined>(vectors).fill(undefined);
    this.#stale = new Uint8Array(vectors);
    this.region = {
      name: `${name} msix`,
      read: (offset, size) => this.#read(offset, size),
      write: (offset, size, value) => this.#write(offset, size, value),
    };
    this.#clear();
  }

  /** Whether the guest has turned MSI-X on (then INTx is off). */
  get enabled(): boolean {
    return this.#enabled;
  }

  /** Sets where vectors come from; once. */
  attach(controller: MsiController): void {
    this.#controller = controller;
  }

  /** Takes over message control as the guest wrote it; sends what was pending and is now unmasked. */
  setControl(control: number): void {
    this.#enabled = (control & MSIX_CONTROL.enable) !== 0;
    this.#functionMasked = (control & MSIX_CONTROL.functionMask) !== 0;
    for (let i = 0; i < this.vectors; i++) this.#settle(i);
  }

  /** Sends vector `index`, or leaves it pending while masked. Does nothing while MSI-X is off. */
  trigger(index: number): void {
    assert(index >= 0 && index < this.vectors, 'MSI-X vector exists');
    if (!this.#enabled) return;
    if (this.#masked(index)) {
      this.#pending[index >> 3]! |= 1 << (index & 7);
      return;
    }
    this.#send(index);
  }

  /** Table and pending bits as after power-on; gives the host's vectors back. */
  reset(): void {
    this.#enabled = false;
    this.#functionMasked = false;
    for (let i = 0; i < this.vectors; i++) {
      this.#handles[i]?.release();
      this.#handles[i] = undefined;
    }
    this.#clear();
  }

  /** Bytes of the table. */
  get tableBytes(): number {
    return this.#table.length;
  }

  /** Bytes of the pending bits. */
  get pendingBytes(): number {
    return this.#pending.length;
  }

  /** A copy of the table. */
  saveTable(): Uint8Array {
    return this.#table.slice();
  }

  /** A copy of the pending bits. */
  savePending(): Uint8Array {
    return this.#pending.slice();
  }

  /** Takes over table and pending bits; {@link setControl} with the restored control must follow. */
  load(table: Uint8Array, pending: Uint8Array): void {
    assert(table.length === this.tableBytes, 'the table was checked');
    assert(pending.length === this.pendingBytes, 'the pending bits were checked');
    this.reset();
    this.#table.set(table);
    this.#pending.set(pending);
  }

  #clear(): void {
    this.#table.fill(0);
    this.#pending.fill(0);
    this.#stale.fill(1);
    for (let i = 0; i < this.vectors; i++) this.#view.setUint32(i * MSIX_ENTRY_BYTES + 12, 1, true);
  }

  #masked(index: number): boolean {
    return this.#functionMasked || (this.#table[index * MSIX_ENTRY_BYTES + 12]! & 1) !== 0;
  }

  /** Sends a pending vector that is no longer held back, and keeps a live vector's message current. */
  #settle(index: number): void {
    if (!this.#enabled || this.#masked(index)) return;
    this.#handle(index);
    const bit = 1 << (index & 7);
    if ((this.#pending[index >> 3]! & bit) === 0) return;
    this.#pending[index >> 3]! &= ~bit;
    this.#send(index);
  }

  #send(index: number): void {
    this.#handle(index).trigger();
  }

  #handle(index: number): MsiVector {
    let handle = this.#handles[index];
    if (handle === undefined) {
      assert(this.#controller !== undefined, 'the function is on a bus');
      handle = this.#controller.vector();
      this.#handles[index] = handle;
    }
    if (this.#stale[index] === 1) {
      this.#stale[index] = 0;
      const at = index * MSIX_ENTRY_BYTES;
      handle.configure(
        this.#view.getUint32(at, true),
        this.#view.getUint32(at + 4, true),
        this.#view.getUint32(at + 8, true),
      );
    }
    return handle;
  }

  #read(offset: number, size: AccessSize): number {
    const bytes = offset < MSIX_PBA_OFFSET ? this.#table : this.#pending;
    const at = offset < MSIX_PBA_OFFSET ? offset : offset - MSIX_PBA_OFFSET;
    let value = 0;
    for (let i = 0; i < size; i++) value |= (bytes[at + i] ?? 0) << (8 * i);
    return value >>> 0;
  }

  /** Table writes; the pending bits are read-only (PCI 3.0, 6.8.2.10). Byte writes are taken as written. */
  #write(offset: number, size: AccessSize, value: number): void {
    if (offset >= this.#table.length) return;
    for (let i = 0; i < size && offset + i < this.#table.length; i++) {
      const at = offset + i;
      const field = at % MSIX_ENTRY_BYTES;
      // Of vector control only bit 0 exists; the address is dword aligned.
      const mask = field === 0 ? 0xfc : field === 12 ? 1 : field > 12 ? 0 : 0xff;
      this.#table[at] = (value >>> (8 * i)) & mask;
      if (field < 12) this.#stale[Math.floor(at / MSIX_ENTRY_BYTES)] = 1;
    }
    const first = Math.floor(offset / MSIX_ENTRY_BYTES);
    const last = Math.min(Math.floor((offset + size - 1) / MSIX_ENTRY_BYTES), this.vectors - 1);
    for (let i = first; i <= last; i++) this.#settle(i);
  }
}
