/**
 * Direct boot of a Linux bzImage by the 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst): the
 * protected-mode part at its preferred address, a zero page with the setup header, memory map, command line,
 * initrd and ACPI root pointer, long mode with the low 4 GiB mapped one to one.
 */
import { alignDown, alignUp, hex, isPowerOfTwo } from '../../base/bits.ts';
import { SHADOW_END } from '../layout.ts';
import { BOOT_AREA, type BootEntry, type BootInput } from './entry.ts';
import { badImage, noRoom } from './image-error.ts';
import { lowRamEnd, placeCommandLine, placeInitrd } from './placement.ts';

/** Offsets in the setup header and zero page ("The Real-Mode Kernel Header", "zero-page"). */
const AT = {
  acpiRsdp: 0x70,
  extRamdiskImage: 0xc0,
  extRamdiskSize: 0xc4,
  extCommandLine: 0xc8,
  e820Entries: 0x1e8,
  setupSectors: 0x1f1,
  bootFlag: 0x1fe,
  jump: 0x200,
  magic: 0x202,
  version: 0x206,
  typeOfLoader: 0x210,
  loadFlags: 0x211,
  code32Start: 0x214,
  ramdiskImage: 0x218,
  ramdiskSize: 0x21c,
  heapEnd: 0x224,
  commandLine: 0x228,
  initrdAddressMax: 0x22c,
  kernelAlignment: 0x230,
  relocatable: 0x234,
  minAlignment: 0x235,
  xloadFlags: 0x236,
  commandLineSize: 0x238,
  prefAddress: 0x258,
  initSize: 0x260,
  e820Table: 0x2d0,
} as const;

const HEADER_MAGIC = 0x5372_6448; // "HdrS"
/** 2.12: the first with xloadflags, so the first that can say it has a 64-bit entry. */
const MIN_VERSION = 0x020c;
const LOADED_HIGH = 1;
const CAN_USE_HEAP = 0x80;
const XLF_KERNEL_64 = 1;
const E820_MAX = 128;
const LOADER_UNDEFINED = 0xff;

/** Whether the file looks like a bzImage (boot flag and header magic). */
export function isBzImage(image: Uint8Array): boolean {
  if (image.length < AT.initSize + 4) return false;
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  return (
    view.getUint16(AT.bootFlag, true) === 0xaa55 && view.getUint32(AT.magic, true) === HEADER_MAGIC
  );
}

/**
 * Loads a bzImage.
 * @throws VmmError `BOOT_IMAGE`, `BOOT_MEMORY`, `BOOT_COMMAND_LINE`
 */
export function loadBzImage(input: BootInput): BootEntry {
  const { memory, kernel, kernelName, e820 } = input;
  const view = new DataView(kernel.buffer, kernel.byteOffset, kernel.byteLength);
  const version = view.getUint16(AT.version, true);
  if (version < MIN_VERSION) {
    throw badImage(
      'kernel',
      kernelName,
      `its boot protocol ${version >> 8}.${version & 0xff} is older than 2.12`,
    );
  }
  if ((view.getUint16(AT.xloadFlags, true) & XLF_KERNEL_64) === 0) {
    throw badImage('kernel', kernelName, 'it has no 64-bit entry point');
  }
  const setupBytes = ((kernel[AT.setupSectors] || 4) + 1) * 512;
  const headerEnd = AT.magic + kernel[AT.jump + 1]!;
  if (setupBytes >= kernel.length || headerEnd > setupBytes || headerEnd <= AT.initSize + 3) {
    throw badImage('kernel', kernelName, 'its setup header does not fit the file');
  }
  const codeBytes = kernel.length - setupBytes;
  const load = chooseLoadAddress(input, view, codeBytes);
  const initSize = view.getUint32(AT.initSize, true);
  memory.write(load, kernel, setupBytes, codeBytes);

  const zero = BOOT_AREA.zeroPage;
  memory.fill(zero, 4096, 0);
  memory.write(zero + AT.setupSectors, kernel, AT.setupSectors, headerEnd - AT.setupSectors);
  const commandLine = placeCommandLine(input, view.getUint32(AT.commandLineSize, true));
  const initrd = placeInitrd(
    input,
    load + Math.max(codeBytes, initSize),
    view.getUint32(AT.initrdAddressMax, true) + 1,
  );
  memory.writeU8(zero + AT.typeOfLoader, LOADER_UNDEFINED);
  memory.writeU8(zero + AT.loadFlags, kernel[AT.loadFlags]! | LOADED_HIGH | CAN_USE_HEAP);
  memory.writeU16(zero + AT.heapEnd, 0xfe00);
  memory.writeU32(zero + AT.code32Start, load);
  memory.writeU32(zero + AT.ramdiskImage, initrd?.address ?? 0);
  memory.writeU32(zero + AT.ramdiskSize, initrd?.size ?? 0);
  memory.writeU32(zero + AT.commandLine, commandLine.address);
  memory.writeU64(zero + AT.acpiRsdp, input.rsdp);
  if (e820.length > E820_MAX) throw noRoom('memory map', kernelName, `${e820.length} entries`);
  memory.writeU8(zero + AT.e820Entries, e820.length);
  for (const [i, entry] of e820.entries()) {
    // Entries of 20 bytes leave the 64-bit fields unaligned: written in halves that stay inside the zero page.
    const at = zero + AT.e820Table + 20 * i;
    memory.writeU32(at, entry.base % 2 ** 32);
    memory.writeU32(at + 4, Math.floor(entry.base / 2 ** 32));
    memory.writeU32(at + 8, entry.size % 2 ** 32);
    memory.writeU32(at + 12, Math.floor(entry.size / 2 ** 32));
    memory.writeU32(at + 16, entry.type);
  }
  writePageTables(input);
  writeGdt(input);
  return {
    mode: 'long64',
    rip: load + 0x200,
    rsi: zero,
    rsp: BOOT_AREA.stackTop,
    cr3: BOOT_AREA.pageTables,
    gdt: BOOT_AREA.gdt,
  };
}

