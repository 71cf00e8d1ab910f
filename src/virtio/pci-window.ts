/**
 * Where the structures of virtio-pci lie in BAR 0, the capabilities that say so, and the window by which they are
 * reached through configuration space, for firmware that cannot map memory (VIRTIO 1.2, 4.1.4). Used by
 * `VirtioPciFunction`.
 */
import { sizeMask } from '../base/bits.ts';
import type { AccessSize, IoRegion } from '../bus/io-bus.ts';
import type { CapabilityOptions, PciFunction } from '../pci/function.ts';
import { PCI_CAP, PCI_REG } from '../pci/spec.ts';
import { CAP_TYPE, COMMON } from './spec.ts';

/** Places of the structures in BAR 0, one page each. */
export const PLACE = {
  common: 0x0000,
  isr: 0x1000,
  device: 0x2000,
  notify: 0x3000,
  bytes: 0x4000,
} as const;
/** Bytes between the doorbells of two queues. */
export const NOTIFY_MULTIPLIER = 4;

/** `pci_cfg_data` in the configuration access capability (VIRTIO 1.2, 4.1.4.9). */
const PCI_ACCESS = { bar: 4, offset: 8, length: 12, data: 16 } as const;
const NOTHING = new Uint8Array(0);

/** The capabilities of a device with so many queues and bytes of configuration. */
export function virtioCapabilities(queues: number, deviceConfigBytes: number): CapabilityOptions[] {
  const notifyBytes = NOTIFY_MULTIPLIER * queues;
  const multiplier = new Uint8Array(4);
  new DataView(multiplier.buffer).setUint32(0, NOTIFY_MULTIPLIER, true);
  const configBytes = Math.max(4, deviceConfigBytes);
  // Of the access capability: bar, offset, length and data (4.1.4.9).
  const accessMask = new Uint8Array(18).fill(0xff, 6);
  accessMask[PCI_ACCESS.bar - 2] = 0xff;
  return [
    { id: PCI_CAP.vendor, body: capability(CAP_TYPE.common, PLACE.common, COMMON.bytes) },
    { id: PCI_CAP.vendor, body: capability(CAP_TYPE.isr, PLACE.isr, 1) },
    { id: PCI_CAP.vendor, body: capability(CAP_TYPE.device, PLACE.device, configBytes) },
    {
      id: PCI_CAP.vendor,
      body: capability(CAP_TYPE.notify, PLACE.notify, notifyBytes, multiplier),
    },
    {
      id: PCI_CAP.vendor,
      body: capability(CAP_TYPE.pciAccess, 0, 0, new Uint8Array(4)),
      writeMask: accessMask,
    },
  ];
}

/** The window in a function's configuration space onto its BAR 0. */
export class AccessWindow {
  readonly #pci: PciFunction;
  readonly #bar: IoRegion;
  /** Offset of the access capability. */
  readonly #at: number;

  /** @param pci a function with {@link virtioCapabilities} */
  constructor(pci: PciFunction, bar: IoRegion) {
    this.#pci = pci;
    this.#bar = bar;
    this.#at = this.#find();
  }

  /** The guest is about to read configuration bytes: those of the window get what lies behind it. */
  read(offset: number, size: number): void {
    if (!this.#touchesData(offset, size)) return;
    const target = this.#target();
    if (target < 0) return;
    const length = this.#pci.read32(this.#at + PCI_ACCESS.length) as AccessSize;
    this.#pci.poke(this.#at + PCI_ACCESS.data, length, this.#bar.read(target, length));
  }

  /** The guest wrote configuration bytes: those of the window go to what lies behind it. */
  written(offset: number, size: number): void {
    if (!this.#touchesData(offset, size)) return;
    const target = this.#target();
    if (target < 0) return;
    const length = this.#pci.read32(this.#at + PCI_ACCESS.length) as AccessSize;
    const data = this.#pci.read32(this.#at + PCI_ACCESS.data);
    this.#bar.write(target, length, (data & sizeMask(length)) >>> 0);
  }

  #find(): number {
    let at = this.#pci.read16(PCI_REG.capabilities) & 0xff;
    while (at !== 0) {
      const isVendor = (this.#pci.read16(at) & 0xff) === PCI_CAP.vendor;
      if (isVendor && this.#pci.read16(at + 2) >>> 8 === CAP_TYPE.pciAccess) return at;
      at = this.#pci.read16(at) >>> 8;
    }
    return 0;
  }

  /** Its target as the guest set it, or -1 when it names nothing that could be accessed. */
  #target(): number {
    const bar = this.#pci.read16(this.#at + PCI_ACCESS.bar) & 0xff;
    const offset = this.#pci.read32(this.#at + PCI_ACCESS.offset);
    const length = this.#pci.read32(this.#at + PCI_ACCESS.length);
    const sane = length === 1 || length === 2 || length === 4;
    return bar === 0 && sane && offset % length === 0 && offset < PLACE.bytes ? offset : -1;
  }

  #touchesData(offset: number, size: number): boolean {
    const data = this.#at + PCI_ACCESS.data;
    return offset < data + 4 && offset + size > data;
  }
}

/** A `virtio_pci_cap` from its third byte on (VIRTIO 1.2, 4.1.4). */
function capability(type: number, offset: number, length: number, tail = NOTHING): Uint8Array {
  const body = new Uint8Array(14 + tail.length);
  const view = new DataView(body.buffer);
  view.setUint8(0, body.length + 2);
  view.setUint8(1, type);
  view.setUint32(6, offset, true);
  view.setUint32(10, length, true);
  body.set(tail, 14);
  return body;
}
