// The stock Linux guests of the tests: an unmodified Debian kernel and a busybox initial RAM file system
// that ends in a shell on the console. Built into the lab's cache by the hash of the content; inside the
// lab an image that is not there yet is built into the lab's own memory, slowly, so those that tests use
// are named in images.ts and made before the lab starts. Called by tests, in the lab and outside.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { initramfs } from './initramfs.ts';
import { type KernelFlavour, kernel } from './kernels.ts';
import { repositoryRoot } from './tools.ts';

/** What a guest is made of. */
export interface GuestImageRequest {
  /** Which Debian kernel; `cloud` unless told. Only `generic` has e1000. */
  readonly flavour?: KernelFlavour;
  /** Modules to load at the start, as for modprobe; what they depend on comes by itself. */
  readonly modules?: readonly string[];
  /** Programs or files of the host, by path or by name in the PATH, with their shared libraries. */
  readonly files?: readonly string[];
  /** Small texts by path inside the guest. */
  readonly texts?: Readonly<Record<string, string>>;
  /** A shell script that runs before the shell is offered. */
  readonly init?: string;
}

/** Two files to boot. */
export interface GuestImage {
  /** An unmodified bzImage. */
  readonly kernel: string;
  /** A cpio archive, not compressed. */
  readonly initrd: string;
  /** As `uname -r` says it in the guest. */
  readonly release: string;
}

/** Builds (or finds) a guest. Throws a LabError when a file or a package is missing. */
export function guestImage(request: GuestImageRequest): GuestImage {
  const from = kernel(request.flavour ?? 'cloud');
  const initrd = initramfs({
    kernel: from,
    modules: request.modules ?? [],
    files: request.files ?? [],
    texts: {
      '/init': readFileSync(join(repositoryRoot(), 'test/lab/guest-init.sh'), 'utf8'),
      '/etc/acpi/PWRF/00000080': '#!/bin/sh\necho power button >/dev/console\npoweroff -f\n',
      ...(request.init === undefined ? {} : { '/etc/start': request.init }),
      ...request.texts,
    },
  });
  return { kernel: from.vmlinuz, initrd, release: from.release };
}

/** A word for the kernel command line that makes /init run this script before it offers the shell. */
export function runAtStart(script: string): string {
  return `tsvmm.run64=${Buffer.from(script).toString('base64')}`;
}
