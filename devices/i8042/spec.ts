/**
 * The keyboard controller of a PC. Sections: Intel UPI-41/8042 as described in the IBM PS/2 Hardware Interface
 * Technical Reference, "Keyboard and Auxiliary Device Controller" (KBC below); port 0x92 is its "System Control Port A".
 */

/** Default ports, one byte each. */
export const I8042_DATA_PORT = 0x60;
export const I8042_CONTROL_PORT = 0x64;
export const SYSTEM_CONTROL_A_PORT = 0x92;

/** Status register (KBC, "Status Register"). */
export const STATUS = {
  outputFull: 0x01,
  /** Passed the self-test: the same bit as in the command byte. */
  system: 0x04,
  /** The last write went to the control port. */
  command: 0x08,
  /** The keyboard is not locked. */
  unlocked: 0x10,
  timeout: 0x40,
} as const;

/** Commands, written to the control port (KBC, "Controller Commands"). */
export const COMMAND = {
  /** 0x20-0x3f: reads a byte of the controller's memory; 0x20 is the command byte. */
  readRam: 0x20,
  /** 0x60-0x7f: writes one. */
  writeRam: 0x60,
  disableAux: 0xa7,
  enableAux: 0xa8,
  testAux: 0xa9,
  selfTest: 0xaa,
  testKeyboard: 0xab,
  disableKeyboard: 0xad,
  enableKeyboard: 0xae,
  readInputPort: 0xc0,
  readOutputPort: 0xd0,
  writeOutputPort: 0xd1,
  writeKeyboardOutput: 0xd2,
  writeAuxOutput: 0xd3,
  writeAux: 0xd4,
  disableA20: 0xdd,
  enableA20: 0xdf,
  /** 0xf0-0xff: pulses the output port bits that are 0 in the low half; bit 0 is the reset line. */
  pulse: 0xf0,
} as const;
export const RAM_BYTES = 32;

/** Command byte, address 0 of the controller's memory (KBC, "Controller Command Byte"). */
export const COMMAND_BYTE = { system: 0x04, keyboardOff: 0x10, auxOff: 0x20 } as const;

/** Output port (KBC, "Output Port"). */
export const OUTPUT_PORT = {
  /** 0 holds the machine in reset. */
  notReset: 0x01,
  a20: 0x02,
  /** After reset: running, A20 open, both clock and data lines released. */
  initial: 0xcf,
} as const;

/** Answers. */
export const SELF_TEST_PASSED = 0x55;
/** Interface test: the clock line is held low, which is how a port with nothing behind it shows itself here. */
export const NO_DEVICE = 0x01;
/** What the controller leaves when a device does not answer in time. */
export const NO_ANSWER = 0xfe;

/** System control port A. */
export const PORT_A = { reset: 0x01, a20: 0x02 } as const;
