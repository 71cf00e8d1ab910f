/** One's complement sums over frames (RFC 1071), as the checksum engines of the 82540EM take them. */

/**
 * The 16-bit one's complement sum of `length` bytes at `at`, as big-endian words; an odd last byte counts as the high
 * half. Not inverted.
 */
export function sum16(view: DataView, at: number, length: number): number {
  const wordsEnd = at + length - (length & 3);
  // Little-endian and swapped at the end: the sum does not care. Both halves stay below 2^31 up to 128 KiB.
  let low = 0;
  let high = 0;
  let i = at;
  for (; i < wordsEnd; i += 4) {
    const word = view.getInt32(i, true);
    low = (low + (word & 0xffff)) | 0;
    high = (high + (word >>> 16)) | 0;
  }
  if ((length & 2) !== 0) {
    low += view.getUint16(i, true);
    i += 2;
  }
  if ((length & 1) !== 0) low += view.getUint8(i);
  const sum = fold(low + high);
  return ((sum & 0xff) << 8) | (sum >>> 8);
}

/** Reduces a sum below 2^48 to 16 bits with end-around carry. */
export function fold(sum: number): number {
  const high = Math.floor(sum / 0x1_0000_0000);
  const low = sum >>> 0;
  let folded = (high & 0xffff) + (low >>> 16) + (low & 0xffff);
  folded = (folded & 0xffff) + (folded >>> 16);
  return (folded & 0xffff) + (folded >>> 16);
}

/**
 * Puts the checksum of frame bytes [start, end) at `offset` (all relative to the frame at `at`, `length` bytes long);
 * what stands there already is part of the sum, as with a pseudo-header sum that software left (8254x SDM, 3.6).
 * @param last index of the last byte to sum, or 0 for the end of the frame
 * @param udp whether a result of 0 is sent as 0xFFFF (RFC 768)
 * @returns false, and nothing changed, where a position lies outside of the frame
 */
export function insertChecksum(
  view: DataView,
  at: number,
  length: number,
  start: number,
  offset: number,
  last: number,
  udp: boolean,
): boolean {
  const end = last === 0 || last >= length ? length : last + 1;
  if (start >= end || offset + 2 > length) return false;
  const sum = ~sum16(view, at + start, end - start) & 0xffff;
  view.setUint16(at + offset, sum === 0 && udp ? 0xffff : sum);
  return true;
}

/** The sum of an IPv4 (`ipBytes` 4) or IPv6 (16) pseudo-header whose addresses start at `addresses` (RFC 793, RFC 8200 8.1). */
export function pseudoHeaderSum(
  view: DataView,
  addresses: number,
  ipBytes: 4 | 16,
  protocol: number,
  l4Length: number,
): number {
  return fold(sum16(view, addresses, 2 * ipBytes) + protocol + l4Length);
}
