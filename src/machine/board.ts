/**
 * The board: the buses, which devices a machine has and how they reach KVM and the backends, and what stands in memory
 * and devices when the guest starts. Made by the machine only.
 */
import type { AcpiPm } from '../../devices/acpi-pm/acpi-pm.ts';
import { FwCfgContent } from '../../devices/fw-cfg/content.ts';
import { FwCfg } from '../../devices/fw-cfg/fw-cfg.ts';
import { FW_CFG_PORTS } from '../../devices/fw-cfg/spec.ts';
import { PciHost } from '../../devices/pci-host/pci-host.ts';
import type { Device } from '../bus/device.ts';
import { IoBus } from '../bus/io-bus.ts';
import type { ConsoleBackend } from '../console/backend.ts';
import { assignBars } from '../pci/assign-bars.ts';
import { PciBus } from '../pci/bus.ts';
import { type Section, type SectionSet, sectionOf } from '../snapshot/container.ts';
import { acpiConfig } from './acpi/config.ts';
import { acpiLoaderFiles } from './acpi/loader.ts';
import { placeAcpiTables } from './acpi/place.ts';
import { type AcpiTables, buildAcpiTables } from './acpi/tables.ts';
import type { BoardHost } from './board-host.ts';
import { loadKernel } from './boot/direct.ts';
import type { BootEntry } from './boot/entry.ts';
import { kvmDoorbells } from './doorbells.ts';
import { IrqLines } from './irq-lines.ts';
import {
  ACPI_BASE,
  E820,
  e820Map,
  INTX_GSI_BASE,
  IRQ,
  KVM_PAGES,
  PCI_HOLE,
  PCI_HOLE_64,
  PCI_PORTS,
  PORT,
  ramPieces,
} from './layout.ts';
import { kvmMsiController } from './msi.ts';
import {
  addPciDevices,
  type DiskPart,
  type NetPart,
  type PciDevices,
  type PlacedNet,
} from './pci-devices.ts';
import { addPlatform } from './platform.ts';

/** The outside that a board is connected to. */
export interface BoardParts {
  /** Serial lines, COM1 first; at most four. */
  readonly serial: readonly ConsoleBackend[];
  readonly disks: readonly DiskPart[];
  readonly nets: readonly NetPart[];
  /** Whether KVM can watch doorbells of any width. */
  readonly doorbellsOfAnyWidth: boolean;
}

/** See the module's head. */
export class Board {
  readonly ports = new IoBus('ports');
  readonly mmio = new IoBus('mmio');
  readonly irqs: IrqLines;
  readonly pci: PciBus;
  /** Every device, in the order in which state is saved. */
  readonly devices: readonly Device[];
  /** The network cards, as listed in {@link BoardParts}. */
  readonly nets: readonly PlacedNet[];
  readonly #machine: BoardHost;
  readonly #acpiPm: AcpiPm;
  readonly #pciHost: PciHost;
  readonly #acpi: AcpiTables;

