/**
 * Lazy skip: the registers of a vCPU whose OUT exit is open, as they were before the OUT, so that whoever continues
 * from them executes it (docs/replication.md, "Lazy skip"). Kernels differ in where RIP is at the exit: on the
 * instruction (`late`: hardware fast path) or past it (`early`: instruction emulator). String output always goes
 * through the emulator: a repeated one leaves RIP in place and has moved RCX and RSI, a single one has moved RIP and RSI.
 *
 * Works from evidence, never from an assumed length: an instruction that would make exactly this output (same port,
 * item size and data) must end or start at RIP. The kernel's probed habit only decides between two that fit. Pure;
 * the caller fetches code and data.
 *
 * Limit: where an OUT is followed by a repeated string output of the same byte to the same port, both fit; the string
 * form is taken. A guest that does this and is restored right there sends one byte too few or too many times.
 */
import type { SkipPoint } from './api.ts';
import { REG } from './api.ts';
import {
  type CodeBits,
  decodeOut,
  INSTRUCTION_BYTES_MAX,
  type OutInstruction,
} from './out-decoder.ts';

/** The exit: `count` items of `itemBytes` went to `port`; `data` holds them. */
export interface OpenOut {
  readonly port: number;
  readonly itemBytes: number;
  readonly count: number;
  readonly data: Uint8Array;
}

export interface RewindInput {
  readonly out: OpenOut;
  /** As KVM_GET_REGS gives them during the exit (order: REG). Not changed. */
  readonly regs: BigUint64Array;
  readonly codeBits: CodeBits;
  /** Up to 15 bytes that end right before RIP. */
  readonly before: Uint8Array;
  /** Up to 15 bytes from RIP on. */
  readonly after: Uint8Array;
  /** What this kernel does with a plain OUT in this mode. */
  readonly skip: SkipPoint;
  /**
   * Guest memory that a string output reads: `bytes` bytes at `offset` in the segment of this override prefix
   * (0: DS); undefined where it cannot be read.
   */
  readString(segment: number, offset: bigint, bytes: number): Uint8Array | undefined;
}

/** What was undone, for logs and tests. */
export type RewindKind = 'on-instruction' | 'skipped' | 'string' | 'repeated-string';

export interface Rewound {
  readonly kind: RewindKind;
  /** A copy with the OUT not yet executed. */
  readonly regs: BigUint64Array;
}

const DIRECTION_FLAG = 1n << 10n;

/** The registers before the OUT, or undefined when no instruction at RIP explains the exit. */
export function rewindOut(input: RewindInput): Rewound | undefined {
  const onIt = (): Rewound | undefined => plainAtRip(input);
  const past = (): Rewound | undefined => plainBeforeRip(input);
  const order =
    input.skip === 'late'
      ? [onIt, () => repeatedString(input), past, () => singleString(input)]
      : [() => repeatedString(input), past, () => singleString(input), onIt];
  for (const attempt of order) {
    const found = attempt();
    if (found !== undefined) return found;
  }
  return undefined;
}

function plainAtRip(input: RewindInput): Rewound | undefined {
  const found = decodeOut(input.after, 0, input.codeBits);
  if (found === undefined || !fitsPlain(found, input)) return undefined;
  return { kind: 'on-instruction', regs: input.regs.slice() };
}

function plainBeforeRip(input: RewindInput): Rewound | undefined {
  const found = shortestSuffix(input, (instruction) => fitsPlain(instruction, input));
  if (found === undefined) return undefined;
  const regs = input.regs.slice();
  regs[REG.rip] = regs[REG.rip]! - BigInt(found.length);
  return { kind: 'skipped', regs };
}

function singleString(input: RewindInput): Rewound | undefined {
  if (input.out.count !== 1) return undefined;
  const regs = input.regs.slice();
  const found = shortestSuffix(input, (instruction) => {
    if (instruction.form !== 'string' || instruction.repeat || !fitsPort(instruction, input)) {
      return false;
    }
    regs[REG.rsi] = movedBack(input, instruction.addressBits);
    return hasString(instruction, input, regs[REG.rsi]!);
  });
  if (found === undefined) return undefined;
  regs[REG.rip] = regs[REG.rip]! - BigInt(found.length);
  return { kind: 'string', regs };
}

function repeatedString(input: RewindInput): Rewound | undefined {
  const found = decodeOut(input.after, 0, input.codeBits);
  if (found?.form !== 'string' || !found.repeat || !fitsPort(found, input)) return undefined;
  const regs = input.regs.slice();
  regs[REG.rsi] = movedBack(input, found.addressBits);
  regs[REG.rcx] = added(input.regs[REG.rcx]!, BigInt(input.out.count), found.addressBits);
  if (!hasString(found, input, regs[REG.rsi]!)) return undefined;
  return { kind: 'repeated-string', regs };
}

function shortestSuffix(
  input: RewindInput,
  fits: (instruction: OutInstruction) => boolean,
): OutInstruction | undefined {
  const { before } = input;
  const most = Math.min(before.length, INSTRUCTION_BYTES_MAX);
  for (let length = 1; length <= most; length++) {
    const found = decodeOut(before, before.length - length, input.codeBits);
    if (found?.length === length && fits(found)) return found;
  }
  return undefined;
}

function fitsPort(instruction: OutInstruction, { out, regs }: RewindInput): boolean {
  const port = instruction.port ?? Number(regs[REG.rdx]! & 0xffffn);
  return port === out.port && instruction.itemBytes.includes(out.itemBytes);
}

function fitsPlain(instruction: OutInstruction, input: RewindInput): boolean {
  const { out, regs } = input;
  if (instruction.form === 'string' || out.count !== 1 || !fitsPort(instruction, input))
    return false;
  let value = regs[REG.rax]!;
  for (let i = 0; i < out.itemBytes; i++) {
    if (Number(value & 0xffn) !== out.data[i]) return false;
    value >>= 8n;
  }
  return true;
}

/** RSI before `count` items were read: against the direction of the string. */
function movedBack({ out, regs }: RewindInput, addressBits: CodeBits): bigint {
  const bytes = BigInt(out.itemBytes * out.count);
  const up = (regs[REG.rflags]! & DIRECTION_FLAG) === 0n;
  return added(regs[REG.rsi]!, up ? -bytes : bytes, addressBits);
}

/** `register + delta` as an instruction of this address size writes it back. */
function added(register: bigint, delta: bigint, addressBits: CodeBits): bigint {
  if (addressBits === 64) return BigInt.asUintN(64, register + delta);
  if (addressBits === 32) return BigInt.asUintN(32, register + delta);
  return (register & ~0xffffn) | BigInt.asUintN(16, register + delta);
}

/** Whether the items read from `first` on are those of the exit. */
function hasString(instruction: OutInstruction, input: RewindInput, first: bigint): boolean {
  const { out } = input;
  const down = (input.regs[REG.rflags]! & DIRECTION_FLAG) !== 0n;
  const mask = (1n << BigInt(instruction.addressBits)) - 1n;
  for (let item = 0; item < out.count; item++) {
    const step = BigInt(item * out.itemBytes);
    const offset = (first + (down ? -step : step)) & mask;
    const bytes = input.readString(instruction.segment, offset, out.itemBytes);
    // Memory that cannot be read proves nothing either way.
    if (bytes === undefined) return true;
    for (let i = 0; i < out.itemBytes; i++) {
      if (bytes[i] !== out.data[item * out.itemBytes + i]) return false;
    }
  }
  return true;
}
