/**
 * The firmware configuration device, as QEMU documents it for guests (docs/specs/fw_cfg.rst, "fwcfg" below): the way
 * in which SeaBIOS, OVMF and others learn about a virtual machine.
 */

/** Default base port: selector (2 bytes), data at +1, DMA address at +4 (8 bytes) ("Register Locations"). */
export const FW_CFG_PORT = 0x510;
export const FW_CFG_PORTS = 12;
export const OFFSET = { selector: 0, data: 1, dmaHigh: 4, dmaLow: 8 } as const;

/** Well-known keys ("Signature", "Revision / feature bitmap", "File Directory"; the others by custom). */
export const KEY = {
  signature: 0x0000,
  id: 0x0001,
  uuid: 0x0002,
  ramSize: 0x0003,
  graphics: 0x0004,
  cpus: 0x0005,
  kernelAddress: 0x0007,
  kernelSize: 0x0008,
  initrdAddress: 0x000a,
  initrdSize: 0x000b,
  bootMenu: 0x000e,
  maxCpus: 0x000f,
  kernelData: 0x0011,
  initrdData: 0x0012,
  commandLineAddress: 0x0013,
  commandLineSize: 0x0014,
  commandLineData: 0x0015,
  setupAddress: 0x0016,
  setupSize: 0x0017,
  setupData: 0x0018,
  directory: 0x0019,
  firstFile: 0x0020,
  /** x86: whether ISA interrupt 0 is IOAPIC pin 2. */
  irq0Override: 0x8002,
} as const;

/** Content of {@link KEY.signature}. */
export const SIGNATURE = 'QEMU';
/** Content of {@link KEY.id}: traditional and DMA interface. */
export const FEATURES = 0x03;
/** What the DMA address register reads as ("Guest-side DMA Interface"). */
export const DMA_SIGNATURE = 'QEMU CFG';

/** Directory: a count, then entries ("File Directory"); all big-endian. */
export const DIRECTORY_ENTRY_BYTES = 64;
export const FILE_NAME_BYTES = 56;

/** DMA descriptor: control, length, 64-bit address, big-endian ("Guest-side DMA Interface"). */
export const DMA_DESCRIPTOR_BYTES = 16;
export const DMA = { error: 0x01, read: 0x02, skip: 0x04, select: 0x08, write: 0x10 } as const;
