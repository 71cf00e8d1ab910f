/**
 * The debug console: a port that takes the log of firmware, byte by byte. It never makes the guest wait; what the
 * outside has no room for is its loss. The board maps it where somebody wants to read that log.
 */
import { assert } from '../../src/base/assert.ts';
import type { Device } from '../../src/bus/device.ts';
import type { AccessSize, IoRegion } from '../../src/bus/io-bus.ts';
import { DEBUG_CONSOLE_PRESENT } from './spec.ts';
import { type DebugConsoleState, debugConsoleSchema } from './state.ts';

/** What a {@link DebugConsole} is made of. */
export interface DebugConsoleOptions {
  readonly id: string;
  /** Called inside the guest's write with each byte; must not keep an unbounded amount. */
  readonly onByte: (byte: number) => void;
}

/** The port; map it with length 1. */
export class DebugConsole implements Device<DebugConsoleState>, IoRegion {
  readonly id: string;
  readonly name: string;
  readonly schema = debugConsoleSchema;
  readonly maxAccess: AccessSize = 1;
  readonly #onByte: (byte: number) => void;
  #running = false;

  constructor({ id, onByte }: DebugConsoleOptions) {
    this.id = id;
    this.name = id;
    this.#onByte = onByte;
  }

  read(): number {
    return DEBUG_CONSOLE_PRESENT;
  }

  write(_offset: number, _size: AccessSize, value: number): void {
    this.#onByte(value);
  }

  reset(): void {}

  pause(): void {
    this.#running = false;
  }

  resume(): void {
    this.#running = true;
  }

  save(): DebugConsoleState {
    assert(!this.#running, `${this.id}: state is saved only while paused`);
    return {};
  }

  load(_state: DebugConsoleState): void {
    assert(!this.#running, `${this.id}: state is loaded only while paused`);
  }
}
