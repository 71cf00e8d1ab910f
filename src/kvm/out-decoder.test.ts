import { describe, expect, it } from 'vitest';
import { type CodeBits, decodeOut } from './out-decoder.ts';

const decode = (bits: CodeBits, ...bytes: number[]) => decodeOut(Uint8Array.from(bytes), 0, bits);

describe('decodeOut', () => {
  it.each<[CodeBits, number[], object]>([
    [64, [0xe6, 0x80], { form: 'immediate', port: 0x80, itemBytes: [1], length: 2 }],
    [64, [0xe7, 0x80], { form: 'immediate', port: 0x80, itemBytes: [4], length: 2 }],
    [64, [0xee], { form: 'dx', port: undefined, itemBytes: [1], length: 1 }],
    [64, [0xef], { form: 'dx', itemBytes: [4], length: 1 }],
    [32, [0xef], { itemBytes: [4] }],
    [16, [0xef], { itemBytes: [2] }],
    [64, [0x66, 0xef], { itemBytes: [2], length: 2 }],
    [32, [0x66, 0xef], { itemBytes: [2] }],
    [16, [0x66, 0xef], { itemBytes: [4] }],
    [16, [0x66, 0xe7, 0x10], { itemBytes: [4], port: 0x10, length: 3 }],
    [64, [0x66, 0xee], { itemBytes: [1], length: 2 }],
    [64, [0x48, 0xef], { itemBytes: [4], length: 2 }],
    [64, [0x66, 0x48, 0xef], { itemBytes: [4, 2], length: 3 }],
    // A REX that a legacy prefix follows does not count.
    [64, [0x48, 0x66, 0xef], { itemBytes: [2], length: 3 }],
    [64, [0xf3, 0xee], { form: 'dx', repeat: true, length: 2 }],
    [64, [0x2e, 0xe6, 0x01], { form: 'immediate', port: 1, segment: 0, length: 3 }],
    [64, [0x6e], { form: 'string', itemBytes: [1], addressBits: 64, repeat: false }],
    [64, [0xf3, 0x6f], { form: 'string', itemBytes: [4], repeat: true }],
    [64, [0xf2, 0x66, 0x6f], { form: 'string', itemBytes: [2], repeat: true, length: 3 }],
    [64, [0x67, 0x6e], { addressBits: 32 }],
    [32, [0x67, 0x6e], { addressBits: 16 }],
    [16, [0x67, 0x6e], { addressBits: 32 }],
    [16, [0x26, 0x6e], { segment: 0x26 }],
    [64, [0x26, 0x6e], { segment: 0 }],
    [64, [0x64, 0x6e], { segment: 0x64 }],
  ])('%i-bit %j', (bits, bytes, expected) => {
    expect(decode(bits, ...bytes)).toMatchObject(expected);
  });

  it.each<[CodeBits, number[]]>([
    [64, []],
    [64, [0x66]],
    [64, [0xe6]],
    [64, [0x90]],
    [64, [0xe4, 0x80]], // in
    [64, [0xf0, 0xee]], // lock out: #UD
    [32, [0x48, 0xee]], // dec eax; out
    [64, [...Array<number>(14).fill(0x66), 0xe7, 0x80]], // 16 bytes
  ])('%i-bit %j is not one', (bits, bytes) => {
    expect(decode(bits, ...bytes)).toBeUndefined();
  });

  it('takes the longest instruction', () => {
    expect(decode(64, ...Array<number>(14).fill(0x66), 0xef)).toMatchObject({
      length: 15,
      itemBytes: [2],
    });
  });

  it('does not look behind the instruction', () => {
    expect(decode(64, 0xee, 0xef, 0x6e)).toMatchObject({ length: 1, itemBytes: [1] });
  });
});