  /** Uses the machine's VM, RAM and clock, which exist; nothing else of it. */
  constructor(machine: BoardHost, parts: BoardParts) {
    this.#machine = machine;
    const { config, clock, log, memory, ram, vm } = machine;
    this.irqs = new IrqLines(vm);
    const platform = addPlatform(machine, this.ports, this.irqs, parts.serial);
    this.#acpiPm = platform.acpiPm;
    this.pci = new PciBus({
      mmio: this.mmio,
      ports: this.ports,
      msi: kvmMsiController(vm),
      intx: [
        this.irqs.line(INTX_GSI_BASE),
        this.irqs.line(INTX_GSI_BASE + 1),
        this.irqs.line(INTX_GSI_BASE + 2),
        this.irqs.line(INTX_GSI_BASE + 3),
      ],
      resetControl: {
        read: () => platform.resetControl.read(),
        write: (value) => platform.resetControl.write(0, 1, value),
      },
    });
    this.#pciHost = new PciHost({
      onPam: (segments) => ram.shadow.steer(segments),
    });
    this.pci.add(this.#pciHost.pci, { slot: 0 });
    this.#acpi = buildAcpiTables(
      acpiConfig({
        cpus: config.cpus,
        serial: parts.serial.map((_, i) => ({ port: PORT.serial[i]!, irq: IRQ.serial[i]! })),
        intxGsiBase: INTX_GSI_BASE,
        fwCfgPort: PORT.fwCfg,
      }),
    );
    const { disks, nets } = parts;
    const doorbells = kvmDoorbells(vm, parts.doorbellsOfAnyWidth);
    const added = addPciDevices(machine, this.pci, doorbells, disks, nets);
    const content = this.#fwCfgContent(added);
    const fwCfg = new FwCfg({ id: 'fw-cfg', content, memory, clock, log });
    this.ports.map(PORT.fwCfg, FW_CFG_PORTS, fwCfg);
    this.nets = added.nets;
    this.devices = [...platform.devices, this.pci, this.#pciHost, fwCfg, ...added.devices];
    for (const device of this.devices) device.reset();
  }

  #fwCfgContent({ disks, nets }: PciDevices): FwCfgContent {
    const { config } = this.#machine;
    const order = config.boot.kind === 'firmware' ? config.boot.order : [];
    const bootOrder = order.flatMap((kind) =>
      (kind === 'disk' ? disks : nets).map(({ firmwarePath }) => firmwarePath),
    );
    const content = new FwCfgContent().machine({
      cpus: config.cpus,
      memoryBytes: config.memoryBytes,
      bootMenu: true,
      // SeaBIOS tries nothing behind HALT: no floppy that is not there, no card that --boot does not name.
      bootOrder: [...bootOrder, 'HALT'],
      memoryMap: [
        ...ramPieces(config.memoryBytes).map(({ base, size }) => ({ base, size, type: E820.ram })),
        { ...KVM_PAGES, type: E820.reserved },
      ],
    });
    for (const [name, bytes] of acpiLoaderFiles(this.#acpi)) content.file(name, bytes);
    // There is no display: SeaBIOS shows its messages and menu on the first serial line.
    content.number('etc/sercon-port', PORT.serial[0], 2);
    return content;
  }

  /**
   * Puts what boots first into guest memory, and the devices where firmware would have left them.
   * @throws VmmError `BOOT_*`, `PCI_WINDOW_FULL`
   */
  loadBoot(): BootEntry {
    const { config, memory } = this.#machine;
    const { boot } = config;
    if (boot.kind === 'firmware') return { mode: 'reset' };
    this.#pciHost.openShadow();
    assignBars(this.pci, {
      mmio32: { base: PCI_HOLE.base, sizeBytes: PCI_HOLE.end - PCI_HOLE.base },
      mmio64: { base: PCI_HOLE_64.base, sizeBytes: PCI_HOLE_64.end - PCI_HOLE_64.base },
      ports: { base: PCI_PORTS.base, sizeBytes: PCI_PORTS.end - PCI_PORTS.base },
    });
    const acpi = placeAcpiTables(this.#acpi, ACPI_BASE);
    memory.write(acpi.address, acpi.bytes);
    return loadKernel({
      memory,
      kernel: boot.kernel.bytes,
      kernelName: boot.kernel.name,
      initrd: boot.initrd?.bytes,
      commandLine: boot.commandLine,
      e820: e820Map(ramPieces(config.memoryBytes), []),
      rsdp: acpi.rsdp,
    });
  }

  powerButton(): void {
    this.#acpiPm.pressPowerButton();
  }

  pause(): void {
    for (const device of this.devices) device.pause();
  }

  resume(): void {
    for (const device of this.devices) device.resume();
  }

  /** Power-on state of all devices; the machine is paused. */
  reset(): void {
    this.irqs.forget();
    for (const device of this.devices) device.reset();
  }

  /** Saved state of every device; the machine is paused. */
  save(): Section[] {
    return this.devices.map((device) => sectionOf(device.schema, device.id, device.save()));
  }

  /** Decodes every device's section and looks whether it could be loaded. @throws VmmError `STATE_CORRUPT`, `STATE_INVALID` */
  check(sections: SectionSet): void {
    for (const device of this.devices) {
      const state = sections.take(device.schema, device.id);
      device.check?.(state);
    }
  }

  /** Takes every device's section out of `sections`; the machine is paused or not yet started. */
  load(sections: SectionSet): void {
    this.irqs.forget();
    for (const device of this.devices) device.load(sections.take(device.schema, device.id));
  }
}
