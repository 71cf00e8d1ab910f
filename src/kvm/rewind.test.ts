import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { REG, type SkipPoint } from './api.ts';
import type { CodeBits } from './out-decoder.ts';
import { type RewindInput, rewindOut } from './rewind.ts';

const RIP = 0x4000n;
const MEMORY_BYTES = 0x2_0000;

interface Case {
  readonly bits: CodeBits;
  readonly instruction: readonly number[];
  readonly port: number;
  readonly itemBytes: number;
  /** Registers before the OUT, RIP excepted. */
  readonly rax?: bigint;
  readonly rdx?: bigint;
  readonly rsi?: bigint;
  readonly rcx?: bigint;
  readonly down?: boolean;
  readonly before?: readonly number[];
  readonly behind?: readonly number[];
}

interface Exit {
  /** Registers as the kernel shows them. */
  readonly regs: BigUint64Array;
  readonly data: readonly number[];
  readonly count: number;
  readonly memory: Uint8Array;
}

function registers(test: Case): BigUint64Array {
  const regs = new BigUint64Array(18);
  regs[REG.rip] = RIP;
  regs[REG.rax] = test.rax ?? 0x11_2233_4455_6677n;
  regs[REG.rdx] = test.rdx ?? BigInt(test.port);
  regs[REG.rsi] = test.rsi ?? 0x100n;
  regs[REG.rcx] = test.rcx ?? 5n;
  regs[REG.rflags] = test.down === true ? 0x402n : 2n;
  return regs;
}

function rewind(test: Case, exit: Exit, skip: SkipPoint) {
  const code = new Uint8Array(64).fill(0x90);
  const start = 32;
  code.set(test.before ?? [], start - (test.before?.length ?? 0));
  code.set(test.instruction, start);
  code.set(test.behind ?? [], start + test.instruction.length);
  const at = start + Number(exit.regs[REG.rip]! - RIP);
  const input: RewindInput = {
    out: {
      port: test.port,
      itemBytes: test.itemBytes,
      count: exit.count,
      data: Uint8Array.from(exit.data),
    },
    regs: exit.regs,
    codeBits: test.bits,
    before: code.subarray(at - 15, at),
    after: code.subarray(at, at + 15),
    skip,
    readString: (_segment, offset, bytes) =>
      offset + BigInt(bytes) > MEMORY_BYTES
        ? undefined
        : exit.memory.subarray(Number(offset), Number(offset) + bytes),
  };
  return rewindOut(input);
}

function plainExit(test: Case, moved: boolean): Exit {
  const regs = registers(test);
  if (moved) regs[REG.rip] = RIP + BigInt(test.instruction.length);
  const data = Array.from({ length: test.itemBytes }, (_, i) =>
    Number((regs[REG.rax]! >> BigInt(8 * i)) & 0xffn),
  );
  return { regs, data, count: 1, memory: new Uint8Array(MEMORY_BYTES).fill(0xcc) };
}

/** The string forms as the emulator leaves them. */
function stringExit(test: Case, items: number, mask: bigint, repeat: boolean): Exit {
  const regs = registers(test);
  const memory = new Uint8Array(MEMORY_BYTES);
  for (let i = 0; i < memory.length; i++) memory[i] = (i * 7 + 3) & 0xff;
  const data: number[] = [];
  const step = BigInt(test.itemBytes) * (test.down === true ? -1n : 1n);
  const write = (register: bigint, value: bigint) =>
    mask === 0xffffn ? (register & ~mask) | (value & mask) : value & mask;
  for (let i = 0; i < items; i++) {
    const offset = Number(regs[REG.rsi]! & mask);
    for (let b = 0; b < test.itemBytes; b++) data.push(memory[offset + b]!);
    regs[REG.rsi] = write(regs[REG.rsi]!, regs[REG.rsi]! + step);
    if (repeat) regs[REG.rcx] = write(regs[REG.rcx]!, regs[REG.rcx]! - 1n);
  }
  if (!repeat) regs[REG.rip] = RIP + BigInt(test.instruction.length);
  return { regs, data, count: items, memory };
}

