/** Numbers of the block device (VIRTIO 1.2, 5.2). */

/** Feature bits (5.2.3). */
export const BLK_FEATURE = {
  segMax: 2,
  readonly: 5,
  blockSize: 6,
  flush: 9,
  topology: 10,
  configWce: 11,
  discard: 13,
  writeZeroes: 14,
} as const;

/** Offsets in the device configuration (5.2.4). */
export const BLK_CONFIG = {
  capacity: 0,
  segMax: 12,
  blockSize: 20,
  physicalBlockExp: 24,
  minIoSize: 26,
  optIoSize: 28,
  writeback: 32,
  numQueues: 34,
  maxDiscardSectors: 36,
  maxDiscardSeg: 40,
  discardAlignment: 44,
  maxWriteZeroesSectors: 48,
  maxWriteZeroesSeg: 52,
  writeZeroesMayUnmap: 56,
  bytes: 60,
} as const;

/** Request types (5.2.6). */
export const BLK_REQUEST = {
  in: 0,
  out: 1,
  flush: 4,
  getId: 8,
  discard: 11,
  writeZeroes: 13,
} as const;

/** The byte that ends every request. */
export const BLK_STATUS = { ok: 0, ioError: 1, unsupported: 2 } as const;

/** The unit of sector numbers, whatever the block size. */
export const SECTOR_BYTES = 512;
/** Type, reserved, sector. */
export const HEADER_BYTES = 16;
/** One range of discard or write zeroes: sector, number of sectors, flags. */
export const RANGE_BYTES = 16;
/** Bit 0 of a range's flags: the space may be given back. */
export const RANGE_UNMAP = 1;
/** Length of the identification string. */
export const ID_BYTES = 20;
