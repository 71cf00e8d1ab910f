import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { AssertionError } from '../../base/assert.ts';
import {
  buffer,
  device,
  eisaId,
  integer,
  ioPorts,
  pack,
  path,
  scope,
  uuid,
  window,
} from './aml.ts';
import { type AcpiConfig, acpiConfig } from './config.ts';
import { acpiLoaderFiles, LOADER_FILE } from './loader.ts';
import { checksumOf, layOut, placeAcpiTables, storePointer } from './place.ts';
import { buildAcpiTables } from './tables.ts';

const COM1 = { port: 0x3f8, irq: 4 };
const plain = acpiConfig({ cpus: 2, serial: [COM1] });
const express = acpiConfig({
  cpus: 3,
  serial: [COM1, { port: 0x2f8, irq: 3 }],
  ecam: { base: 0xb000_0000, buses: 1 },
  pmTimerBits: 24,
  fwCfgPort: 0x510,
  i8042: true,
  timerPin: 0,
});
const PLACE = 0xe_0000;

/** Reads placed tables as a guest does: from the root pointer on. */
class Guest {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #address: number;

  constructor(bytes: Uint8Array, address: number) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#address = address;
  }

  u8 = (at: number): number => this.#view.getUint8(at - this.#address);
  u16 = (at: number): number => this.#view.getUint16(at - this.#address, true);
  u32 = (at: number): number => this.#view.getUint32(at - this.#address, true);
  u64 = (at: number): number => this.u32(at) + this.u32(at + 4) * 2 ** 32;
  text = (at: number, length: number): string =>
    String.fromCharCode(...this.#bytes.subarray(at - this.#address, at - this.#address + length));
  sum = (at: number, length: number): number =>
    this.#bytes
      .subarray(at - this.#address, at - this.#address + length)
      .reduce((sum, byte) => (sum + byte) & 0xff, 0);
  slice = (at: number, length: number): Uint8Array =>
    this.#bytes.slice(at - this.#address, at - this.#address + length);

  /** Addresses of the tables under XSDT, by signature; every checksum on the way must hold. */
  tables(rsdp: number): Map<string, number> {
    expect(this.text(rsdp, 8)).toBe('RSD PTR ');
    expect([this.sum(rsdp, 20), this.sum(rsdp, 36)]).toEqual([0, 0]);
    const rsdt = this.u32(rsdp + 16);
    const xsdt = this.u64(rsdp + 24);
    const count = (this.u32(xsdt + 4) - 36) / 8;
    expect((this.u32(rsdt + 4) - 36) / 4).toBe(count);
    const found = new Map([
      ['RSDT', rsdt],
      ['XSDT', xsdt],
    ]);
    for (let i = 0; i < count; i++) {
      const table = this.u64(xsdt + 36 + 8 * i);
      expect(this.u32(rsdt + 36 + 4 * i)).toBe(table);
      found.set(this.text(table, 4), table);
    }
    const fadt = found.get('FACP')!;
    found.set('DSDT', this.u32(fadt + 40));
    expect(this.u64(fadt + 140)).toBe(this.u32(fadt + 40));
    for (const [signature, at] of found) {
      expect(this.text(at, 4)).toBe(signature);
      expect(this.sum(at, this.u32(at + 4))).toBe(0);
      expect(this.text(at + 10, 6)).toBe('TSVMM ');
    }
    found.set('FACS', this.u32(fadt + 36));
    return found;
  }
}

function placed(config: AcpiConfig): { guest: Guest; tables: Map<string, number>; end: number } {
  const { bytes, address, rsdp } = placeAcpiTables(buildAcpiTables(config), PLACE);
  const guest = new Guest(bytes, address);
  return { guest, tables: guest.tables(rsdp), end: address + bytes.length };
}

describe('AML', () => {
  it('encodes names', () => {
    const text = (at: string): string => String.fromCharCode(...path(at));
    expect(text('\\_SB')).toBe('\\_SB_');
    expect(text('A')).toBe('A___');
    expect(text('\\_SB.PCI0')).toBe('\\\u002e_SB_PCI0');
    expect(text('^A.B.C')).toBe('^\u002f\u0003A___B___C___');
    expect(() => path('lower')).toThrow(AssertionError);
  });

  it('encodes constants in the shortest way', () => {
    expect(integer(0)).toEqual([0]);
    expect(integer(1)).toEqual([1]);
    expect(integer(2)).toEqual([0x0a, 2]);
    expect(integer(0x1234)).toEqual([0x0b, 0x34, 0x12]);
    expect(integer(0xdeadbeef)).toEqual([0x0c, 0xef, 0xbe, 0xad, 0xde]);
    expect(integer(2 ** 40)).toEqual([0x0e, 0, 0, 0, 0, 0, 1, 0, 0]);
  });

  it('counts package lengths across every boundary of their encoding', () => {
    const lengthOf = (aml: readonly number[], at: number): number => {
      const lead = aml[at]!;
      const extra = lead >> 6;
      if (extra === 0) return lead & 0x3f;
      let length = lead & 0x0f;
      for (let i = 0; i < extra; i++) length += aml[at + 1 + i]! * 2 ** (4 + 8 * i);
      return length;
    };
    for (const n of [0, 55, 60, 61, 62, 63, 64, 4085, 4090, 4093, 4096, 70000, 1 << 20]) {
      const aml = scope('A', new Array<number>(n).fill(1));
      expect(lengthOf(aml, 1)).toBe(aml.length - 1);
    }
    expect(device('A')).toEqual([0x5b, 0x82, 5, 0x41, 0x5f, 0x5f, 0x5f]);
    expect(pack(integer(5))).toEqual([0x12, 4, 1, 0x0a, 5]);
    expect(buffer([7, 8])).toEqual([0x11, 5, 0x0a, 2, 7, 8]);
  });

  it('encodes identifiers and resources as the specification shows them', () => {
    expect(eisaId('PNP0A03')).toEqual([0x0c, 0x41, 0xd0, 0x0a, 0x03]);
    expect(uuid('33db4d5b-1ff7-401c-9657-7441c03dd766').slice(4, 12)).toEqual([
      0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40,
    ]);
    expect(ioPorts(0xcf8, 8)).toEqual([0x47, 1, 0xf8, 0x0c, 0xf8, 0x0c, 1, 8]);
    expect(window('buses', 0, 0xff)).toHaveLength(16);
    expect(window('memory', 0xc000_0000, 0xfebf_ffff)).toHaveLength(26);
    expect(window('memory', 2 ** 39, 2 ** 40 - 1)).toHaveLength(46);
  });
});

describe('tables in memory', () => {
  it('hang together with right checksums', () => {
    expect([...placed(plain).tables.keys()].sort()).toEqual([
      'APIC',
      'DSDT',
      'FACP',
      'FACS',
      'RSDT',
      'XSDT',
    ]);
    expect(placed(express).tables.has('MCFG')).toBe(true);
  });

  it('fit the area where the root pointer is searched, with many processors too', () => {
    expect(placed(acpiConfig({ cpus: 300, serial: [COM1] })).end).toBeLessThan(0x10_0000);
  });

  it('reserve whole pages', () => {
    const { reserved, bytes } = placeAcpiTables(buildAcpiTables(plain), PLACE);
    expect(reserved.base).toBe(PLACE);
    expect(reserved.size % 4096).toBe(0);
    expect(reserved.size).toBeGreaterThanOrEqual(bytes.length);
  });

  it('say in FADT where power management is', () => {
    const { guest, tables } = placed(plain);
    const fadt = tables.get('FACP')!;
    expect(guest.u32(fadt + 4)).toBe(276);
    expect(guest.u16(fadt + 46)).toBe(9);
    expect(guest.u32(fadt + 48)).toBe(0);
    expect([56, 64, 76].map((at) => guest.u32(fadt + at))).toEqual([0x600, 0x604, 0x608]);
    expect([148, 172, 208].map((at) => guest.u64(fadt + at + 4))).toEqual([0x600, 0x604, 0x608]);
    expect([148, 172, 208].map((at) => guest.u8(fadt + at + 1))).toEqual([32, 16, 32]);
    // Reset register: I/O, 8 bits, 0xcf9, value 6; the flag says that it works.
    expect([guest.u8(fadt + 116), guest.u64(fadt + 120), guest.u8(fadt + 128)]).toEqual([
      1, 0xcf9, 6,
    ]);
    expect(guest.u32(fadt + 112) & (1 << 10)).not.toBe(0);
    expect(guest.u32(fadt + 112) & (1 << 8)).not.toBe(0);
    expect(guest.u16(fadt + 109) & 2).toBe(0);
    expect(guest.u8(fadt + 108)).toBe(0x32);
    const other = placed(express);
    const fadt2 = other.tables.get('FACP')!;
    expect(other.guest.u32(fadt2 + 112) & (1 << 8)).toBe(0);
    expect(other.guest.u16(fadt2 + 109) & 2).toBe(2);
    const facs = tables.get('FACS')!;
    expect([guest.text(facs, 4), guest.u32(facs + 4), facs % 64]).toEqual(['FACS', 64, 0]);
  });

  it('list processors, IOAPIC and overrides in MADT', () => {
    const entries = (config: AcpiConfig): number[][] => {
      const { guest, tables } = placed(config);
      const madt = tables.get('APIC')!;
      const found: number[][] = [];
      for (let at = madt + 44; at < madt + guest.u32(madt + 4); at += guest.u8(at + 1)) {
        found.push([...guest.slice(at, guest.u8(at + 1))]);
      }
      return found;
    };
    expect(entries(plain)).toEqual([
      [0, 8, 0, 0, 1, 0, 0, 0],
      [0, 8, 1, 1, 1, 0, 0, 0],
      [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
      [2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
      [2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0],
      [4, 6, 0xff, 0, 0, 1],
    ]);
    expect(entries(express).filter(([type]) => type === 2)).toHaveLength(1);
    const many = entries(acpiConfig({ cpus: 256, serial: [] }));
    expect(many[254]![0]).toBe(0);
    expect(many[255]).toEqual([9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0]);
    expect(many.at(-1)!.slice(0, 2)).toEqual([10, 12]);
  });
});

describe('tables through firmware', () => {
  /** What a firmware does with the script: allocate, patch, sum. */
  function execute(files: Map<string, Uint8Array>): { memory: Uint8Array; rsdp: number } {
    const memory = new Uint8Array(0x10_0000);
    const script = files.get(LOADER_FILE.script)!;
    const view = new DataView(script.buffer);
    const addresses = new Map<string, number>();
    const text = (at: number): string =>
      String.fromCharCode(...script.subarray(at, at + 56)).replace(/\0.*$/s, '');
    let free = 0x4_1000;
    expect(script.length % 128).toBe(0);
    for (let at = 0; at < script.length; at += 128) {
      const file = text(at + 4);
      switch (view.getUint32(at, true)) {
        case 1: {
          const alignment = view.getUint32(at + 60, true);
          const zone = view.getUint8(at + 64);
          const content = files.get(file)!;
          const base = zone === 2 ? 0xf_0010 : Math.ceil(free / alignment) * alignment;
          if (zone === 1) free = base + content.length;
          memory.set(content, base);
          addresses.set(file, base);
          break;
        }
        case 2: {
          const offset = view.getUint32(at + 116, true);
          const size = view.getUint8(at + 120) as 4 | 8;
          const place = addresses.get(file)! + offset;
          const before = new DataView(memory.buffer).getUint32(place, true);
          storePointer(memory, place, size, before + addresses.get(text(at + 60))!);
          break;
        }
        case 3: {
          const [offset, start, length] = [60, 64, 68].map((o) => view.getUint32(at + o, true)) as [
            number,
            number,
            number,
          ];
          const base = addresses.get(file)!;
          expect(memory[base + offset]).toBe(0);
          memory[base + offset] = checksumOf(memory, base + start, length);
          break;
        }
        default:
          throw new Error('unknown command');
      }
    }
    return { memory, rsdp: addresses.get(LOADER_FILE.rsdp)! };
  }

  it('give the same tables at other addresses', () => {
    const { memory, rsdp } = execute(acpiLoaderFiles(buildAcpiTables(express)));
    const guest = new Guest(memory, 0);
    const tables = guest.tables(rsdp);
    const direct = placed(express);
    expect([...tables.keys()].sort()).toEqual([...direct.tables.keys()].sort());
    for (const name of ['DSDT', 'APIC', 'MCFG', 'FACS']) {
      const [a, b] = [tables.get(name)!, direct.tables.get(name)!];
      const length = guest.u32(a + 4);
      expect(guest.slice(a, length)).toEqual(direct.guest.slice(b, length));
    }
    expect(tables.get('FACS')! % 64).toBe(0);
  });
});

describe('disassembled by iasl', () => {
  const missing = spawnSync('iasl', ['-v']).error !== undefined;
  if (missing) {
    process.stderr.write('skipped: iasl is not installed (Debian package acpica-tools)\n');
  }

  function disassemble(config: AcpiConfig): Map<string, string> {
    const folder = mkdtempSync(join(tmpdir(), 'tsvmm-acpi-'));
    try {
      const set = buildAcpiTables(config);
      const all = [set.rsdp, ...set.tables];
      const { bytes } = placeAcpiTables(set, PLACE);
      const { offsets } = layOut(all);
      const texts = new Map<string, string>();
      for (const table of set.tables) {
        const at = offsets.get(table.name)!;
        const file = join(folder, `${table.name}.aml`);
        writeFileSync(file, bytes.subarray(at, at + table.bytes.length));
        const said = execFileSync('iasl', ['-d', file], { encoding: 'utf8', stdio: 'pipe' });
        const source = join(folder, `${table.name}.dsl`);
        texts.set(table.name, said + readFileSync(source, 'utf8'));
        if (table.name === 'DSDT') {
          // The disassembly must compile again without complaint, to the same bytes.
          const again = execFileSync('iasl', ['-oa', '-p', join(folder, 'again'), source], {
            encoding: 'utf8',
            stdio: 'pipe',
          });
          expect(again).toMatch(/0 Errors, 0 Warnings/);
          const terms = readFileSync(join(folder, 'again.aml')).subarray(36);
          expect([...terms]).toEqual([...table.bytes.subarray(36)]);
        }
      }
      return texts;
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  it.skipIf(missing).each([
    ['plain', plain],
    ['PCI Express', express],
  ])('shows sound tables of a %s machine', (_name, config) => {
    for (const [name, text] of disassemble(config)) {
      expect(`${name}: ${text}`).not.toMatch(/error|warning|invalid|incorrect|unknown/i);
    }
  });

  it.skipIf(missing)('shows the devices that the board has', () => {
    const dsdt = disassemble(plain).get('DSDT')!;
    for (const expected of [
      'Name (_HID, EisaId ("PNP0A03")',
      'Name (_HID, EisaId ("PNP0501")',
      'Name (_HID, EisaId ("PNP0B00")',
      'Device (C001)',
      'Name (\\_S5, Package (0x04)',
      '0x00000000C0000000',
      '0x0000007000000000',
      'IRQNoFlags ()',
    ]) {
      expect(dsdt).toContain(expected.replace('0x00000000C0000000', '0xC0000000'));
    }
    expect(dsdt).not.toContain('PNP0303');
    const more = disassemble(express).get('DSDT')!;
    for (const expected of ['PNP0A08', '_OSC', 'PNP0C02', 'QEMU0002', 'PNP0303', 'Device (COM2)']) {
      expect(more).toContain(expected);
    }
  });
});
