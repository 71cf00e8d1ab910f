/**
 * Pieces that the direct-boot loaders share: where the initrd and the command line go, and the two encodings of
 * the memory map.
 */
import { alignDown } from '../../base/bits.ts';
import { VmmError } from '../../base/error.ts';
import { PAGE_SIZE } from '../../memory/dirty-set.ts';
import { type E820Entry, LOW_RAM_MAX, SHADOW_END } from '../layout.ts';
import { BOOT_AREA, type BootInput } from './entry.ts';
import { noRoom } from './image-error.ts';

/** Where something was put. */
export interface Placed {
  readonly address: number;
  readonly size: number;
}

/** The end of RAM below the PCI hole that the kernel may use. */
export function lowRamEnd(e820: readonly E820Entry[]): number {
  let end = 0;
  for (const entry of e820) {
    if (entry.type === 1 && entry.base < LOW_RAM_MAX) end = Math.max(end, entry.base + entry.size);
  }
  return Math.min(end, LOW_RAM_MAX);
}

/**
 * Copies the initrd as high as it goes below `limit`.
 * @param floor the kernel ends here
 */
export function placeInitrd(input: BootInput, floor: number, limit: number): Placed | undefined {
  const { initrd, memory, e820 } = input;
  if (initrd === undefined || initrd.length === 0) return undefined;
  const top = Math.min(lowRamEnd(e820), limit);
  const address = alignDown(top - initrd.length, PAGE_SIZE);
  if (address < Math.max(floor, SHADOW_END) || !memory.write(address, initrd)) {
    throw noRoom('initrd', 'initrd', `${initrd.length} bytes between ${floor} and ${top}`);
  }
  return { address, size: initrd.length };
}

/**
 * Writes the command line, zero terminated.
 * @param max most bytes that the kernel takes, without the terminator
 */
export function placeCommandLine(input: BootInput, max: number): Placed {
  const text = new TextEncoder().encode(input.commandLine);
  const limit = Math.min(max, BOOT_AREA.commandLineMax - 1);
  if (text.length > limit) {
    throw new VmmError(
      'BOOT_COMMAND_LINE',
      `the kernel command line has ${text.length} bytes, this kernel takes ${limit}`,
      {
        hint: 'Shorten --append.',
      },
    );
  }
  if (text.includes(0)) {
    throw new VmmError('BOOT_COMMAND_LINE', 'the kernel command line contains a zero byte');
  }
  input.memory.fill(BOOT_AREA.commandLine, text.length + 1, 0);
  input.memory.write(BOOT_AREA.commandLine, text);
  return { address: BOOT_AREA.commandLine, size: text.length };
}
