/**
 * Decodes the OUT family (Intel SDM 2, "OUT" and "OUTS"): E6 and E7 with an immediate port, EE and EF with DX, 6E and
 * 6F as string forms, each with any legacy and REX prefixes. Pure; used to find the instruction of an OUT exit. Knows
 * no other instruction: whatever else the bytes are, the answer is undefined.
 */

/** Default size of the code: CS.L, CS.D. */
export type CodeBits = 16 | 32 | 64;

export interface OutInstruction {
  readonly form: 'immediate' | 'dx' | 'string';
  /** Bytes of the instruction with its prefixes. */
  readonly length: number;
  /** Bytes that one item has. Both where processors and emulators may differ (66 with REX.W). */
  readonly itemBytes: readonly number[];
  /** Port of the immediate forms. */
  readonly port: number | undefined;
  /** String forms: width of RSI and RCX. */
  readonly addressBits: CodeBits;
  /** F2 or F3: RCX counts (string forms). */
  readonly repeat: boolean;
  /** Segment override prefix byte, 0 if none (string forms read DS:rSI). */
  readonly segment: number;
}

/** Longest instruction that processors accept. */
export const INSTRUCTION_BYTES_MAX = 15;

const OPERAND_SIZE = 0x66;
const ADDRESS_SIZE = 0x67;
const SEGMENTS: readonly number[] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];

/**
 * The instruction of the OUT family that starts at bytes[start], or undefined. Bytes behind it are not looked at.
 */
export function decodeOut(
  bytes: Uint8Array,
  start: number,
  codeBits: CodeBits,
): OutInstruction | undefined {
  let at = start;
  let operandPrefix = false;
  let addressPrefix = false;
  let repeat = false;
  let segment = 0;
  let rex = 0;
  for (; ; at++) {
    if (at >= bytes.length || at - start >= INSTRUCTION_BYTES_MAX) return undefined;
    const byte = bytes[at]!;
    if (codeBits === 64 && byte >= 0x40 && byte <= 0x4f) {
      rex = byte;
      continue;
    }
    if (byte === OPERAND_SIZE) operandPrefix = true;
    else if (byte === ADDRESS_SIZE) addressPrefix = true;
    else if (byte === 0xf2 || byte === 0xf3) repeat = true;
    else if (SEGMENTS.includes(byte)) segment = byte;
    else break;
    // A REX prefix counts only right before the opcode.
    rex = 0;
  }
  const opcode = bytes[at]!;
  let form: OutInstruction['form'];
  let port: number | undefined;
  let length = at - start + 1;
  if (opcode === 0xe6 || opcode === 0xe7) {
    if (at + 1 >= bytes.length) return undefined;
    form = 'immediate';
    port = bytes[at + 1]!;
    length++;
  } else if (opcode === 0xee || opcode === 0xef) {
    form = 'dx';
  } else if (opcode === 0x6e || opcode === 0x6f) {
    form = 'string';
  } else {
    return undefined;
  }
  if (length > INSTRUCTION_BYTES_MAX) return undefined;
  return {
    form,
    length,
    itemBytes:
      (opcode & 1) === 0
        ? [1]
        : wordSizes(codeBits, operandPrefix, codeBits === 64 && (rex & 8) !== 0),
    port,
    addressBits: addressPrefix ? otherAddressBits(codeBits) : codeBits,
    repeat,
    segment: codeBits === 64 && segment !== 0x64 && segment !== 0x65 ? 0 : segment,
  };
}

function wordSizes(codeBits: CodeBits, operandPrefix: boolean, rexW: boolean): readonly number[] {
  if (rexW) return operandPrefix ? [4, 2] : [4];
  const natural = codeBits === 16 ? 2 : 4;
  return [operandPrefix ? 6 - natural : natural];
}

function otherAddressBits(codeBits: CodeBits): CodeBits {
  return codeBits === 32 ? 16 : 32;
}
