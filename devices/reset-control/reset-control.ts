/**
 * The reset control register of a PC chip set (port 0xcf9): the register that FADT names as the way to reset, and
 * that `reboot=pci` uses. Its port lies inside the PCI configuration address dword, so where there is a PCI bus the
 * board does not map it but hands it to that bus.
 */
import { assert } from '../../src/base/assert.ts';
import type { Device } from '../../src/bus/device.ts';
import type { AccessSize, IoRegion } from '../../src/bus/io-bus.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import { RST_CNT } from './spec.ts';
import { type ResetControlState, resetControlSchema } from './state.ts';

/** What a {@link ResetControl} is made of. */
export interface ResetControlOptions {
  readonly id: string;
  /** Called inside the guest's write. `soft` asks for INIT only; a machine may treat it like `hard`. */
  readonly onReset: (kind: 'hard' | 'soft') => void;
}

/** The register; one byte. */
export class ResetControl implements Device<ResetControlState>, IoRegion {
  readonly id: string;
  readonly name: string;
  readonly schema = resetControlSchema;
  readonly maxAccess: AccessSize = 1;
  readonly #onReset: (kind: 'hard' | 'soft') => void;
  #value = 0;
  #running = false;

  constructor({ id, onReset }: ResetControlOptions) {
    this.id = id;
    this.name = id;
    this.#onReset = onReset;
  }

  read(): number {
    return this.#value;
  }

  write(_offset: number, _size: AccessSize, value: number): void {
    this.#value = value & RST_CNT.kept;
    // RST_CPU is never left standing, so every write of 1 is the transition that resets.
    if ((value & RST_CNT.resetCpu) !== 0) {
      this.#onReset((value & RST_CNT.systemReset) !== 0 ? 'hard' : 'soft');
    }
  }

  reset(): void {
    this.#value = 0;
  }

  pause(): void {
    this.#running = false;
  }

  resume(): void {
    this.#running = true;
  }

  save(): ResetControlState {
    assert(!this.#running, `${this.id}: state is saved only while paused`);
    return { value: this.#value };
  }

  load(state: ResetControlState): void {
    assert(!this.#running, `${this.id}: state is loaded only while paused`);
    requireState((state.value & ~RST_CNT.kept) === 0, 'reset-control: value');
    this.#value = state.value;
  }
}
