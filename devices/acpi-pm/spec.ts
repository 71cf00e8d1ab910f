/**
 * Fixed ACPI power management hardware. Sections: ACPI Specification 6.5.
 */

/** Default base port, and how many ports the block takes. */
export const ACPI_PM_PORT = 0x600;
export const ACPI_PM_PORTS = 12;

/** Offsets in the block; FADT tells the guest (5.2.9). */
export const OFFSET = {
  /** PM1a event block: status (2), enable (2). */
  pm1Status: 0,
  pm1Enable: 2,
  /** PM1a control block (2). */
  pm1Control: 4,
  /** PM timer (4). */
  timer: 8,
} as const;
export const PM1_EVENT_BYTES = 4;
export const PM1_CONTROL_BYTES = 2;
export const PM_TIMER_BYTES = 4;

/** PM1 status and enable bits (4.8.3.1.1, 4.8.3.1.2). */
export const PM1 = {
  timer: 0x0001,
  busMaster: 0x0010,
  global: 0x0020,
  powerButton: 0x0100,
  sleepButton: 0x0200,
  rtc: 0x0400,
  wake: 0x8000,
  /** Status bits that this machine can set. */
  status: 0x8521,
  /** Enable bits that exist. */
  enable: 0x0721,
  /** Status bits that raise SCI while enabled. */
  events: 0x0721,
} as const;

/** PM1 control bits (4.8.3.2.1). */
export const PM1_CONTROL = {
  sciEnable: 0x0001,
  busMasterReload: 0x0002,
  sleepType: 0x1c00,
  sleepTypeShift: 10,
  /** Write-only: enter the sleep state of `sleepType`. */
  sleepEnable: 0x2000,
  /** What is kept as written. */
  kept: 0x1c02,
} as const;

/** The sleep type that means S5 (soft off); the DSDT's \_S5 says so. 0 is also what SeaBIOS switches off with. */
export const SLEEP_TYPE_S5 = 0;

/** PM timer (4.8.3.3): its rate, Hz. */
export const PM_TIMER_HZ = 3_579_545;