const PLAIN: [string, Case][] = [
  ['out imm8, al', { bits: 64, instruction: [0xe6, 0x80], port: 0x80, itemBytes: 1 }],
  ['out imm8, eax', { bits: 64, instruction: [0xe7, 0x80], port: 0x80, itemBytes: 4 }],
  ['out imm8, ax', { bits: 64, instruction: [0x66, 0xe7, 0x80], port: 0x80, itemBytes: 2 }],
  ['out dx, al', { bits: 64, instruction: [0xee], port: 0x3f8, itemBytes: 1 }],
  ['out dx, ax', { bits: 64, instruction: [0x66, 0xef], port: 0xcf8, itemBytes: 2 }],
  ['out dx, eax', { bits: 64, instruction: [0xef], port: 0xcf8, itemBytes: 4 }],
  ['out dx, ax in 16-bit code', { bits: 16, instruction: [0xef], port: 0xcf8, itemBytes: 2 }],
  [
    'out dx, eax in 16-bit code',
    { bits: 16, instruction: [0x66, 0xef], port: 0xcf8, itemBytes: 4 },
  ],
  ['out dx, ax in 32-bit code', { bits: 32, instruction: [0x66, 0xef], port: 0xcf8, itemBytes: 2 }],
  ['out with rep', { bits: 64, instruction: [0xf3, 0xee], port: 0x3f8, itemBytes: 1 }],
  ['out with rex', { bits: 64, instruction: [0x48, 0xef], port: 0x3f8, itemBytes: 4 }],
  [
    'out with segments',
    { bits: 64, instruction: [0x64, 0x2e, 0x66, 0xef], port: 0x3f8, itemBytes: 2 },
  ],
  ['port 0x7e', { bits: 64, instruction: [0xe6, 0x7e], port: 0x7e, itemBytes: 1 }],
];

