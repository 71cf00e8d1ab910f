/**
 * Where things are in the guest's physical address space and on its I/O ports: one place for every constant
 * that the board, the boot loaders, the ACPI tables and the project's own guests must agree on.
 */
import { assert } from '../base/assert.ts';
import { VmmError } from '../base/error.ts';
import { MAX_RANGE_BYTES } from '../memory/guest-memory.ts';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** RAM below 4 GiB ends here at the latest; above is the PCI hole. */
export const LOW_RAM_MAX = 3 * GIB;
/** RAM that does not fit below the hole continues here. */
export const HIGH_RAM_BASE = 4 * GIB;

/** Where 32-bit PCI memory BARs live. */
export const PCI_HOLE = { base: LOW_RAM_MAX, end: 0xfec0_0000 } as const;
/** Where 64-bit PCI memory BARs live, above any RAM: 448 GiB, inside 39 physical address bits. */
export const PCI_HOLE_64 = { base: 448 * GIB, end: 512 * GIB } as const;
/** I/O ports for PCI BARs. */
export const PCI_PORTS = { base: 0xc000, end: 0x1_0000 } as const;

/** The IOAPIC and local APIC pages, where the in-kernel irqchip has them. */
export const IOAPIC_BASE = 0xfec0_0000;
export const LAPIC_BASE = 0xfee0_0000;
/** Three pages that KVM needs on Intel, and the page before them for its identity map. */
export const KVM_TSS_BASE = 0xfffb_d000;

/** What firmware must keep free of everything: these four pages. */
export const KVM_PAGES = { base: KVM_TSS_BASE - 0x1000, size: 0x4000 } as const;

/** End of conventional memory; up to 1 MiB are the legacy video hole and the shadow area. */
export const CONVENTIONAL_END = 0xa_0000;
/** Option ROM and BIOS shadow area that the PAM registers of the host bridge steer. */
export const SHADOW_BASE = 0xc_0000;
export const SHADOW_END = 0x10_0000;

/** I/O port assignments. */
export const PORT = {
  rtc: 0x70,
  i8042: 0x60,
  debugExit: 0xf4,
  serial: [0x3f8, 0x2f8, 0x3e8, 0x2e8],
  fwCfg: 0x510,
  /** PM1 event (4), PM1 control (2), then the PM timer (4) at +8. */
  acpiPm: 0x600,
  resetControl: 0xcf9,
  pciConfig: 0xcf8,
} as const;

/** The four INTx lines of the PCI bus arrive at this interrupt pin and the next three. */
export const INTX_GSI_BASE = 16;
/** ACPI tables of a direct boot: where kernels look for the root pointer. */
export const ACPI_BASE = 0xe_0000;

/** Interrupt pins. */
export const IRQ = { serial: [4, 3, 4, 3], rtc: 8, sci: 9 } as const;

/** One piece of RAM. */
export interface RamPiece {
  readonly base: number;
  readonly size: number;
}

/** Largest guest: what the memory slots of 2 GiB and 39 address bits leave, kept round. */
export const MEMORY_MAX_BYTES = 384 * GIB;
/** Smallest guest: room for boot structures and a small kernel. */
export const MEMORY_MIN_BYTES = 2 * MIB;

/**
 * The RAM pieces of a guest with `bytes` of memory: below the hole first, the rest from 4 GiB, in pieces of at
 * most 2 GiB.
 * @throws VmmError `CONFIG_MEMORY`
 */
export function ramPieces(bytes: number): RamPiece[] {
  if (
    !Number.isInteger(bytes) ||
    bytes % MIB !== 0 ||
    bytes < MEMORY_MIN_BYTES ||
    bytes > MEMORY_MAX_BYTES
  ) {
    throw new VmmError('CONFIG_MEMORY', `${bytes} bytes of guest memory cannot be laid out`, {
      hint: `Give a whole number of MiB between ${MEMORY_MIN_BYTES / MIB}M and ${MEMORY_MAX_BYTES / GIB}G.`,
    });
  }
  const pieces: RamPiece[] = [];
  const low = Math.min(bytes, LOW_RAM_MAX);
  for (const [start, size] of [
    [0, low],
    [HIGH_RAM_BASE, bytes - low],
  ] as const) {
    for (let done = 0; done < size; done += MAX_RANGE_BYTES) {
      pieces.push({ base: start + done, size: Math.min(MAX_RANGE_BYTES, size - done) });
    }
  }
  assert(
    pieces.reduce((sum, piece) => sum + piece.size, 0) === bytes,
    'the pieces add up to the whole',
  );
  return pieces;
}

/** e820 entry types (ACPI 6.5, table 15-4). */
export const E820 = { ram: 1, reserved: 2, acpi: 3 } as const;

/** One entry of the firmware memory map. */
export interface E820Entry {
  readonly base: number;
  readonly size: number;
  readonly type: (typeof E820)[keyof typeof E820];
}

/**
 * The memory map that a direct boot hands to the kernel.
 * @param reserved ranges inside RAM that the kernel must keep (ACPI tables), ascending, not overlapping
 */
export function e820Map(pieces: readonly RamPiece[], reserved: readonly E820Entry[]): E820Entry[] {
  const map: E820Entry[] = [];
  const addRam = (base: number, end: number): void => {
    let at = base;
    for (const hole of reserved) {
      if (hole.base + hole.size <= at || hole.base >= end) continue;
      if (hole.base > at) map.push({ base: at, size: hole.base - at, type: E820.ram });
      map.push(hole);
      at = hole.base + hole.size;
    }
    if (at < end) map.push({ base: at, size: end - at, type: E820.ram });
  };
  for (const { base, size } of pieces) {
    if (base === 0) {
      addRam(0, CONVENTIONAL_END);
      map.push({
        base: CONVENTIONAL_END,
        size: SHADOW_END - CONVENTIONAL_END,
        type: E820.reserved,
      });
      addRam(SHADOW_END, size);
    } else {
      addRam(base, base + size);
    }
  }
  return joinNeighbours(map);
}

function joinNeighbours(map: readonly E820Entry[]): E820Entry[] {
  const joined: E820Entry[] = [];
  for (const entry of map) {
    const last = joined.at(-1);
    if (last !== undefined && last.type === entry.type && last.base + last.size === entry.base) {
      joined[joined.length - 1] = { ...last, size: last.size + entry.size };
    } else {
      joined.push(entry);
    }
  }
  return joined;
}
