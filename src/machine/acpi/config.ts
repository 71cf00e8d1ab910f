/** What the ACPI tables say about a board, as plain data, and its defaults. */
import { IOAPIC_BASE, IRQ, LAPIC_BASE, PCI_HOLE, PCI_HOLE_64, PORT } from '../layout.ts';

/** An address range [base, end). */
export interface AddressRange {
  readonly base: number;
  readonly end: number;
}

export interface AcpiConfig {
  /** Processors; local APIC ids are 0 … cpus-1. */
  readonly cpus: number;
  /** COM ports that exist, first one COM1. */
  readonly serial: readonly { readonly port: number; readonly irq: number }[];
  /** The PCI hole below 4 GiB that BARs may use; without the configuration window. */
  readonly pciMemory: AddressRange;
  /** A second one above all RAM. */
  readonly pciMemory64: AddressRange | undefined;
  /** PCI Express configuration space in memory: 1 MiB for each bus. Absent: mechanism 1 only. */
  readonly ecam: { readonly base: number; readonly buses: number } | undefined;
  /** The four INTx lines of the PCI bus arrive at this global system interrupt and the next three. */
  readonly intxGsiBase: number;
  /**
   * The IOAPIC pin of ISA interrupt 0: 2, as on every PC, where the board routes the timer there; 0 where it keeps
   * KVM's own routing.
   */
  readonly timerPin: 0 | 2;
  readonly pmPort: number;
  /** Must be what the timer of the board has. */
  readonly pmTimerBits: 24 | 32;
  /** The sleep type of S5. */
  readonly s5SleepType: number;
  readonly resetPort: number;
  readonly sciIrq: number;
  readonly rtcPort: number | undefined;
  readonly fwCfgPort: number | undefined;
  /** Whether a keyboard controller with a keyboard is to be found. */
  readonly i8042: boolean;
  readonly ioapicBase: number;
  readonly lapicBase: number;
}

/** The board of `layout.ts`: what `parts` leaves out has its place there. */
export function acpiConfig(
  parts: Pick<AcpiConfig, 'cpus' | 'serial'> & Partial<AcpiConfig>,
): AcpiConfig {
  return {
    pciMemory: PCI_HOLE,
    pciMemory64: PCI_HOLE_64,
    ecam: undefined,
    intxGsiBase: 16,
    timerPin: 2,
    pmPort: PORT.acpiPm,
    pmTimerBits: 32,
    s5SleepType: 0,
    resetPort: PORT.resetControl,
    sciIrq: IRQ.sci,
    rtcPort: PORT.rtc,
    fwCfgPort: undefined,
    i8042: false,
    ioapicBase: IOAPIC_BASE,
    lapicBase: LAPIC_BASE,
    ...parts,
  };
}
