/** The saved state of the reset control register. */
import { u8 } from '../../src/snapshot/codec.ts';
import { schema } from '../../src/snapshot/schema.ts';

export interface ResetControlState {
  /** The kind of reset that was prepared. */
  readonly value: number;
}

export const resetControlSchema = schema<ResetControlState>('reset-control', 1, { value: u8 });
