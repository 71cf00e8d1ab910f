/**
 * The reset control register at I/O port 0xcf9. Sections: Intel I/O Controller Hub 9 data sheet, 13.7.5 (RST_CNT).
 */

/** Default I/O port; one byte, inside the dword of PCI's configuration address. */
export const RESET_CONTROL_PORT = 0xcf9;

/** RST_CNT (13.7.5). */
export const RST_CNT = {
  /** 1: hard reset (of the whole machine), 0: soft reset (INIT of the processor). */
  systemReset: 0x02,
  /** Going from 0 to 1 performs the reset. */
  resetCpu: 0x04,
  /** 1: with a power cycle. */
  fullReset: 0x08,
  kept: 0x0a,
} as const;
