/**
 * The differentiated description table of the board: the PCI root with its windows and interrupt routing, the legacy
 * devices that are there, the processors, and how to switch off. Everything is constant; nothing is a method except
 * what PCI Express demands. Sections: ACPI Specification 6.5; PCI Firmware Specification 3.3.
 */
import { intxLineOf } from '../../pci/bus.ts';
import {
  type Aml,
  argument,
  device,
  dwordField,
  eisaId,
  equal,
  fixedMemory,
  giveBack,
  integer,
  ioPorts,
  isaIrq,
  method,
  name,
  or,
  pack,
  path,
  resources,
  scope,
  string,
  uuid,
  when,
  window,
} from './aml.ts';
import type { AcpiConfig } from './config.ts';

const SLOTS = 32;
const CONFIG_PORTS = { base: 0xcf8, length: 8 } as const;

/** The definition block's terms (without the table header). */
export function dsdtTerms(config: AcpiConfig): Uint8Array {
  const { s5SleepType } = config;
  const sleepType = integer(s5SleepType);
  return new Uint8Array([
    // \_S5 (7.4.2.6): sleep types of PM1a and PM1b, two reserved.
    ...name('\\_S5', pack(sleepType, sleepType, integer(0), integer(0))),
    ...scope('\\_SB', pciRoot(config), ...platform(config), ...processors(config)),
  ]);
}

function pciRoot(config: AcpiConfig): Aml {
  const { ecam, pciMemory, pciMemory64 } = config;
  const last = (ecam?.buses ?? 1) - 1;
  const identity = ecam
    ? [name('_HID', eisaId('PNP0A08')), name('_CID', eisaId('PNP0A03')), osControl()]
    : [name('_HID', eisaId('PNP0A03'))];
  return device(
    'PCI0',
    ...identity,
    name('_UID', integer(0)),
    name('_BBN', integer(0)),
    name(
      '_CRS',
      resources(
        window('buses', 0, last),
        ioPorts(CONFIG_PORTS.base, CONFIG_PORTS.length),
        window('ports', 0, CONFIG_PORTS.base - 1),
        window('ports', CONFIG_PORTS.base + CONFIG_PORTS.length, 0xffff),
        window('memory', pciMemory.base, pciMemory.end - 1),
        ...(pciMemory64 ? [window('memory', pciMemory64.base, pciMemory64.end - 1)] : []),
      ),
    ),
    name('_PRT', pack(...routing(config))),
  );
}

/** _PRT (6.2.13): slot, pin (0 = INTA#), no link device, global system interrupt. */
function* routing({ intxGsiBase }: AcpiConfig): Generator<Aml> {
  // The PCI bus has 32 slots; slot 0, the host bridge, has no interrupt.
  for (let slot = 1; slot < SLOTS; slot++) {
    for (let pin = 0; pin < 4; pin++) {
      const gsi = intxGsiBase + intxLineOf(slot, pin + 1);
      yield pack(integer(slot * 0x1_0000 + 0xffff), integer(pin), integer(0), integer(gsi));
    }
  }
}

/** _OSC of a PCI Express root (6.2.11.3): grants what is asked for; there is no firmware to keep anything. */
function osControl(): Aml {
  const capabilities = argument(3);
  return method(
    '_OSC',
    4,
    when(equal(argument(0), uuid('33db4d5b-1ff7-401c-9657-7441c03dd766')), giveBack(capabilities)),
    // Another UUID: bit 2 of the first dword says "not recognised".
    dwordField(capabilities, 0, 'CDW1'),
    or(path('CDW1'), integer(4), path('CDW1')),
    giveBack(capabilities),
  );
}

function* platform(config: AcpiConfig): Generator<Aml> {
  for (const [i, { port, irq }] of config.serial.entries()) {
    yield device(
      `COM${i + 1}`,
      name('_HID', eisaId('PNP0501')),
      name('_UID', integer(i + 1)),
      name('_CRS', resources(ioPorts(port, 8), isaIrq(irq))),
    );
  }
  if (config.rtcPort !== undefined) {
    yield device(
      'RTC',
      name('_HID', eisaId('PNP0B00')),
      name('_CRS', resources(ioPorts(config.rtcPort, 2), isaIrq(8))),
    );
  }
  if (config.fwCfgPort !== undefined) {
    yield device(
      'FWCF',
      name('_HID', string('QEMU0002')),
      // Present, but not for a user to see: the operating system needs no driver for it.
      name('_STA', integer(0x0b)),
      name('_CRS', resources(ioPorts(config.fwCfgPort, 12))),
    );
  }
  if (config.i8042) {
    yield device(
      'KBD',
      name('_HID', eisaId('PNP0303')),
      name('_CRS', resources(ioPorts(0x60, 1), ioPorts(0x64, 1), isaIrq(1))),
    );
  }
  if (config.ecam) {
    // The configuration window must be reserved by a motherboard device (PCI Firmware 3.3, 4.1.2).
    const { base, buses } = config.ecam;
    yield device(
      'MBRD',
      name('_HID', eisaId('PNP0C02')),
      name('_CRS', resources(fixedMemory(base, buses * 0x10_0000))),
    );
  }
}

/** One processor device each (8.4); _UID is what MADT calls the ACPI processor UID. */
function* processors({ cpus }: AcpiConfig): Generator<Aml> {
  for (let cpu = 0; cpu < cpus; cpu++) {
    yield device(
      `C${cpu.toString(16).toUpperCase().padStart(3, '0')}`,
      name('_HID', string('ACPI0007')),
      name('_UID', integer(cpu)),
    );
  }
}
