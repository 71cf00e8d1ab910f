/**
 * Direct boot of an ELF kernel by the PVH protocol (Xen's x86/HVM direct boot ABI, as Linux and QEMU use it):
 * segments at their physical addresses, a start_info block with memory map, command line, initrd and ACPI root
 * pointer, entry in 32-bit protected mode with EBX pointing at the block.
 */
import { hex } from '../../base/bits.ts';
import { parseElf } from './elf.ts';
import { BOOT_AREA, type BootEntry, type BootInput } from './entry.ts';
import { badImage, noRoom } from './image-error.ts';
import { placeCommandLine, placeInitrd } from './placement.ts';

const START_INFO_MAGIC = 0x336e_c578;
const START_INFO_VERSION = 1;

/**
 * Loads an ELF kernel.
 * @throws VmmError `BOOT_IMAGE`, `BOOT_MEMORY`, `BOOT_COMMAND_LINE`
 */
export function loadPvh(input: BootInput): BootEntry {
  const { memory, kernel, kernelName, e820 } = input;
  const { segments, pvhEntry } = parseElf(kernel, kernelName);
  if (pvhEntry === undefined)
    throw badImage('kernel', kernelName, 'it is an ELF file without a PVH entry note');
  let end = 0;
  for (const segment of segments) {
    const { address, memorySize } = segment;
    const where = `a segment of ${memorySize} bytes at ${hex(address)}`;
    if (address < BOOT_AREA.end) {
      throw badImage(
        'kernel',
        kernelName,
        `${where} overlaps the boot area below ${hex(BOOT_AREA.end)}`,
      );
    }
    const inRam = e820.some(
      ({ base, size, type }) =>
        type === 1 && address >= base && address + memorySize <= base + size,
    );
    if (!inRam) throw noRoom('kernel', kernelName, `${where} is not in RAM`);
    memory.fill(address + segment.fileSize, memorySize - segment.fileSize, 0);
    memory.write(address, kernel, segment.fileOffset, segment.fileSize);
    if (address < 2 ** 32) end = Math.max(end, address + memorySize);
  }
  const commandLine = placeCommandLine(input, BOOT_AREA.commandLineMax - 1);
  const initrd = placeInitrd(input, end, 2 ** 32);

  const info = BOOT_AREA.startInfo;
  memory.writeU32(info, START_INFO_MAGIC);
  memory.writeU32(info + 4, START_INFO_VERSION);
  memory.writeU32(info + 8, 0);
  memory.writeU32(info + 12, initrd === undefined ? 0 : 1);
  memory.writeU64(info + 16, initrd === undefined ? 0 : BOOT_AREA.moduleList);
  memory.writeU64(info + 24, commandLine.address);
  memory.writeU64(info + 32, input.rsdp);
  memory.writeU64(info + 40, BOOT_AREA.memoryMap);
  memory.writeU32(info + 48, e820.length);
  memory.writeU32(info + 52, 0);
  if (initrd !== undefined) {
    memory.writeU64(BOOT_AREA.moduleList, initrd.address);
    memory.writeU64(BOOT_AREA.moduleList + 8, initrd.size);
    memory.writeU64(BOOT_AREA.moduleList + 16, 0);
    memory.writeU64(BOOT_AREA.moduleList + 24, 0);
  }
  for (const [i, entry] of e820.entries()) {
    const at = BOOT_AREA.memoryMap + 24 * i;
    memory.writeU64(at, entry.base);
    memory.writeU64(at + 8, entry.size);
    memory.writeU32(at + 16, entry.type);
    memory.writeU32(at + 20, 0);
  }
  return { mode: 'protected32', rip: pvhEntry, rbx: info };
}
