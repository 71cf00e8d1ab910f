/**
 * The ACPI tables of the board, unplaced: RSDP, RSDT, XSDT, FADT, FACS, DSDT, MADT, and MCFG where there is PCI
 * Express configuration space. Sections: ACPI Specification 6.5, 5.2; the tables keep to revision 6.0 of it.
 */
import { assert } from '../../base/assert.ts';
import type { AcpiConfig } from './config.ts';
import { dsdtTerms } from './dsdt.ts';
import { type AcpiTable, TableBuilder } from './table.ts';

/** The board's tables; names are those of their signatures. */
export interface AcpiTables {
  /** Searched for by the guest, so placed apart. */
  readonly rsdp: AcpiTable;
  /** The others, each named by its signature. */
  readonly tables: readonly AcpiTable[];
}

/** FADT flags (5.2.9, table 5.10). */
const FADT = {
  wbinvd: 1 << 0,
  c1: 1 << 2,
  /** No fixed sleep button. */
  sleepButtonAbsent: 1 << 5,
  /** The RTC's wake status is not in PM1. */
  rtcNotFixed: 1 << 6,
  timer32: 1 << 8,
  resetRegister: 1 << 10,
} as const;
/** IA-PC boot architecture flags (5.2.9.3). */
const BOOT_ARCH = { legacyDevices: 1, i8042: 2, vgaAbsent: 4, rtcAbsent: 32 } as const;
/** Latencies that say "no such processor state". */
const NO_C2 = 0xfff;
const NO_C3 = 0xfff;
/** The value that the reset register takes: hard reset, now. */
const RESET_VALUE = 6;
/** MADT interrupt flags (5.2.12.5): active high, level. */
const ACTIVE_HIGH_LEVEL = 0x0d;
/** CMOS byte of the century. */
const CENTURY = 0x32;
/** Above this a local APIC id needs an x2APIC entry. */
const XAPIC_ID_MAX = 254;

/** Builds the tables that describe `config`. */
export function buildAcpiTables(config: AcpiConfig): AcpiTables {
  const described = [fadt(config), madt(config), ...(config.ecam ? [mcfg(config.ecam)] : [])];
  const names = described.map((table) => table.name);
  return {
    rsdp: rsdp(),
    tables: [facs(), dsdt(config), ...described, root('RSDT', 4, names), root('XSDT', 8, names)],
  };
}

/** Root system description pointer, revision 2 (5.2.5.3). */
function rsdp(): AcpiTable {
  return new TableBuilder('RSDP')
    .text('RSD PTR ')
    .u8(0)
    .text('TSVMM ')
    .u8(2)
    .pointer('RSDT', 4)
    .u32(36)
    .pointer('XSDT', 8)
    .zeros(4)
    .finish({
      alignment: 16,
      checksums: [
        { offset: 8, start: 0, length: 20 },
        { offset: 32, start: 0, length: 36 },
      ],
    });
}

/** RSDT and XSDT (5.2.7, 5.2.8): pointers of 4 or 8 bytes. */
function root(signature: 'RSDT' | 'XSDT', size: 4 | 8, names: readonly string[]): AcpiTable {
  const table = new TableBuilder(signature).header(signature, 1);
  for (const name of names) table.pointer(name, size);
  return table.finish();
}

/** Firmware ACPI control structure (5.2.10): no checksum, aligned to 64. */
function facs(): AcpiTable {
  return new TableBuilder('FACS')
    .text('FACS')
    .u32(64)
    .zeros(24)
    .u8(2)
    .zeros(31)
    .finish({ alignment: 64, checksums: [] });
}

function dsdt(config: AcpiConfig): AcpiTable {
  return new TableBuilder('DSDT').header('DSDT', 2).raw(dsdtTerms(config)).finish();
}

