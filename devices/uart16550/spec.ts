/**
 * Registers of the 16550A serial port. Sections are those of the National Semiconductor PC16550D data sheet
 * (June 1995); the port and interrupt defaults are the IBM PC's.
 */

/** First serial port of a PC: base port, length and ISA interrupt. */
export const UART_PORTS = 8;

/** Register offsets (8.0, table II). With DLAB set, offsets 0 and 1 are the divisor latch. */
export const REG = {
  /** Receiver buffer (read), transmitter holding (write), divisor low (DLAB). */
  data: 0,
  /** Interrupt enable, divisor high (DLAB). */
  ier: 1,
  /** Interrupt identification (read), FIFO control (write). */
  iirFcr: 2,
  lcr: 3,
  mcr: 4,
  lsr: 5,
  msr: 6,
  scratch: 7,
} as const;

/** Interrupt enable register (8.7). */
export const IER = {
  received: 0x01,
  transmitEmpty: 0x02,
  lineStatus: 0x04,
  modemStatus: 0x08,
  mask: 0x0f,
} as const;

/** Interrupt identification (8.6, table IV), highest priority first; the top bits say that the FIFOs are on. */
export const IIR = {
  lineStatus: 0x06,
  received: 0x04,
  timeout: 0x0c,
  transmitEmpty: 0x02,
  modemStatus: 0x00,
  none: 0x01,
  fifos: 0xc0,
} as const;

/** FIFO control (8.5). */
export const FCR = {
  enable: 0x01,
  resetReceive: 0x02,
  resetTransmit: 0x04,
  /** What is kept: enable, DMA mode (without effect here), trigger level. */
  kept: 0xc9,
} as const;
/** Bytes in the receive FIFO that raise an interrupt, by FCR bits 7:6 (8.5). */
export const TRIGGER_LEVELS = [1, 4, 8, 14] as const;
export const FIFO_BYTES = 16;

/** Line control (8.1). */
export const LCR = {
  wordLength: 0x03,
  twoStops: 0x04,
  parity: 0x08,
  break: 0x40,
  divisorLatch: 0x80,
} as const;

/** Line status (8.4). */
export const LSR = {
  dataReady: 0x01,
  overrun: 0x02,
  parity: 0x04,
  framing: 0x08,
  break: 0x10,
  transmitEmpty: 0x20,
  transmitterIdle: 0x40,
  fifoError: 0x80,
  /** What raises a line status interrupt and a read clears. */
  errors: 0x1e,
  /** Errors that belong to one received byte. */
  byteErrors: 0x1c,
} as const;

/** Modem control (8.8). */
export const MCR = {
  dtr: 0x01,
  rts: 0x02,
  out1: 0x04,
  /** On a PC this output opens the gate between the chip and the interrupt controller. */
  out2: 0x08,
  loopback: 0x10,
  mask: 0x1f,
} as const;

/** Modem status (8.9): inputs in the high half, what changed since the last read in the low half. */
export const MSR = {
  deltaCts: 0x01,
  deltaDsr: 0x02,
  trailingRi: 0x04,
  deltaDcd: 0x08,
  deltas: 0x0f,
  cts: 0x10,
  dsr: 0x20,
  ri: 0x40,
  dcd: 0x80,
} as const;

/** The inputs that a connected terminal drives: ready, and carrier present. */
export const CONNECTED = 0xb0;

/** The PC's crystal, Hz; a bit lasts 16 × divisor cycles (8.3, table III). */
export const INPUT_CLOCK_HZ = 1_843_200;
/** The divisor after reset (the data sheet leaves it open): 9600 baud. */
export const RESET_DIVISOR = 12;
/** Silence after which bytes below the trigger level are announced, in character times (8.6, FIFO mode). */
export const TIMEOUT_CHARACTERS = 4;
