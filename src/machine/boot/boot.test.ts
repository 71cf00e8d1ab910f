import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { VmmError } from '../../base/error.ts';
import { Prng } from '../../base/prng.ts';
import { GuestMemory } from '../../memory/guest-memory.ts';
import { E820, e820Map, ramPieces } from '../layout.ts';
import { loadKernel } from './direct.ts';
import type { BootInput } from './entry.ts';

const MIB = 2 ** 20;

function input(kernel: Uint8Array, change: Partial<BootInput> = {}, megabytes = 32): BootInput {
  const memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(megabytes * MIB) }]);
  return {
    memory,
    kernel,
    kernelName: 'k',
    initrd: undefined,
    commandLine: 'console=ttyS0',
    e820: e820Map(ramPieces(megabytes * MIB), []),
    rsdp: 0xe0000,
    ...change,
  };
}

/** A small ELF64 with one segment at 1 MiB and a PVH note. */
function elf(): Uint8Array {
  const image = new Uint8Array(0x300);
  const view = new DataView(image.buffer);
  image.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 62, true);
  view.setUint32(32, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 2, true);
  const header = (
    at: number,
    type: number,
    offset: number,
    address: number,
    file: number,
    mem: number,
  ) => {
    view.setUint32(at, type, true);
    view.setUint32(at + 8, offset, true);
    view.setUint32(at + 24, address, true);
    view.setUint32(at + 32, file, true);
    view.setUint32(at + 40, mem, true);
  };
  header(64, 1, 0x200, MIB, 0x100, 0x1000);
  header(120, 4, 0x180, 0, 20, 20);
  view.setUint32(0x180, 4, true);
  view.setUint32(0x184, 4, true);
  view.setUint32(0x188, 18, true);
  image.set([0x58, 0x65, 0x6e, 0], 0x18c);
  view.setUint32(0x190, MIB + 0x10, true);
  image.fill(0x90, 0x200);
  return image;
}

/** A bzImage with a 2.15 header, one setup sector and `code` bytes of kernel. */
function bzImage(code = 4096): Uint8Array {
  const image = new Uint8Array(2 * 512 + 512 + code);
  const view = new DataView(image.buffer);
  image[0x1f1] = 2;
  view.setUint16(0x1fe, 0xaa55, true);
  image[0x200] = 0xeb;
  image[0x201] = 0x6a;
  view.setUint32(0x202, 0x53726448, true);
  view.setUint16(0x206, 0x20f, true);
  image[0x211] = 1;
  view.setUint32(0x22c, 0x7fffffff, true);
  view.setUint32(0x230, 0x200000, true);
  image[0x234] = 1;
  view.setUint16(0x236, 1, true);
  view.setUint32(0x238, 2047, true);
  view.setUint32(0x258, 16 * MIB, true);
  view.setUint32(0x260, 8 * MIB, true);
  image.fill(0xcc, 1536);
  return image;
}

describe('PVH boot', () => {
  it('loads segments, zeroes the rest and fills start_info', () => {
    const initrd = new Uint8Array(5000).fill(7);
    const boot = input(elf(), { initrd });
    boot.memory.fill(MIB, 0x1000, 0xee);
    const entry = loadKernel(boot);
    expect(entry).toMatchObject({ mode: 'protected32', rip: MIB + 0x10 });
    if (entry.mode !== 'protected32') throw new Error('mode');
    const { memory } = boot;
    expect(memory.readU8(MIB + 0xff)).toBe(0x90);
    expect(memory.readU8(MIB + 0x100)).toBe(0);
    expect(memory.readU8(MIB + 0xfff)).toBe(0);
    expect(memory.readU32(entry.rbx)).toBe(0x336ec578);
    expect(memory.readU32(entry.rbx + 12)).toBe(1);
    const modules = memory.readU64(entry.rbx + 16);
    const initrdAt = memory.readU64(modules);
    expect(memory.readU64(modules + 8)).toBe(5000);
    expect(memory.readU8(initrdAt + 4999)).toBe(7);
    expect(memory.readU64(entry.rbx + 32)).toBe(0xe0000);
    const line = new Uint8Array(14);
    memory.read(memory.readU64(entry.rbx + 24), line);
    expect(new TextDecoder().decode(line)).toBe('console=ttyS0\0');
    const entries = memory.readU32(entry.rbx + 48);
    const map = memory.readU64(entry.rbx + 40);
    expect(entries).toBe(3);
    expect(memory.readU64(map + 24)).toBe(0xa0000);
    expect(memory.readU32(map + 24 + 16)).toBe(E820.reserved);
  });

  it('refuses segments outside RAM or over the boot area', () => {
    for (const address of [0x1000, 40 * MIB, 0xfffff000]) {
      const image = elf();
      new DataView(image.buffer).setUint32(64 + 24, address, true);
      expect(() => loadKernel(input(image))).toThrow(VmmError);
    }
  });

  it('says so when there is no PVH note', () => {
    const image = elf();
    image[0x188] = 17;
    expect(() => loadKernel(input(image))).toThrow(/without a PVH entry note/);
  });
});

