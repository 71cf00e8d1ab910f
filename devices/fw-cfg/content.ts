/**
 * What a firmware configuration device offers: numbered items and named files. Both hosts of a protected machine must
 * build the same content; it is not part of the saved state.
 */
import { assert } from '../../src/base/assert.ts';
import { VmmError } from '../../src/base/error.ts';
import { DIRECTORY_ENTRY_BYTES, FEATURES, FILE_NAME_BYTES, KEY, SIGNATURE } from './spec.ts';

/** Files that one directory can list: as many keys as there are below those of the architecture. */
const FILES_MAX = 0x1000;

/** A piece of the guest's memory map, numbered as in e820. */
export interface MemoryMapEntry {
  readonly base: number;
  readonly size: number;
  readonly type: number;
}

/** What firmware asks of every machine. */
export interface FwCfgMachine {
  readonly cpus: number;
  /** RAM in all, bytes. */
  readonly memoryBytes: number;
  /** RAM, and what is reserved beside it. */
  readonly memoryMap: readonly MemoryMapEntry[];
  /** Boot devices as OpenFirmware paths, first one first. Default: the firmware's own order. */
  readonly bootOrder?: readonly string[];
  /** Whether the firmware waits a moment for a key that opens its boot menu. Default false. */
  readonly bootMenu?: boolean;
}

/** Collects items and files. */
export class FwCfgContent {
  readonly #items = new Map<number, Uint8Array>();
  readonly #files = new Map<string, Uint8Array>();

  constructor() {
    this.item(KEY.signature, ascii(SIGNATURE));
    this.item(KEY.id, little(FEATURES, 4));
  }

  /** Sets the item of `key`, which is none of a file. */
  item(key: number, bytes: Uint8Array): this {
    assert(key < KEY.directory || key >= 0x8000, 'an item has a key of its own');
    this.#items.set(key, bytes);
    return this;
  }

  /**
   * Adds a file or replaces one; the name is that of the directory, such as `opt/org.example/data`.
   * @throws VmmError `FW_CFG_FILE` when the name does not fit
   */
  file(name: string, bytes: Uint8Array): this {
    if (!/^[\x21-\x7e]+$/.test(name) || name.length >= FILE_NAME_BYTES) {
      throw new VmmError('FW_CFG_FILE', `"${name}" cannot be the name of a fw_cfg file`, {
        hint: `Give up to ${FILE_NAME_BYTES - 1} printable ASCII characters without spaces.`,
      });
    }
    this.#files.set(name, bytes);
    return this;
  }

  /** Adds a file that holds a little-endian number, as firmware reads its settings. */
  number(name: string, value: number, size: 1 | 2 | 4 | 8): this {
    return this.file(name, little(value, size));
  }

  /** Adds what firmware asks of every machine. */
  machine(machine: FwCfgMachine): this {
    this.item(KEY.cpus, little(machine.cpus, 2))
      .item(KEY.maxCpus, little(machine.cpus, 2))
      .item(KEY.ramSize, little(machine.memoryBytes, 8))
      .item(KEY.graphics, little(0, 2))
      .item(KEY.bootMenu, little(machine.bootMenu ? 1 : 0, 2))
      .item(KEY.irq0Override, little(1, 1));
    const map = new Uint8Array(20 * machine.memoryMap.length);
    for (const [i, { base, size, type }] of machine.memoryMap.entries()) {
      map.set(little(base, 8), 20 * i);
      map.set(little(size, 8), 20 * i + 8);
      map.set(little(type, 4), 20 * i + 16);
    }
    this.file('etc/e820', map);
    if (machine.bootOrder) this.file('bootorder', ascii(`${machine.bootOrder.join('\n')}\0`));
    return this;
  }

  /** Every item by key: those set, the directory, and the files in the order of their names. */
  build(): Map<number, Uint8Array> {
    const names = [...this.#files.keys()].sort();
    assert(names.length <= FILES_MAX, 'files fit the keys');
    const items = new Map(this.#items);
    const directory = new Uint8Array(4 + names.length * DIRECTORY_ENTRY_BYTES);
    const view = new DataView(directory.buffer);
    view.setUint32(0, names.length);
    for (const [i, name] of names.entries()) {
      const at = 4 + i * DIRECTORY_ENTRY_BYTES;
      const bytes = this.#files.get(name)!;
      items.set(KEY.firstFile + i, bytes);
      view.setUint32(at, bytes.length);
      view.setUint16(at + 4, KEY.firstFile + i);
      directory.set(ascii(name), at + 8);
    }
    return items.set(KEY.directory, directory);
  }
}

function ascii(text: string): Uint8Array {
  return Uint8Array.from(text, (char) => char.charCodeAt(0));
}

/** @param value below 2^53 */
function little(value: number, size: number): Uint8Array {
  const out = new Uint8Array(size);
  for (let i = 0, left = value; i < size; i++, left = Math.floor(left / 256)) out[i] = left % 256;
  return out;
}
