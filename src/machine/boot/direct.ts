/** Direct boot: recognises the kernel's format and calls its loader. */
import { isBzImage, loadBzImage } from './bzimage.ts';
import { isElf } from './elf.ts';
import type { BootEntry, BootInput } from './entry.ts';
import { badImage } from './image-error.ts';
import { loadPvh } from './pvh.ts';

/**
 * Loads a kernel of any supported format into guest memory.
 * @throws VmmError `BOOT_IMAGE`, `BOOT_MEMORY`, `BOOT_COMMAND_LINE`
 */
export function loadKernel(input: BootInput): BootEntry {
  const { kernel, kernelName } = input;
  if (kernel.length === 0) throw badImage('kernel', kernelName, 'the file is empty');
  if (isElf(kernel)) return loadPvh(input);
  if (isBzImage(kernel)) return loadBzImage(input);
  throw badImage('kernel', kernelName, 'it is neither an ELF file nor a Linux bzImage');
}
