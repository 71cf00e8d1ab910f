/** Small integer helpers that keep 32-bit arithmetic unsigned and 64-bit addresses in Numbers below 2^53. */

/** 2^32. */
export const U32 = 0x1_0000_0000;

/** The mask of an access of `size` bytes (1, 2 or 4). */
export function sizeMask(size: number): number {
  return size === 4 ? 0xffffffff : size === 2 ? 0xffff : 0xff;
}

/** Joins two 32-bit halves; the result is exact below 2^53. */
export function u64(lo: number, hi: number): number {
  return (hi >>> 0) * U32 + (lo >>> 0);
}

/** The low 32 bits of a non-negative integer below 2^53. */
export function lo32(value: number): number {
  return value % U32;
}

/** The bits above the low 32 of a non-negative integer below 2^53. */
export function hi32(value: number): number {
  return Math.floor(value / U32);
}

/** Rounds up to a multiple of `alignment` (any positive integer). */
export function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}

/** Rounds down to a multiple of `alignment`. */
export function alignDown(value: number, alignment: number): number {
  return Math.floor(value / alignment) * alignment;
}

/** Whether `value` is a power of two. */
export function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}

/** `0x…`, for messages. */
export function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
