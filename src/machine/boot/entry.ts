/**
 * What a boot loader hands to the first vCPU. The loaders are pure (bytes in, guest memory and an entry out);
 * `cpu-entry.ts` turns the entry into KVM register state.
 */
import type { GuestMemory } from '../../memory/guest-memory.ts';
import type { E820Entry } from '../layout.ts';

/** Register state at the first instruction. */
export type BootEntry =
  /** The processor's own reset state: firmware. */
  | { readonly mode: 'reset' }
  /** 32-bit protected mode, flat segments, paging off (PVH). */
  | { readonly mode: 'protected32'; readonly rip: number; readonly rbx: number }
  /** Long mode, flat segments, `cr3` maps the first 4 GiB one to one (Linux 64-bit boot protocol). */
  | {
      readonly mode: 'long64';
      readonly rip: number;
      readonly rsi: number;
      readonly rsp: number;
      readonly cr3: number;
      readonly gdt: number;
    };

/** What every direct-boot loader works with. */
export interface BootInput {
  readonly memory: GuestMemory;
  /** The kernel image, and its name for messages. */
  readonly kernel: Uint8Array;
  readonly kernelName: string;
  readonly initrd: Uint8Array | undefined;
  /** The kernel command line. */
  readonly commandLine: string;
  readonly e820: readonly E820Entry[];
  /** Address of the ACPI root pointer, 0 for none. */
  readonly rsdp: number;
}

/** Low memory that direct boots use for their structures: free RAM on every machine we lay out. */
export const BOOT_AREA = {
  gdt: 0x500,
  startInfo: 0x6000,
  moduleList: 0x6040,
  zeroPage: 0x7000,
  memoryMap: 0x8000,
  stackTop: 0xf000,
  /** PML4, PDPT and four page directories. */
  pageTables: 0x1_0000,
  commandLine: 0x2_0000,
  commandLineMax: 0x1_0000,
  end: 0x3_0000,
} as const;
