/**
 * The debug-exit port: a guest ends the run by writing a byte. For test and benchmark guests; the board maps it
 * only where it is asked for.
 */
import { assert } from '../../src/base/assert.ts';
import type { Device } from '../../src/bus/device.ts';
import type { AccessSize, IoRegion } from '../../src/bus/io-bus.ts';
import { exitStatus } from './spec.ts';
import { type DebugExitState, debugExitSchema } from './state.ts';

/** What a {@link DebugExit} is made of. */
export interface DebugExitOptions {
  readonly id: string;
  /** Called inside the guest's write, with the exit status to use (odd, 1-255). */
  readonly onExit: (status: number) => void;
}

/** The port; map it with length `DEBUG_EXIT_PORTS`. */
export class DebugExit implements Device<DebugExitState>, IoRegion {
  readonly id: string;
  readonly name: string;
  readonly schema = debugExitSchema;
  readonly #onExit: (status: number) => void;
  #running = false;

  constructor({ id, onExit }: DebugExitOptions) {
    this.id = id;
    this.name = id;
    this.#onExit = onExit;
  }

  read(): number {
    return 0;
  }

  write(_offset: number, _size: AccessSize, value: number): void {
    this.#onExit(exitStatus(value));
  }

  reset(): void {}

  pause(): void {
    this.#running = false;
  }

  resume(): void {
    this.#running = true;
  }

  save(): DebugExitState {
    assert(!this.#running, `${this.id}: state is saved only while paused`);
    return {};
  }

  load(_state: DebugExitState): void {
    assert(!this.#running, `${this.id}: state is loaded only while paused`);
  }
}
