import { describe, expect, it } from 'vitest';
import { AssertionError } from '../base/assert.ts';
import { GuestMemory } from './guest-memory.ts';

function twoRanges(): GuestMemory {
  return new GuestMemory([
    { base: 0, buffer: new ArrayBuffer(0x4000) },
    { base: 0x4000, buffer: new ArrayBuffer(0x2000) },
    { base: 0x1_0000_0000, buffer: new ArrayBuffer(0x1000) },
  ]);
}

describe('GuestMemory', () => {
  it('reads back scalars little-endian and marks their pages dirty', () => {
    const memory = twoRanges();
    memory.writeU32(0x1_0000_0010, 0xdeadbeef);
    expect(memory.readU8(0x1_0000_0010)).toBe(0xef);
    expect(memory.readU16(0x1_0000_0012)).toBe(0xdead);
    memory.writeU64(8, 0x12_3456_789a);
    expect(memory.readU64(8)).toBe(0x12_3456_789a);
    const out = new Uint32Array(4);
    expect(memory.dirty.takeInto(out)).toBe(2);
    expect([...out.subarray(0, 2)]).toEqual([0, 0x100000]);
    expect(memory.dirty.empty).toBe(true);
  });

  it('copies across adjoining ranges and refuses holes without writing', () => {
    const memory = twoRanges();
    const source = new Uint8Array(300).map((_, i) => i);
    expect(memory.write(0x4000 - 100, source)).toBe(true);
    const back = new Uint8Array(300);
    expect(memory.read(0x4000 - 100, back)).toBe(true);
    expect(back).toEqual(source);
    expect(memory.write(0x6000 - 100, source)).toBe(false);
    expect(memory.readU8(0x6000 - 100)).toBe(0);
    expect(memory.fill(0x3ff0, 0x20, 7)).toBe(true);
    expect(memory.readU8(0x400f)).toBe(7);
  });

  it('knows what is RAM', () => {
    const memory = twoRanges();
    expect(memory.contains(0x3fff, 2)).toBe(true);
    expect(memory.contains(0x5fff, 2)).toBe(false);
    expect(memory.contains(-1, 2)).toBe(false);
    expect(memory.contains(Number.NaN, 1)).toBe(false);
    expect(memory.contains(2 ** 52, 2 ** 52)).toBe(false);
    expect(memory.contains(2 ** 64 - 2048, 100)).toBe(false);
    expect(memory.write(2 ** 64 - 2048, new Uint8Array(100))).toBe(false);
    expect(memory.contains(0, 0x6000)).toBe(true);
    expect(memory.contains(0, 0x1_0000_1000)).toBe(false);
    expect(() => memory.readU32(0x6000)).toThrow(AssertionError);
  });
});

describe('DirtySet', () => {
  it('takes in ascending order, keeps what does not fit, and merges into a bitmap', () => {
    const memory = twoRanges();
    memory.dirty.mark(0x1fff, 2);
    memory.dirty.mark(0x5000, 0x1000);
    memory.dirty.mark(0x3000, 0);
    const out = new Uint32Array(2);
    expect(memory.dirty.takeInto(out)).toBe(2);
    expect([...out]).toEqual([1, 2]);
    expect(memory.dirty.has(5)).toBe(true);
    const bitmap = new Uint32Array(0x100001 / 32 + 1);
    memory.dirty.mark(0x1_0000_0000, 1);
    memory.dirty.mergeInto(bitmap);
    expect(bitmap[0]).toBe(1 << 5);
    expect(bitmap[0x100000 / 32]).toBe(1);
    expect(memory.dirty.empty).toBe(true);
  });
});
