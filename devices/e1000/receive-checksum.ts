/**
 * Receive checksum verification of the 82540EM (8254x SDM, 3.2.9): IPv4 header, TCP and UDP over IPv4, and over IPv6
 * without extension headers where RXCSUM.IPV6OFL is set. Fragments and anything cut short are left to software.
 */
import { pseudoHeaderSum, sum16 } from './checksum.ts';
import { ETH, RXCSUM, RXD, RXE } from './spec.ts';

const ETHERTYPE = { ipv4: 0x0800, ipv6: 0x86dd } as const;
const PROTOCOL = { tcp: 6, udp: 17 } as const;

/** What to report when checksums were not looked at. */
const IGNORE: number = RXD.ixsm;

function l4Status(
  view: DataView,
  l4: number,
  length: number,
  protocol: number,
  addresses: number,
  ipBytes: 4 | 16,
  trusted: boolean,
): number {
  if (protocol === PROTOCOL.tcp ? length < 20 : protocol !== PROTOCOL.udp || length < 8) return 0;
  // A UDP checksum of zero means that there is none.
  if (protocol === PROTOCOL.udp && view.getUint16(l4 + 6) === 0) return 0;
  if (trusted) return RXD.tcpcs;
  const pseudo = pseudoHeaderSum(view, addresses, ipBytes, protocol, length);
  const sum = sum16(view, l4, length) + pseudo;
  const good = (sum & 0xffff) + (sum >>> 16) === 0xffff;
  return good ? RXD.tcpcs : RXD.tcpcs | (RXE.tcpe << 8);
}

/**
 * Status bits (low byte) and error bits (next byte) about the checksums of the frame at `at`.
 * @param tagged whether a VLAN tag still stands in the frame
 * @param trusted whether the network vouches for the TCP or UDP checksum
 */
export function verifyChecksums(
  view: DataView,
  at: number,
  length: number,
  rxcsum: number,
  tagged: boolean,
  trusted: boolean,
): number {
  if ((rxcsum & (RXCSUM.ipofl | RXCSUM.tuofl)) === 0) return IGNORE;
  const ip = at + ETH.header + (tagged ? ETH.vlanTag : 0);
  const left = at + length - ip;
  if (left < 20) return IGNORE;
  const ethertype = view.getUint16(ip - 2);
  if (ethertype === ETHERTYPE.ipv4) {
    const header = (view.getUint8(ip) & 0xf) * 4;
    const total = view.getUint16(ip + 2);
    if (view.getUint8(ip) >>> 4 !== 4 || header < 20 || total < header || total > left) {
      return IGNORE;
    }
    let result = 0;
    if ((rxcsum & RXCSUM.ipofl) !== 0) {
      result = RXD.ipcs;
      if (sum16(view, ip, header) !== 0xffff) result |= RXE.ipe << 8;
    }
    const fragment = (view.getUint16(ip + 6) & 0x3fff) !== 0;
    if (!fragment && (rxcsum & RXCSUM.tuofl) !== 0) {
      const protocol = view.getUint8(ip + 9);
      result |= l4Status(view, ip + header, total - header, protocol, ip + 12, 4, trusted);
    }
    return result;
  }
  const v6 = RXCSUM.tuofl | RXCSUM.ipv6ofl;
  if (ethertype === ETHERTYPE.ipv6 && (rxcsum & v6) === v6 && left >= 40) {
    const payload = view.getUint16(ip + 4);
    if (payload > left - 40) return IGNORE;
    const result = l4Status(view, ip + 40, payload, view.getUint8(ip + 6), ip + 8, 16, trusted);
    return result === 0 ? IGNORE : result;
  }
  return IGNORE;
}
