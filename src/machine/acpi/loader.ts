/**
 * ACPI tables as fw_cfg files that firmware places: the tables, the root pointer, and a script of commands
 * (`etc/table-loader`) by which it allocates memory, adds addresses to pointers and sets checksums. The format is
 * the one that QEMU documents (docs/specs/fw_cfg.rst, hw/acpi/bios-linker-loader); SeaBIOS, OVMF and coreboot read it.
 */
import { layOut, storePointer } from './place.ts';
import type { AcpiTable } from './table.ts';
import type { AcpiTables } from './tables.ts';

/** Names of the fw_cfg files. */
export const LOADER_FILE = {
  script: 'etc/table-loader',
  tables: 'etc/acpi/tables',
  rsdp: 'etc/acpi/rsdp',
} as const;

const ENTRY_BYTES = 128;
const FILE_NAME_BYTES = 56;
const COMMAND = { allocate: 1, addPointer: 2, addChecksum: 3 } as const;
/** Where allocated files go: anywhere below 4 GiB, or the segment in which the root pointer is searched. */
const ZONE = { high: 1, segmentF: 2 } as const;

/** The fw_cfg files of `tables`, by name. */
export function acpiLoaderFiles({ rsdp, tables }: AcpiTables): Map<string, Uint8Array> {
  const { offsets, end } = layOut(tables);
  const blob = new Uint8Array(end);
  const root = rsdp.bytes.slice();
  const alignment = Math.max(...tables.map((table) => table.alignment));
  const script = new Script()
    .allocate(LOADER_FILE.tables, alignment, ZONE.high)
    .allocate(LOADER_FILE.rsdp, rsdp.alignment, ZONE.segmentF);
  const connect = (file: string, bytes: Uint8Array, at: number, table: AcpiTable): void => {
    bytes.set(table.bytes, at);
    for (const { offset, size, target } of table.pointers) {
      // The file holds the offset of the target; the firmware adds where the file went.
      storePointer(bytes, at + offset, size, offsets.get(target)!);
      script.addPointer(file, LOADER_FILE.tables, at + offset, size);
    }
    for (const { offset, start, length } of table.checksums) {
      script.addChecksum(file, at + offset, at + start, length);
    }
  };
  for (const table of tables) connect(LOADER_FILE.tables, blob, offsets.get(table.name)!, table);
  connect(LOADER_FILE.rsdp, root, 0, rsdp);
  return new Map([
    [LOADER_FILE.script, script.bytes()],
    [LOADER_FILE.tables, blob],
    [LOADER_FILE.rsdp, root],
  ]);
}

class Script {
  readonly #entries: Uint8Array[] = [];

  allocate(file: string, alignment: number, zone: number): this {
    const view = this.#entry(COMMAND.allocate, file);
    view.setUint32(4 + FILE_NAME_BYTES, alignment, true);
    view.setUint8(8 + FILE_NAME_BYTES, zone);
    return this;
  }

  addPointer(file: string, target: string, offset: number, size: number): this {
    const view = this.#entry(COMMAND.addPointer, file, target);
    view.setUint32(4 + 2 * FILE_NAME_BYTES, offset, true);
    view.setUint8(8 + 2 * FILE_NAME_BYTES, size);
    return this;
  }

  addChecksum(file: string, offset: number, start: number, length: number): this {
    const view = this.#entry(COMMAND.addChecksum, file);
    view.setUint32(4 + FILE_NAME_BYTES, offset, true);
    view.setUint32(8 + FILE_NAME_BYTES, start, true);
    view.setUint32(12 + FILE_NAME_BYTES, length, true);
    return this;
  }

  bytes(): Uint8Array {
    const out = new Uint8Array(this.#entries.length * ENTRY_BYTES);
    for (const [i, entry] of this.#entries.entries()) out.set(entry, i * ENTRY_BYTES);
    return out;
  }

  #entry(command: number, ...files: readonly string[]): DataView {
    const entry = new Uint8Array(ENTRY_BYTES);
    const view = new DataView(entry.buffer);
    view.setUint32(0, command, true);
    for (const [i, file] of files.entries()) {
      for (let at = 0; at < file.length; at++) {
        entry[4 + i * FILE_NAME_BYTES + at] = file.charCodeAt(at);
      }
    }
    this.#entries.push(entry);
    return view;
  }
}
