/**
 * The real-time clock and CMOS memory of a PC. Sections are those of the Motorola MC146818A data sheet; the use of
 * the memory beyond the clock is the IBM AT's and what PC firmware made of it.
 */

/** Default ports: index, data. The interrupt is ISA 8. */
export const RTC_PORTS = 2;

/** Addresses of the clock ("Address map"). */
export const REG = {
  seconds: 0x00,
  secondsAlarm: 0x01,
  minutes: 0x02,
  minutesAlarm: 0x03,
  hours: 0x04,
  hoursAlarm: 0x05,
  /** 1 = Sunday. */
  weekday: 0x06,
  day: 0x07,
  month: 0x08,
  year: 0x09,
  a: 0x0a,
  b: 0x0b,
  c: 0x0c,
  d: 0x0d,
  /** Not part of the chip: where PC firmware and ACPI expect the century. */
  century: 0x32,
} as const;
export const CMOS_BYTES = 128;

/** Register A ("Register A"). */
export const A = {
  updateInProgress: 0x80,
  divider: 0x70,
  /** The divider setting of a 32.768 kHz crystal: the clock runs. */
  dividerRunning: 0x20,
  rate: 0x0f,
  kept: 0x7f,
} as const;

/** Register B ("Register B"). */
export const B = {
  set: 0x80,
  periodicEnable: 0x40,
  alarmEnable: 0x20,
  updateEnable: 0x10,
  squareWave: 0x08,
  binary: 0x04,
  hours24: 0x02,
  daylight: 0x01,
} as const;

/** Register C ("Register C"); reading it clears it. */
export const C = { irq: 0x80, periodic: 0x40, alarm: 0x20, update: 0x10, all: 0xf0 } as const;

/** Register D: RAM and time are valid. */
export const D_VALID = 0x80;

/** Bit 7 of the hours in 12-hour mode. */
export const PM = 0x80;
/** An alarm register with both top bits set matches anything ("Alarm"). */
export const ALARM_ANY = 0xc0;
/** Time from "update in progress" to the update, microseconds ("Update cycle", tBUC). */
export const UPDATE_AHEAD_US = 244;
/** The crystal, Hz; the fastest taps of its divider are 32768 >> n. */
export const CRYSTAL_HZ = 32768;
/** The clock starts half a second after the divider is let go ("Divider control"). */
export const DIVIDER_START_US = 500_000;

/** Bytes of the memory that firmware reads. */
export const CMOS = {
  diskette: 0x10,
  equipment: 0x14,
  /** Conventional memory, KiB, 2 bytes. */
  baseMemory: 0x15,
  /** Memory above 1 MiB, KiB, at most 65535; 2 bytes, in two places. */
  extendedMemory: 0x17,
  extendedMemory2: 0x30,
  checksumStart: 0x10,
  checksumEnd: 0x2e,
  /** Sum of what is between, big-endian, 2 bytes. */
  checksum: 0x2e,
  /** Memory above 16 MiB and below 4 GiB, 64 KiB units, 2 bytes. */
  memoryAbove16M: 0x34,
  /** Third boot device in the high half. */
  bootOrder3: 0x38,
  /** First boot device in the low half, second in the high half. */
  bootOrder: 0x3d,
  /** Memory above 4 GiB, 64 KiB units, 3 bytes. */
  memoryAbove4G: 0x5b,
  /** Processors less one. */
  processors: 0x5f,
} as const;
/** Equipment: a floating point unit. */
export const EQUIPMENT_FPU = 0x02;
/** Boot devices as {@link CMOS.bootOrder} numbers them. */
export const BOOT_DEVICE = { none: 0, floppy: 1, disk: 2, cdrom: 3, network: 4 } as const;
