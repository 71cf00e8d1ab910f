/**
 * The life of a device on the board: built, (restored,) running, paused, running ..., gone. The board calls
 * these in order; a device asserts that it is never asked for state while running.
 */
import type { Schema } from '../snapshot/schema.ts';

/** What the board needs of every device. `S` is its saved state, plain data. */
export interface Device<S = unknown> {
  /** Unique on the board: `uart0`, `virtio-blk:disk0`. */
  readonly id: string;
  /** Name, version and layout of the saved state. */
  readonly schema: Schema<S>;
  /** Back to power-on state; idempotent; allowed while running or paused. */
  reset(): void;
  /** Stops timers, backends' callbacks and DMA; guest memory and state stand still afterwards. Idempotent. */
  pause(): void;
  /** Goes on after {@link pause} or after construction; re-evaluates interrupt lines and kicks queues. Idempotent. */
  resume(): void;
  /** The state, a deep copy; only while paused. */
  save(): S;
  /**
   * Throws unless {@link load} would take `state`, as far as that depends on the board or the backends; changes nothing. A peer
   * asks before it promises to go on from a state.
   * @throws VmmError `STATE_INVALID`
   */
  check?(state: S): void;
  /**
   * Takes over a decoded state; only on a fresh or paused device.
   * @throws VmmError `STATE_INVALID` when a value is outside what the device can be in
   */
  load(state: S): void;
}
