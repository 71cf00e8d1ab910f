/** Errors of boot images: what is wrong with which file. */
import { VmmError } from '../../base/error.ts';

/** An image that cannot be booted. */
export function badImage(what: string, name: string, why: string): VmmError {
  return new VmmError('BOOT_IMAGE', `${what} '${name}' cannot be booted: ${why}`, {
    hint: 'Give a Linux bzImage (/boot/vmlinuz-*) or a 64-bit ELF kernel with a PVH note.',
  });
}

/** An image that does not fit into the guest's memory. */
export function noRoom(what: string, name: string, why: string): VmmError {
  return new VmmError('BOOT_MEMORY', `${what} '${name}' does not fit: ${why}`, {
    hint: 'Give the guest more memory (--memory).',
  });
}