/** Fixed ACPI description table (5.2.9). */
function fadt(config: AcpiConfig): AcpiTable {
  const { pmPort } = config;
  const [event, control, timer] = [pmPort, pmPort + 4, pmPort + 8];
  const flags =
    FADT.wbinvd |
    FADT.c1 |
    FADT.sleepButtonAbsent |
    FADT.rtcNotFixed |
    FADT.resetRegister |
    (config.pmTimerBits === 32 ? FADT.timer32 : 0);
  const bootArch =
    BOOT_ARCH.legacyDevices |
    BOOT_ARCH.vgaAbsent |
    (config.i8042 ? BOOT_ARCH.i8042 : 0) |
    (config.rtcPort === undefined ? BOOT_ARCH.rtcAbsent : 0);
  const table = new TableBuilder('FACP')
    .header('FACP', 6)
    .pointer('FACS', 4)
    .pointer('DSDT', 4)
    .u8(0) // reserved
    .u8(0) // preferred profile: unspecified
    .u16(config.sciIrq)
    .u32(0) // SMI command port: none, so the machine is in ACPI mode from the start
    .zeros(4) // ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ, PSTATE_CNT
    .u32(event)
    .u32(0)
    .u32(control)
    .u32(0)
    .u32(0)
    .u32(timer)
    .zeros(8) // no general purpose events
    .u8(4) // PM1 event, control, PM2, timer, GPE lengths
    .u8(2)
    .u8(0)
    .u8(4)
    .zeros(4) // GPE lengths and base, CST_CNT
    .u16(NO_C2)
    .u16(NO_C3)
    .zeros(6) // cache flush and duty cycle
    .zeros(2) // no alarm beyond a day
    .u8(config.rtcPort === undefined ? 0 : CENTURY)
    .u16(bootArch)
    .u8(0)
    .u32(flags)
    .ioAddress(config.resetPort, 1, 1)
    .u8(RESET_VALUE)
    .zeros(3) // ARM boot flags, minor revision 0
    .u64(0) // X_FIRMWARE_CTRL: the 32-bit field is in use
    .pointer('DSDT', 8)
    .ioAddress(event, 4, 2)
    .ioAddress(0, 0, 0)
    .ioAddress(control, 2, 2)
    .ioAddress(0, 0, 0)
    .ioAddress(0, 0, 0)
    .ioAddress(timer, 4, 3)
    .zeros(4 * 12) // GPE blocks, sleep control and status
    .zeros(8); // hypervisor vendor
  assert(table.length === 276, 'FADT has the length of revision 6');
  return table.finish();
}

/** Multiple APIC description table (5.2.12). */
function madt(config: AcpiConfig): AcpiTable {
  const table = new TableBuilder('APIC').header('APIC', 4).u32(config.lapicBase).u32(1); // PC-AT compatible: two 8259 as well
  for (let cpu = 0; cpu < config.cpus; cpu++) {
    if (cpu <= XAPIC_ID_MAX) table.u8(0).u8(8).u8(cpu).u8(cpu).u32(1);
    else table.u8(9).u8(16).u16(0).u32(cpu).u32(1).u32(cpu);
  }
  table.u8(1).u8(12).u8(0).u8(0).u32(config.ioapicBase).u32(0);
  if (config.timerPin !== 0) table.u8(2).u8(10).u8(0).u8(0).u32(config.timerPin).u16(0);
  table.u8(2).u8(10).u8(0).u8(config.sciIrq).u32(config.sciIrq).u16(ACTIVE_HIGH_LEVEL);
  // LINT1 of every local APIC is NMI.
  table.u8(4).u8(6).u8(0xff).u16(0).u8(1);
  if (config.cpus > XAPIC_ID_MAX + 1) table.u8(10).u8(12).u16(0).u32(0xffffffff).u8(1).zeros(3);
  return table.finish();
}

/** Memory-mapped configuration (PCI Firmware 3.3, 4.1.2). */
function mcfg({ base, buses }: { readonly base: number; readonly buses: number }): AcpiTable {
  return new TableBuilder('MCFG')
    .header('MCFG', 1)
    .zeros(8)
    .u64(base)
    .u16(0)
    .u8(0)
    .u8(buses - 1)
    .zeros(4)
    .finish();
}
