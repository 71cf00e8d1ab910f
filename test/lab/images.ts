// The guests that tests in the lab boot, by name. They are built before the lab starts, because building
// one inside is slow: a test that needs another guest adds it here.
import { type GuestImage, type GuestImageRequest, guestImage } from './guest-image.ts';

const virtio = ['virtio_pci', 'virtio_blk', 'virtio_net', 'virtio_rng', 'virtio_console', 'ext4'];
const powerButton = ['button', 'evdev'];

const requests = {
  /** Debian's cloud kernel with its virtio drivers and busybox. */
  shell: { modules: [...virtio, ...powerButton] },
  /** Debian's ordinary kernel with e1000 and virtio drivers. */
  e1000: { flavour: 'generic', modules: ['e1000', ...virtio, ...powerButton] },
  /** As `shell`, with programs that load networks and make and check file systems. */
  tools: {
    modules: [...virtio, ...powerButton],
    files: ['iperf3', 'mkfs.ext4', 'e2fsck'],
  },
  /** As `e1000`, with programs that look at and load disks and networks. */
  devices: {
    flavour: 'generic',
    modules: ['e1000', ...virtio, ...powerButton],
    files: ['iperf3', 'mkfs.ext4', 'e2fsck', 'ethtool'],
  },
  /** As `shell`, with fio, whose 85 MB of libraries want a guest of 512 MiB or more, and sqlite3. */
  fio: { modules: [...virtio, ...powerButton], files: ['fio', 'sqlite3'] },
} as const satisfies Record<string, GuestImageRequest>;

/** A guest named in this file. */
export type ImageName = keyof typeof requests;

/** The names of all guests. */
export const imageNames = Object.keys(requests) as ImageName[];

/** Builds (or finds) a guest by name. Throws a LabError when a program that goes into it is missing. */
export function image(name: ImageName): GuestImage {
  return guestImage(requests[name]);
}
