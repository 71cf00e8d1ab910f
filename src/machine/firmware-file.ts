/** Finds and reads boot files: the distribution's SeaBIOS, kernels, initial RAM disks. */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { codeOf, VmmError } from '../base/error.ts';
import type { Image } from './config.ts';

/** Where distributions install a 256 KiB SeaBIOS, most common first. */
const SEABIOS_PATHS = [
  '/usr/share/seabios/bios-256k.bin',
  '/usr/share/qemu/bios-256k.bin',
  '/usr/share/seabios/bios.bin',
  '/usr/lib/qemu/bios-256k.bin',
];

/** Larger files than this are no kernels or initial RAM disks. */
const IMAGE_MAX_BYTES = 2 * 2 ** 30;

/** The installed SeaBIOS. @throws VmmError `FIRMWARE_MISSING` */
export function findSeaBios(): string {
  const found = SEABIOS_PATHS.find((path) => existsSync(path));
  if (found === undefined) {
    throw new VmmError('FIRMWARE_MISSING', 'no SeaBIOS is installed, and no kernel was given', {
      hint: 'Install it (Debian: apt install seabios), give another with --firmware, or boot a kernel with --kernel.',
    });
  }
  return found;
}

/**
 * Reads a boot file.
 * @param option the option that named it, for the message
 * @throws VmmError `FILE`
 */
export function readImage(option: string, path: string): Image {
  try {
    const stat = statSync(path);
    if (!stat.isFile()) throw new VmmError('FILE', `${option} ${path}: is not a file`);
    if (stat.size === 0) throw new VmmError('FILE', `${option} ${path}: the file is empty`);
    if (stat.size > IMAGE_MAX_BYTES)
      throw new VmmError('FILE', `${option} ${path}: is larger than 2 GiB`);
    return { name: path, bytes: readFileSync(path) };
  } catch (error) {
    if (error instanceof VmmError) throw error;
    const why =
      {
        ENOENT: 'there is no such file',
        EACCES: 'may not be read',
        ENOTDIR: 'there is no such file',
      }[codeOf(error) ?? ''] ?? String(error);
    throw new VmmError('FILE', `${option} ${path}: ${why}`, { cause: error });
  }
}
