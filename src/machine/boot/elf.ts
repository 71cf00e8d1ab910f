/**
 * Reads as much of an ELF file as booting needs: loadable segments and the PVH entry note. 32- and 64-bit
 * little-endian x86 (System V gABI, chapters 4 and 5). Every offset and size of the file is checked before
 * use; leaves out sections, symbols and relocation.
 */
import { badImage } from './image-error.ts';

/** One PT_LOAD segment. */
export interface LoadSegment {
  readonly fileOffset: number;
  readonly fileSize: number;
  /** Physical address that it wants. */
  readonly address: number;
  /** Bytes in memory; those beyond `fileSize` are zero. */
  readonly memorySize: number;
}

/** What booting needs of an ELF kernel. */
export interface ElfKernel {
  readonly segments: readonly LoadSegment[];
  /** Physical address of the 32-bit PVH entry, undefined when there is no note. */
  readonly pvhEntry: number | undefined;
}

const PT_LOAD = 1;
const PT_NOTE = 4;
const EM_386 = 3;
const EM_X86_64 = 62;
/** XEN_ELFNOTE_PHYS32_ENTRY of the PVH boot protocol. */
const NOTE_PHYS32_ENTRY = 18;
const MAX_PROGRAM_HEADERS = 128;
const MAX_NOTE_BYTES = 1 << 20;

/** Whether the file starts like an ELF file. */
export function isElf(image: Uint8Array): boolean {
  return image[0] === 0x7f && image[1] === 0x45 && image[2] === 0x4c && image[3] === 0x46;
}

/**
 * Parses an ELF kernel.
 * @throws VmmError `BOOT_IMAGE`
 */
export function parseElf(image: Uint8Array, name: string): ElfKernel {
  const fail = (why: string): never => {
    throw badImage('kernel', name, why);
  };
  if (image.length < 64) fail('the ELF header is cut off');
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const is64 = image[4] === 2;
  if (!is64 && image[4] !== 1) fail('it is neither a 32-bit nor a 64-bit ELF file');
  if (image[5] !== 1) fail('it is not little-endian');
  const machine = view.getUint16(18, true);
  if (machine !== EM_X86_64 && machine !== EM_386)
    fail(`it is for machine type ${machine}, not x86`);
  const word = (offset: number): number => {
    if (!is64) return view.getUint32(offset, true);
    const high = view.getUint32(offset + 4, true);
    // Nothing that we can load is above 2^52; a Number would round such a value.
    if (high >= 2 ** 20) fail('an address or size in it is out of range');
    return high * 2 ** 32 + view.getUint32(offset, true);
  };
  const tableOffset = word(is64 ? 32 : 28);
  const entrySize = view.getUint16(is64 ? 54 : 42, true);
  const entryCount = view.getUint16(is64 ? 56 : 44, true);
  if (entryCount === 0 || entryCount > MAX_PROGRAM_HEADERS)
    fail(`it has ${entryCount} program headers`);
  if (entrySize < (is64 ? 56 : 32)) fail(`its program headers have ${entrySize} bytes`);
  if (tableOffset + entrySize * entryCount > image.length) fail('its program headers are cut off');

  const segments: LoadSegment[] = [];
  let pvhEntry: number | undefined;
  for (let i = 0; i < entryCount; i++) {
    const at = tableOffset + i * entrySize;
    const type = view.getUint32(at, true);
    if (type !== PT_LOAD && type !== PT_NOTE) continue;
    const fileOffset = word(at + (is64 ? 8 : 4));
    const address = word(at + (is64 ? 24 : 12));
    const fileSize = word(at + (is64 ? 32 : 16));
    const memorySize = word(at + (is64 ? 40 : 20));
    if (fileOffset + fileSize > image.length) fail(`segment ${i} is cut off`);
    if (type === PT_NOTE) {
      if (fileSize > MAX_NOTE_BYTES) fail(`segment ${i} has ${fileSize} bytes of notes`);
      pvhEntry ??= findPvhEntry(image, view, fileOffset, fileOffset + fileSize);
    } else {
      if (fileSize > memorySize) fail(`segment ${i} is larger in the file than in memory`);
      if (memorySize > 0) segments.push({ fileOffset, fileSize, address, memorySize });
    }
  }
  if (segments.length === 0) fail('it has nothing to load');
  return { segments, pvhEntry };
}

function findPvhEntry(
  image: Uint8Array,
  view: DataView,
  start: number,
  end: number,
): number | undefined {
  let at = start;
  while (at + 12 <= end) {
    const nameSize = view.getUint32(at, true);
    const descriptorSize = view.getUint32(at + 4, true);
    const type = view.getUint32(at + 8, true);
    const nameAt = at + 12;
    const descriptorAt = nameAt + Math.ceil(nameSize / 4) * 4;
    const next = descriptorAt + Math.ceil(descriptorSize / 4) * 4;
    if (descriptorAt + descriptorSize > end) return undefined;
    const isXen =
      nameSize === 4 &&
      image[nameAt] === 0x58 &&
      image[nameAt + 1] === 0x65 &&
      image[nameAt + 2] === 0x6e &&
      image[nameAt + 3] === 0;
    if (isXen && type === NOTE_PHYS32_ENTRY && descriptorSize >= 4) {
      return view.getUint32(descriptorAt, true);
    }
    at = next;
  }
  return undefined;
}
