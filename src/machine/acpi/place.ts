/** ACPI tables at fixed addresses: for a kernel that is booted without firmware. */
import { alignUp } from '../../base/bits.ts';
import { E820, type E820Entry } from '../layout.ts';
import type { AcpiTable } from './table.ts';
import type { AcpiTables } from './tables.ts';

/** Tables with their pointers and checksums, ready to be copied into guest memory. */
export interface PlacedTables {
  /** Address of the first byte; RSDP is there. */
  readonly address: number;
  readonly bytes: Uint8Array;
  /** What the kernel is told (`acpi_rsdp_addr` of the zero page, PVH's `rsdp_paddr`). */
  readonly rsdp: number;
  /** Whole pages that the memory map must not call RAM. */
  readonly reserved: E820Entry;
}

/** Offsets of `tables` behind one another from `start` on, and where the last one ends. */
export function layOut(
  tables: readonly AcpiTable[],
  start = 0,
): { offsets: ReadonlyMap<string, number>; end: number } {
  const offsets = new Map<string, number>();
  let end = start;
  for (const { name, bytes, alignment } of tables) {
    const offset = alignUp(end, alignment);
    offsets.set(name, offset);
    end = offset + bytes.length;
  }
  return { offsets, end };
}

/** Stores `value` little-endian in `size` bytes at `offset`. */
export function storePointer(bytes: Uint8Array, offset: number, size: 4 | 8, value: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  view.setUint32(offset, value % 2 ** 32, true);
  if (size === 8) view.setUint32(offset + 4, Math.floor(value / 2 ** 32), true);
}

/** The byte that makes the sum of `bytes[start, start + length)`, in which it is now 0, vanish. */
export function checksumOf(bytes: Uint8Array, start: number, length: number): number {
  let sum = 0;
  for (let i = start; i < start + length; i++) sum += bytes[i]!;
  return -sum & 0xff;
}

/**
 * Places the tables at `address` (page aligned, below 4 GiB). Where the guest has no other way to find them, that is
 * in [0xE0000, 0xFFFFF] (ACPI 6.5, 5.2.5.1).
 */
export function placeAcpiTables({ rsdp, tables }: AcpiTables, address: number): PlacedTables {
  const all = [rsdp, ...tables];
  const { offsets, end } = layOut(all);
  const bytes = new Uint8Array(end);
  for (const { name, bytes: content, pointers, checksums } of all) {
    const at = offsets.get(name)!;
    bytes.set(content, at);
    for (const { offset, size, target } of pointers) {
      storePointer(bytes, at + offset, size, address + offsets.get(target)!);
    }
    for (const { offset, start, length } of checksums) {
      bytes[at + offset] = checksumOf(bytes, at + start, length);
    }
  }
  return {
    address,
    bytes,
    rsdp: address + offsets.get('RSDP')!,
    reserved: { base: address, size: alignUp(end, 4096), type: E820.acpi },
  };
}