describe('rewindOut', () => {
  describe.each<SkipPoint>(['early', 'late', 'unknown'])('kernel said to skip %s', (skip) => {
    it.each(PLAIN)('%s, RIP past it', (_, test) => {
      const rewound = rewind(test, plainExit(test, true), skip);
      expect(rewound?.kind).toBe('skipped');
      // Leading prefixes without effect may stay behind: what is left does the same.
      const left = Number(RIP + BigInt(test.instruction.length) - rewound!.regs[REG.rip]!);
      expect(left).toBeGreaterThan(0);
      expect(left).toBeLessThanOrEqual(test.instruction.length);
    });

    it.each(PLAIN)('%s, RIP on it', (_, test) => {
      const exit = plainExit(test, false);
      expect(rewind(test, exit, skip)).toEqual({ kind: 'on-instruction', regs: exit.regs });
    });
  });

  it('keeps the operand size prefix and drops what does nothing', () => {
    const test: Case = {
      bits: 64,
      instruction: [0x2e, 0x66, 0x40, 0xef],
      port: 0x10,
      itemBytes: 2,
    };
    const rewound = rewind(test, plainExit(test, true), 'early')!;
    expect(rewound.regs[REG.rip]).toBe(RIP + 1n);
  });

  it('tells two equal instructions in a row apart by the probed habit', () => {
    const first: Case = { bits: 64, instruction: [0xee], behind: [0xee], port: 0x10, itemBytes: 1 };
    expect(rewind(first, plainExit(first, true), 'early')!.regs[REG.rip]).toBe(RIP);
    const second: Case = {
      bits: 64,
      instruction: [0xee],
      before: [0xee],
      port: 0x10,
      itemBytes: 1,
    };
    expect(rewind(second, plainExit(second, false), 'late')!.regs[REG.rip]).toBe(RIP);
  });

  it('is not led astray by an immediate that looks like an opcode', () => {
    // out 0xee, al: the suffix EE is `out dx, al`, a different port.
    const test: Case = {
      bits: 64,
      instruction: [0xe6, 0xee],
      port: 0xee,
      rdx: 0x3f8n,
      itemBytes: 1,
    };
    expect(rewind(test, plainExit(test, true), 'early')!.regs[REG.rip]).toBe(RIP);
    // With DX equal either instruction makes the same output; the shortest is taken.
    const same: Case = { ...test, rdx: 0xeen };
    expect(rewind(same, plainExit(same, true), 'early')!.regs[REG.rip]).toBe(RIP + 1n);
    // out 0x6e, al: the suffix 6E is `outsb`, which would send something else.
    const string: Case = {
      bits: 64,
      instruction: [0xe6, 0x6e],
      port: 0x6e,
      rdx: 0x6en,
      itemBytes: 1,
    };
    expect(rewind(string, plainExit(string, true), 'early')).toMatchObject({ kind: 'skipped' });
    expect(rewind(string, plainExit(string, true), 'early')!.regs[REG.rip]).toBe(RIP);
  });

  it('finds nothing where no instruction fits', () => {
    const test: Case = { bits: 64, instruction: [0xee], port: 0x10, itemBytes: 1 };
    const exit = plainExit(test, true);
    expect(rewind({ ...test, port: 0x11 }, exit, 'early')).toBeUndefined();
    expect(rewind({ ...test, itemBytes: 4 }, exit, 'early')).toBeUndefined();
    expect(rewind(test, { ...exit, data: [exit.data[0]! ^ 1] }, 'early')).toBeUndefined();
    expect(rewind({ ...test, instruction: [0x90] }, exit, 'early')).toBeUndefined();
  });

  const MASK: Record<CodeBits, bigint> = {
    16: 0xffffn,
    32: 0xffff_ffffn,
    64: 0xffff_ffff_ffff_ffffn,
  };

  describe.each<SkipPoint>(['early', 'late'])('string output, plain output skipped %s', (skip) => {
    it.each<[string, Case, CodeBits, number]>([
      ['rep outsb', { bits: 64, instruction: [0xf3, 0x6e], port: 0x510, itemBytes: 1 }, 64, 1],
      [
        'rep outsb of several',
        { bits: 64, instruction: [0xf3, 0x6e], port: 0x510, itemBytes: 1, rcx: 9n },
        64,
        4,
      ],
      [
        'repne outsw',
        { bits: 64, instruction: [0xf2, 0x66, 0x6f], port: 0x510, itemBytes: 2 },
        64,
        3,
      ],
      ['rep outsd', { bits: 64, instruction: [0xf3, 0x6f], port: 0x510, itemBytes: 4 }, 64, 2],
      [
        'the last item',
        { bits: 64, instruction: [0xf3, 0x6e], port: 0x510, itemBytes: 1, rcx: 1n },
        64,
        1,
      ],
      [
        'backwards',
        { bits: 64, instruction: [0xf3, 0x6f], port: 0x510, itemBytes: 4, down: true },
        64,
        2,
      ],
      [
        '16-bit code',
        {
          bits: 16,
          instruction: [0xf3, 0x6e],
          port: 0x510,
          itemBytes: 1,
          rsi: 0xab_ffffn,
          rcx: 0xcd_0003n,
        },
        16,
        1,
      ],
      [
        '32-bit addresses',
        { bits: 64, instruction: [0xf3, 0x67, 0x6e], port: 0x510, itemBytes: 1 },
        32,
        2,
      ],
    ])('%s', (_, test, addressBits, items) => {
      const rewound = rewind(test, stringExit(test, items, MASK[addressBits], true), skip);
      expect(rewound?.kind).toBe('repeated-string');
      expect(rewound!.regs).toEqual(registers(test));
    });

    it.each<[string, Case, CodeBits]>([
      ['outsb', { bits: 64, instruction: [0x6e], port: 0x510, itemBytes: 1 }, 64],
      ['outsw', { bits: 64, instruction: [0x66, 0x6f], port: 0x510, itemBytes: 2 }, 64],
      [
        'outsd backwards',
        { bits: 64, instruction: [0x6f], port: 0x510, itemBytes: 4, down: true },
        64,
      ],
      ['outsw in 16-bit code', { bits: 16, instruction: [0x6f], port: 0x510, itemBytes: 2 }, 16],
    ])('single %s', (_, test, addressBits) => {
      const rewound = rewind(test, stringExit(test, 1, MASK[addressBits], false), skip);
      expect(rewound?.kind).toBe('string');
      expect(rewound!.regs).toEqual(registers(test));
    });
  });

  it('knows a repeated string output from the plain one in front of it', () => {
    // out dx, al; rep outsb: RIP is on the string instruction in both exits, only the data tell.
    const test: Case = {
      bits: 64,
      before: [0xee],
      instruction: [0xf3, 0x6e],
      port: 0x510,
      itemBytes: 1,
      rax: 0x100n,
    };
    expect(rewind(test, stringExit(test, 1, MASK[64], true), 'early')?.kind).toBe(
      'repeated-string',
    );
    const plain: Case = { ...test, before: [], instruction: [0xee], behind: [0xf3, 0x6e], rax: 1n };
    expect(rewind(plain, plainExit(plain, true), 'early')?.kind).toBe('skipped');
  });

  it('gives an instruction that makes the same output, for any prefixes', () => {
    const prefix = fc.constantFrom(0x66, 0x67, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65);
    fc.assert(
      fc.property(
        fc.constantFrom<CodeBits>(16, 32, 64),
        fc.array(prefix, { maxLength: 6 }),
        fc.option(fc.integer({ min: 0x40, max: 0x4f }), { nil: undefined }),
        fc.constantFrom(0xe6, 0xe7, 0xee, 0xef),
        fc.integer({ min: 0, max: 255 }),
        fc.constantFrom<SkipPoint>('early', 'unknown'),
        (bits, prefixes, rex, opcode, port, skip) => {
          const useRex = bits === 64 && rex !== undefined;
          const instruction = [...prefixes, ...(useRex ? [rex] : []), opcode];
          if (opcode < 0xe8) instruction.push(port);
          const wide = (opcode & 1) === 1;
          const swap = prefixes.includes(0x66) && !(useRex && (rex & 8) !== 0);
          const itemBytes = !wide ? 1 : (bits === 16) === swap ? 4 : 2;
          const test: Case = {
            bits,
            instruction,
            port,
            rdx: opcode < 0xe8 ? 0x1234n : BigInt(port),
            itemBytes,
          };
          const rewound = rewind(test, plainExit(test, true), skip);
          const left = Number(RIP + BigInt(instruction.length) - rewound!.regs[REG.rip]!);
          // Only prefixes may have been left behind, never the size of the output.
          expect(left).toBeLessThanOrEqual(instruction.length);
          expect(left).toBeGreaterThanOrEqual(opcode < 0xe8 ? 2 : 1);
          if (wide && swap) {
            expect(instruction.slice(instruction.length - left)).toContain(0x66);
          }
        },
      ),
    );
  });
});
