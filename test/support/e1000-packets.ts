/** Packets for tests of network offloads, built and summed by the plain reading of the RFCs, one 16-bit word at a time. */

/** The Internet checksum of `bytes` (RFC 1071). */
export function internetChecksum(bytes: readonly number[]): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += bytes[i]! * 256 + (bytes[i + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return 0xffff - sum;
}

/** Big-endian bytes of a 16-bit value. */
export function be16(value: number): number[] {
  return [(value >>> 8) & 0xff, value & 0xff];
}

/** Big-endian bytes of a 32-bit value. */
export function be32(value: number): number[] {
  return [...be16(value >>> 16), ...be16(value & 0xffff)];
}

/** What a TCP or UDP packet is made of; the rest is fixed. */
export interface PacketOptions {
  readonly version: 4 | 6;
  readonly protocol: 'tcp' | 'udp';
  readonly payload: readonly number[];
  readonly id?: number;
  readonly seq?: number;
  /** TCP flags. Default ACK. */
  readonly flags?: number;
  /** 802.1Q tag to carry. */
  readonly vlan?: number;
  /** Bytes of TCP options, a multiple of 4. Default 12. */
  readonly tcpOptions?: number;
  readonly to?: readonly number[];
  /**
   * What a driver hands to a card that finishes it: `tso` leaves lengths and IP checksum 0 and a pseudo-header sum
   * without length in the L4 checksum, `csum` a pseudo-header sum with length. Default: complete.
   */
  readonly prepare?: 'tso' | 'csum';
}

const ADDRESSES4 = [10, 0, 2, 15, 192, 168, 77, 1];
const ADDRESSES6 = Array.from({ length: 32 }, (_, i) => (i * 37 + 0xfd) & 0xff);

/** A whole Ethernet frame. */
export function packet(options: PacketOptions): Uint8Array {
  const { version, protocol, payload, prepare } = options;
  const tcp = protocol === 'tcp';
  const number = tcp ? 6 : 17;
  const tcpOptions = options.tcpOptions ?? 12;
  const l4Length = (tcp ? 20 + tcpOptions : 8) + payload.length;
  const addresses = version === 4 ? ADDRESSES4 : ADDRESSES6;
  const header = tcp
    ? [
        ...be16(40000),
        ...be16(5201),
        ...be32(options.seq ?? 1000),
        ...be32(77),
        ((20 + tcpOptions) / 4) << 4,
        options.flags ?? 0x10,
        ...be16(502),
        ...be16(0),
        ...be16(0),
        ...new Array<number>(tcpOptions).fill(1),
      ]
    : [...be16(40000), ...be16(53), ...be16(prepare === 'tso' ? 0 : l4Length), ...be16(0)];
  const pseudo = [...addresses, ...be32(prepare === 'tso' ? 0 : l4Length), ...be32(number)];
  let sum = internetChecksum(prepare === undefined ? [...pseudo, ...header, ...payload] : pseudo);
  if (prepare !== undefined) sum = 0xffff - sum;
  else if (!tcp && sum === 0) sum = 0xffff;
  header.splice(tcp ? 16 : 6, 2, ...be16(sum));
  const tag = options.vlan === undefined ? [] : [0x81, 0x00, ...be16(options.vlan)];
  const to = options.to ?? [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
  const ethernet = [...to, 2, 0, 0, 0, 0, 1, ...tag, ...(version === 4 ? [8, 0] : [0x86, 0xdd])];
  const l3 = ipHeader(options, addresses, number, l4Length);
  return Uint8Array.from([...ethernet, ...l3, ...header, ...payload]);
}

function ipHeader(
  options: PacketOptions,
  addresses: readonly number[],
  protocol: number,
  l4Length: number,
): number[] {
  const tso = options.prepare === 'tso';
  if (options.version === 6) {
    return [0x60, 0, 0, 0, ...be16(tso ? 0 : l4Length), protocol, 64, ...addresses];
  }
  const total = tso ? 0 : 20 + l4Length;
  const header = [0x45, 0, ...be16(total), ...be16(options.id ?? 0), 0x40, 0, 64, protocol, 0, 0];
  const sum = tso ? 0 : internetChecksum([...header, ...addresses]);
  return [...header.slice(0, 10), ...be16(sum), ...addresses];
}

/** `length` bytes that are no constant. */
export function payload(length: number, seed = 1): number[] {
  return Array.from({ length }, (_, i) => (i * 31 + seed + (i >>> 8)) & 0xff);
}
