/** The saved state of a 16550A. */
import { bool, bytes, optional, u8, u53 } from '../../src/snapshot/codec.ts';
import { schema } from '../../src/snapshot/schema.ts';
import { FIFO_BYTES } from './spec.ts';

/** Every register and FIFO; what is derived (IIR, most of LSR) is not in it. */
export interface UartState {
  readonly ier: number;
  /** As kept: enable, DMA mode, trigger. */
  readonly fcr: number;
  readonly lcr: number;
  readonly mcr: number;
  readonly msr: number;
  readonly scratch: number;
  readonly divisorLow: number;
  readonly divisorHigh: number;
  /** Error bits of LSR that no read has cleared. */
  readonly lineErrors: number;
  /** Received bytes, oldest first, and the error bits of each. */
  readonly received: Uint8Array;
  readonly receivedErrors: Uint8Array;
  /** Bytes that the backend has not taken yet, oldest first. */
  readonly transmitting: Uint8Array;
  /** The transmitter-empty interrupt is pending: it is an event, not a level (8.6). */
  readonly transmitEmptyPending: boolean;
  /** The character timeout has happened. */
  readonly timedOut: boolean;
  /** Nanoseconds until it happens, when it is under way. */
  readonly timeoutInNs: number | undefined;
}

export const uartSchema = schema<UartState>('uart16550', 1, {
  ier: u8,
  fcr: u8,
  lcr: u8,
  mcr: u8,
  msr: u8,
  scratch: u8,
  divisorLow: u8,
  divisorHigh: u8,
  lineErrors: u8,
  received: bytes(FIFO_BYTES),
  receivedErrors: bytes(FIFO_BYTES),
  transmitting: bytes(FIFO_BYTES),
  transmitEmptyPending: bool,
  timedOut: bool,
  timeoutInNs: optional(u53),
});
