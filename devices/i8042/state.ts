/** The saved state of the keyboard controller. */
import { bool, fixedBytes, u8 } from '../../src/snapshot/codec.ts';
import { schema } from '../../src/snapshot/schema.ts';
import { RAM_BYTES } from './spec.ts';

export interface I8042State {
  /** Address 0 is the command byte. */
  readonly ram: Uint8Array;
  readonly outputPort: number;
  readonly outputFull: boolean;
  readonly output: number;
  /** The byte in the output buffer stands for a device that did not answer. */
  readonly timedOut: boolean;
  /** The last write went to the control port. */
  readonly commandLast: boolean;
  /** The command whose data byte is still to come; 0 for none. */
  readonly pending: number;
}

export const i8042Schema = schema<I8042State>('i8042', 1, {
  ram: fixedBytes(RAM_BYTES),
  outputPort: u8,
  outputFull: bool,
  output: u8,
  timedOut: bool,
  commandLast: bool,
  pending: u8,
});
