/** The saved state of the ACPI power management block. */
import { u16, u53 } from '../../src/snapshot/codec.ts';
import { schema } from '../../src/snapshot/schema.ts';

export interface AcpiPmState {
  readonly status: number;
  readonly enable: number;
  readonly control: number;
  /** Nanoseconds since the timer stood at 0. */
  readonly timerNs: number;
}

export const acpiPmSchema = schema<AcpiPmState>('acpi-pm', 1, {
  status: u16,
  enable: u16,
  control: u16,
  timerNs: u53,
});
