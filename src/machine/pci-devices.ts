/** The disks, network cards and entropy device of a board, from what the operator asked for. */
import { E1000Device } from '../../devices/e1000/pci.ts';
import { VirtioBlk } from '../../devices/virtio-blk/virtio-blk.ts';
import { VirtioNet } from '../../devices/virtio-net/virtio-net.ts';
import { VirtioRng } from '../../devices/virtio-rng/virtio-rng.ts';
import type { BlockBackend } from '../block/backend.ts';
import type { Device } from '../bus/device.ts';
import type { DoorbellRegistrar } from '../bus/doorbell.ts';
import type { NetBackend } from '../net/backend.ts';
import type { PciBus } from '../pci/bus.ts';
import type { PciFunction } from '../pci/function.ts';
import type { VirtioDevice } from '../virtio/device.ts';
import { VirtioPciFunction } from '../virtio/pci-function.ts';
import type { BoardHost } from './board-host.ts';
import { entropy } from './entropy.ts';

/** A disk of the machine. */
export interface DiskPart {
  /** Unique among the disks; also its name towards a peer. */
  readonly id: string;
  readonly backend: BlockBackend;
  /** What the guest reads as serial number; up to 20 ASCII characters. */
  readonly serial: string | undefined;
}

/** A network card of the machine. */
export interface NetPart {
  readonly id: string;
  readonly backend: NetBackend;
  readonly model: 'virtio' | 'e1000';
  /** Six bytes. */
  readonly mac: Uint8Array;
  /** Option ROM, for booting from the network. */
  readonly rom: Uint8Array | undefined;
}

/** A device that was put on the bus. */
export interface Placed {
  readonly slot: number;
  /** Path that firmware knows it by, for the boot order. */
  readonly firmwarePath: string;
}

/** A network card that was put on the bus. */
export interface PlacedNet extends Placed {
  /** Asks the guest to tell its network where it is. @returns whether its driver can */
  announce(): boolean;
}

/** What was put on the bus. */
export interface PciDevices {
  /** In the order in which state is saved. */
  readonly devices: readonly Device[];
  readonly disks: readonly Placed[];
  readonly nets: readonly PlacedNet[];
}

/** Makes the devices and puts them on `bus`. @throws VmmError `PCI_BUS_FULL` */
export function addPciDevices(
  machine: BoardHost,
  bus: PciBus,
  doorbells: DoorbellRegistrar,
  disks: readonly DiskPart[],
  nets: readonly NetPart[],
): PciDevices {
  const { clock, log, memory } = machine;
  const devices: Device[] = [];
  const add = (device: Device & { readonly pci: PciFunction }): number => {
    devices.push(device);
    return bus.add(device.pci);
  };
  const addVirtio = <S>(device: VirtioDevice<S>, rom?: Uint8Array): number =>
    add(new VirtioPciFunction({ device, memory, clock, log, doorbells, ...(rom && { rom }) }));

  const placedDisks = disks.map(({ id, backend, serial }) => {
    const slot = addVirtio(
      new VirtioBlk({ id, memory, backend, clock, ...(serial !== undefined && { serial }) }),
    );
    return { slot, firmwarePath: `/pci@i0cf8/scsi@${slot.toString(16)}/disk@0,0` };
  });
  const placedNets = nets.map(({ id, backend, model, mac, rom }) => {
    let announce = (): boolean => false;
    let slot: number;
    if (model === 'e1000') {
      slot = add(new E1000Device({ id, mac, memory, backend, clock, log, ...(rom && { rom }) }));
    } else {
      const device = new VirtioNet({ id, memory, backend, clock, mac });
      announce = () => device.announce();
      slot = addVirtio(device, rom);
    }
    return { slot, firmwarePath: `/pci@i0cf8/ethernet@${slot.toString(16)}`, announce };
  });
  addVirtio(new VirtioRng({ id: 'rng0', memory, clock, entropy }));
  return { devices, disks: placedDisks, nets: placedNets };
}
