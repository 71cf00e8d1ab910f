/** What the CMOS memory of a new machine holds, for firmware that sizes memory and counts processors by it. */
import { CMOS, CMOS_BYTES, EQUIPMENT_FPU } from './spec.ts';

const KIB = 1024;
const MIB = 1024 * KIB;

/** What firmware may read from CMOS about the machine. */
export interface CmosContent {
  /** Bytes of RAM below 4 GiB. */
  readonly lowMemory: number;
  /** Bytes of RAM from 4 GiB on. */
  readonly highMemory: number;
  readonly cpus: number;
  /** Boot devices (`BOOT_DEVICE`), first one first, at most three. */
  readonly bootOrder?: readonly number[];
}

/** The 128 bytes; the clock's own are 0. */
export function cmosContent(content: CmosContent): Uint8Array {
  const { lowMemory, highMemory, cpus, bootOrder = [] } = content;
  const cmos = new Uint8Array(CMOS_BYTES);
  const store = (at: number, size: number, value: number): void => {
    let left = Math.min(Math.max(Math.floor(value), 0), 2 ** (8 * size) - 1);
    for (let i = 0; i < size; i++, left = Math.floor(left / 256)) cmos[at + i] = left % 256;
  };
  store(CMOS.equipment, 1, EQUIPMENT_FPU);
  store(CMOS.baseMemory, 2, Math.min(lowMemory / KIB, 640));
  store(CMOS.extendedMemory, 2, (lowMemory - MIB) / KIB);
  store(CMOS.extendedMemory2, 2, (lowMemory - MIB) / KIB);
  store(CMOS.memoryAbove16M, 2, (lowMemory - 16 * MIB) / (64 * KIB));
  store(CMOS.memoryAbove4G, 3, highMemory / (64 * KIB));
  store(CMOS.processors, 1, cpus - 1);
  const [first = 0, second = 0, third = 0] = bootOrder;
  store(CMOS.bootOrder, 1, first | (second << 4));
  store(CMOS.bootOrder3, 1, third << 4);
  let sum = 0;
  for (let at = CMOS.checksumStart; at < CMOS.checksumEnd; at++) sum += cmos[at]!;
  cmos[CMOS.checksum] = sum >> 8;
  cmos[CMOS.checksum + 1] = sum & 0xff;
  return cmos;
}