/** The preferred address where it is free, else (relocatable kernels) the lowest aligned one that is. */
function chooseLoadAddress(input: BootInput, view: DataView, codeBytes: number): number {
  const { kernelName, e820 } = input;
  const initSize = Math.max(view.getUint32(AT.initSize, true), codeBytes);
  const preferred = view.getUint32(AT.prefAddress, true);
  const isFree = (address: number): boolean =>
    address >= SHADOW_END &&
    e820.some(
      ({ base, size, type }) => type === 1 && address >= base && address + initSize <= base + size,
    );
  if (view.getUint32(AT.prefAddress + 4, true) === 0 && isFree(preferred)) return preferred;
  const alignment = view.getUint32(AT.kernelAlignment, true);
  if (view.getUint8(AT.relocatable) !== 0 && isPowerOfTwo(alignment)) {
    const lowest = alignUp(SHADOW_END, alignment);
    if (isFree(lowest)) return lowest;
    const highest = alignDown(lowRamEnd(e820) - initSize, alignment);
    if (highest >= SHADOW_END && isFree(highest)) return highest;
  }
  throw noRoom(
    'kernel',
    kernelName,
    `it needs ${initSize} bytes of free RAM, preferably at ${hex(preferred)}`,
  );
}

/** PML4 -> PDPT -> four directories of 2 MiB pages: the first 4 GiB one to one. */
function writePageTables({ memory }: BootInput): void {
  const pml4 = BOOT_AREA.pageTables;
  const presentWritable = 3;
  const large = 0x80;
  memory.fill(pml4, 6 * 4096, 0);
  memory.writeU64(pml4, (pml4 + 4096) | presentWritable);
  for (let gib = 0; gib < 4; gib++) {
    const directory = pml4 + 4096 * (2 + gib);
    memory.writeU64(pml4 + 4096 + 8 * gib, directory | presentWritable);
    for (let i = 0; i < 512; i++) {
      memory.writeU64(directory + 8 * i, gib * 2 ** 30 + i * 2 ** 21 + (presentWritable | large));
    }
  }
}

/** Selectors 0x10 (64-bit code) and 0x18 (data), as the boot protocol asks for. */
function writeGdt({ memory }: BootInput): void {
  const gdt = BOOT_AREA.gdt;
  memory.writeU64(gdt, 0);
  memory.writeU64(gdt + 8, 0);
  memory.writeU32(gdt + 16, 0x0000_ffff);
  memory.writeU32(gdt + 20, 0x00af_9b00);
  memory.writeU32(gdt + 24, 0x0000_ffff);
  memory.writeU32(gdt + 28, 0x00cf_9300);
}