describe('bzImage boot', () => {
  it('fills the zero page and enters at the 64-bit entry', () => {
    const boot = input(bzImage(), { initrd: new Uint8Array(100).fill(1) });
    const entry = loadKernel(boot);
    expect(entry).toMatchObject({ mode: 'long64', rip: 16 * MIB + 0x200 });
    if (entry.mode !== 'long64') throw new Error('mode');
    const { memory } = boot;
    expect(memory.readU32(entry.rsi + 0x202)).toBe(0x53726448);
    expect(memory.readU8(entry.rsi + 0x210)).toBe(0xff);
    expect(memory.readU8(entry.rsi + 0x1e8)).toBe(3);
    expect(memory.readU32(entry.rsi + 0x21c)).toBe(100);
    expect(memory.readU8(memory.readU32(entry.rsi + 0x218))).toBe(1);
    expect(memory.readU32(entry.rsi + 0x70)).toBe(0xe0000);
    expect(memory.readU8(16 * MIB)).toBe(0xcc);
    const directory = memory.readU64(memory.readU64(entry.cr3) - 3) - 3;
    expect(memory.readU64(directory + 8)).toBe(2 * MIB + 0x83);
  });

  it('moves a relocatable kernel where the preferred address is not RAM', () => {
    expect(loadKernel(input(bzImage(), {}, 16))).toMatchObject({ rip: 2 * MIB + 0x200 });
    const fixed = bzImage();
    fixed[0x234] = 0;
    expect(() => loadKernel(input(fixed, {}, 16))).toThrow(/does not fit/);
  });

  it('refuses old protocols, 32-bit-only kernels, long command lines and large initrds', () => {
    const old = bzImage();
    old[0x206] = 0x0b;
    expect(() => loadKernel(input(old))).toThrow(/older than 2.12/);
    const narrow = bzImage();
    narrow[0x236] = 0;
    expect(() => loadKernel(input(narrow))).toThrow(/no 64-bit entry/);
    expect(() => loadKernel(input(bzImage(), { commandLine: 'x'.repeat(2048) }))).toThrow(
      /2048 bytes.*2047/,
    );
    expect(() => loadKernel(input(bzImage(), { initrd: new Uint8Array(9 * MIB) }))).toThrow(
      /initrd/,
    );
  });
});

describe('garbage as a kernel', () => {
  it('gives a VmmError or a boot, whatever the bytes', () => {
    const seed = 12345;
    const prng = new Prng(seed);
    for (let i = 0; i < 3000; i++) {
      const image = prng.chance(0.5) ? elf() : bzImage(64);
      for (let n = prng.between(1, 8); n > 0; n--) image[prng.below(image.length)] = prng.u32();
      const cut = prng.chance(0.2) ? image.subarray(0, prng.below(image.length)) : image;
      const change = prng.chance(0.3)
        ? { initrd: new Uint8Array(prng.below(3) * 5 * MIB + 1) }
        : {};
      try {
        loadKernel({ ...shared, ...change, kernel: cut });
      } catch (error) {
        if (!(error instanceof VmmError))
          throw new Error(`seed ${seed}, round ${i}`, { cause: error });
      }
    }
  });

  it('including bytes that nobody shaped', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        expect(() => loadKernel({ ...shared, kernel: bytes })).toThrow(VmmError);
      }),
    );
  });
});

const shared = input(new Uint8Array(0), {}, 16);
