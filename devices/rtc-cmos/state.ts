/** The saved state of the real-time clock. */
import { f64, fixedBytes, u8, u32 } from '../../src/snapshot/codec.ts';
import { schema } from '../../src/snapshot/schema.ts';
import { CMOS_BYTES } from './spec.ts';

export interface RtcState {
  readonly index: number;
  /** All bytes as stored; those of a running clock's time are not used. */
  readonly cmos: Uint8Array;
  /** Guest time less wall time: whole seconds, and 0-999999 microseconds. */
  readonly offsetSeconds: number;
  readonly offsetUs: number;
  /** The guest's second (since 1970) up to which update and alarm flags are done. */
  readonly doneSecond: number;
  /** Nanoseconds since the last tick of the periodic interrupt. */
  readonly periodicAgeNs: number;
}

export const rtcSchema = schema<RtcState>('rtc-cmos', 1, {
  index: u8,
  cmos: fixedBytes(CMOS_BYTES),
  offsetSeconds: f64,
  offsetUs: u32,
  doneSecond: f64,
  periodicAgeNs: f64,
});
