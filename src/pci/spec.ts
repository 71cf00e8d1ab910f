/**
 * Registers and bits of PCI configuration space that this room uses. "PCI 3.0" is the PCI Local Bus
 * Specification 3.0; offsets are bytes.
 */

/** Bytes of a conventional function's configuration space (PCI 3.0, 6.1). */
export const CONFIG_BYTES = 256;

/** Offsets in a type 0 header (PCI 3.0, 6.1). */
export const PCI_REG = {
  vendorId: 0x00,
  deviceId: 0x02,
  command: 0x04,
  status: 0x06,
  revision: 0x08,
  classCode: 0x09,
  cacheLine: 0x0c,
  latency: 0x0d,
  headerType: 0x0e,
  bar0: 0x10,
  subsystemVendorId: 0x2c,
  subsystemId: 0x2e,
  rom: 0x30,
  capabilities: 0x34,
  interruptLine: 0x3c,
  interruptPin: 0x3d,
} as const;

/** Bits of COMMAND (PCI 3.0, 6.2.2). */
export const PCI_COMMAND = {
  io: 0x0001,
  memory: 0x0002,
  busMaster: 0x0004,
  parity: 0x0040,
  serr: 0x0100,
  intxDisable: 0x0400,
} as const;

/** Bits of STATUS (PCI 3.0, 6.2.3). */
export const PCI_STATUS = {
  interrupt: 0x0008,
  capabilities: 0x0010,
  /** Bits that a write of 1 clears. */
  writeOneToClear: 0xf900,
} as const;

/** Bit of the header type that says there are functions beside 0 (PCI 3.0, 6.2.1). */
export const HEADER_MULTI_FUNCTION = 0x80;

/** Capability ids (PCI 3.0, appendix H). */
export const PCI_CAP = { powerManagement: 0x01, msi: 0x05, vendor: 0x09, msix: 0x11 } as const;

/** Bits of MSI-X message control (PCI 3.0, 6.8.2.3). */
export const MSIX_CONTROL = { enable: 0x8000, functionMask: 0x4000 } as const;

/** Bytes of one MSI-X table entry; bit 0 of its last word masks the vector (PCI 3.0, 6.8.2.6-9). */
export const MSIX_ENTRY_BYTES = 16;

/** Configuration mechanism #1 (PCI 3.0, 3.2.2.3.2). */
export const CONFIG_ADDRESS_PORT = 0xcf8;
/** The data half of mechanism #1. */
export const CONFIG_DATA_PORT = 0xcfc;

export const SLOTS_PER_BUS = 32;
export const FUNCTIONS_PER_SLOT = 8;
