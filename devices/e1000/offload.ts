/**
 * Transmit offload arithmetic of the 82540EM: what a context descriptor says, and how the header of one TCP segment is
 * made from the prototype header (8254x SDM, 3.3.6, 3.5, 3.6). Pure functions over a frame buffer; transmit.ts calls
 * them. A context is four dwords of {@link OffloadContexts.words}.
 */
import { NET_OFFLOAD } from '../../src/net/backend.ts';
import { fold, insertChecksum } from './checksum.ts';
import { ETH, POPTS, TXD } from './spec.ts';

/** First dword of the context for packets without segmentation. */
export const NORMAL = 0;
/** First dword of the segmentation context. */
export const SEGMENTATION = 4;

/** `gso_type` and flags of virtio_net_hdr (VIRTIO 1.2, 5.1.6). */
export const VNET = { needsCsum: 1, dataValid: 2, gsoNone: 0, gsoTcp4: 1, gsoTcp6: 4 } as const;

const TCP = { finPush: 0x09, cwr: 0x80, minHeader: 20 } as const;
const UDP_HEADER = 8;
const IPV4_HEADER = 20;
const IPV6_HEADER = 40;

/** The two contexts of the chip, as raw descriptor dwords. */
export class OffloadContexts {
  readonly words: Uint32Array<ArrayBuffer> = new Uint32Array(8);

  /** Loads a context descriptor; its TSE bit chooses which context (3.3.6.1). */
  load(d0: number, d1: number, d2: number, d3: number): void {
    const at = (d2 & TXD.tse) !== 0 ? SEGMENTATION : NORMAL;
    this.words[at] = d0;
    this.words[at + 1] = d1;
    this.words[at + 2] = d2;
    this.words[at + 3] = d3;
  }

  /** Becomes equal to `other`. */
  copy(other: OffloadContexts): void {
    for (let i = 0; i < 8; i++) this.words[i] = other.words[i]!;
  }

  ipStart(context: number): number {
    return this.words[context]! & 0xff;
  }
  ipOffset(context: number): number {
    return (this.words[context]! >>> 8) & 0xff;
  }
  ipLast(context: number): number {
    return this.words[context]! >>> 16;
  }
  l4Start(context: number): number {
    return this.words[context + 1]! & 0xff;
  }
  l4Offset(context: number): number {
    return (this.words[context + 1]! >>> 8) & 0xff;
  }
  l4Last(context: number): number {
    return this.words[context + 1]! >>> 16;
  }
  isTcp(context: number): boolean {
    return (this.words[context + 2]! & TXD.tucmdTcp) !== 0;
  }
  isIpv4(context: number): boolean {
    return (this.words[context + 2]! & TXD.tucmdIp) !== 0;
  }
  get payloadLength(): number {
    return this.words[SEGMENTATION + 2]! & TXD.lengthMask;
  }
  get headerLength(): number {
    return (this.words[SEGMENTATION + 3]! >>> 8) & 0xff;
  }
  get mss(): number {
    return this.words[SEGMENTATION + 3]! >>> 16;
  }
}

/** Whether the segmentation context describes headers that lie inside the prototype header, and segments that the chip can hold. */
export function canSegment(contexts: OffloadContexts): boolean {
  const ip = contexts.isIpv4(SEGMENTATION) ? IPV4_HEADER : IPV6_HEADER;
  const l4 = contexts.isTcp(SEGMENTATION) ? TCP.minHeader : UDP_HEADER;
  const header = contexts.headerLength;
  return (
    contexts.mss > 0 &&
    header + contexts.mss <= ETH.maxTransmit &&
    contexts.ipStart(SEGMENTATION) + ip <= header &&
    contexts.l4Start(SEGMENTATION) + l4 <= header
  );
}

/** Lengths in the IP header at `at` for `payload` bytes behind the prototype header. */
function setIpLength(view: DataView, at: number, c: OffloadContexts, payload: number): void {
  const ip = at + c.ipStart(SEGMENTATION);
  const length = c.headerLength - c.ipStart(SEGMENTATION) + payload;
  if (c.isIpv4(SEGMENTATION)) view.setUint16(ip + 2, length);
  else view.setUint16(ip + 4, length - IPV6_HEADER);
}

/** Adds the L4 length to the pseudo-header sum that software left in the checksum field (3.5.7). */
function addL4Length(view: DataView, at: number, c: OffloadContexts, payload: number): void {
  const field = at + c.l4Offset(SEGMENTATION);
  view.setUint16(
    field,
    fold(view.getUint16(field) + c.headerLength - c.l4Start(SEGMENTATION) + payload),
  );
}

/**
 * Turns the prototype header at `at`, already followed by its payload, into that of segment `index` (3.5.7).
 * @param payload bytes of payload of this segment
 * @param popts the packet's {@link POPTS}
 */
export function finishSegment(
  view: DataView,
  at: number,
  c: OffloadContexts,
  index: number,
  payload: number,
  last: boolean,
  popts: number,
): void {
  const length = c.headerLength + payload;
  setIpLength(view, at, c, payload);
  if (c.isIpv4(SEGMENTATION)) {
    const id = at + c.ipStart(SEGMENTATION) + 4;
    view.setUint16(id, view.getUint16(id) + index);
  }
  const l4 = at + c.l4Start(SEGMENTATION);
  const tcp = c.isTcp(SEGMENTATION);
  if (tcp) {
    view.setUint32(l4 + 4, view.getUint32(l4 + 4) + index * c.mss);
    if (!last) view.setUint8(l4 + 13, view.getUint8(l4 + 13) & ~TCP.finPush);
  } else {
    view.setUint16(l4 + 4, length - c.l4Start(SEGMENTATION));
  }
  const ctx = SEGMENTATION;
  if ((popts & POPTS.ixsm) !== 0) {
    insertChecksum(view, at, length, c.ipStart(ctx), c.ipOffset(ctx), c.ipLast(ctx), false);
  }
  if ((popts & POPTS.txsm) !== 0 && c.l4Offset(ctx) + 2 <= length) {
    addL4Length(view, at, c, payload);
    insertChecksum(view, at, length, c.l4Start(ctx), c.l4Offset(ctx), c.l4Last(ctx), !tcp);
  }
}

/**
 * The `gso_type` with which the frame at `at` (prototype header and `payload` bytes) can go to a backend that offers
 * `offloads` as one large frame, or {@link VNET.gsoNone} when the device has to segment it: the backend trusts the
 * headers, so everything that the context claims about them must be true.
 */
export function gsoType(
  view: DataView,
  at: number,
  c: OffloadContexts,
  payload: number,
  popts: number,
  offloads: number,
): number {
  const ctx = SEGMENTATION;
  const ip = c.ipStart(ctx);
  const l4 = c.l4Start(ctx);
  const header = c.headerLength;
  const v4 = c.isIpv4(ctx);
  const wanted = NET_OFFLOAD.csum | (v4 ? NET_OFFLOAD.tso4 : NET_OFFLOAD.tso6);
  if ((offloads & wanted) !== wanted || !c.isTcp(ctx) || payload <= c.mss) return VNET.gsoNone;
  if ((popts & POPTS.txsm) === 0 || c.l4Last(ctx) !== 0 || c.l4Offset(ctx) !== l4 + 16) {
    return VNET.gsoNone;
  }
  const flags = view.getUint8(at + l4 + 13);
  const tcpHeader = (view.getUint8(at + l4 + 12) >>> 4) * 4;
  if ((flags & TCP.cwr) !== 0 || tcpHeader < TCP.minHeader || l4 + tcpHeader !== header) {
    return VNET.gsoNone;
  }
  if (ip < 14 || view.getUint8(at + ip) >>> 4 !== (v4 ? 4 : 6)) return VNET.gsoNone;
  const ethertype = view.getUint16(at + ip - 2);
  if (v4) {
    const ipHeader = (view.getUint8(at + ip) & 0xf) * 4;
    const sums = (popts & POPTS.ixsm) !== 0 && c.ipOffset(ctx) === ip + 10;
    const good =
      sums && ethertype === 0x0800 && ip + ipHeader === l4 && header - ip + payload <= 0xffff;
    return good && view.getUint8(at + ip + 9) === 6 ? VNET.gsoTcp4 : VNET.gsoNone;
  }
  const good = ethertype === 0x86dd && ip + IPV6_HEADER === l4 && header - l4 + payload <= 0xffff;
  return good && view.getUint8(at + ip + 6) === 6 ? VNET.gsoTcp6 : VNET.gsoNone;
}

/** Makes the headers of a frame that goes out whole, for which {@link gsoType} gave a type. */
export function finishLargeFrame(
  view: DataView,
  at: number,
  c: OffloadContexts,
  payload: number,
): void {
  setIpLength(view, at, c, payload);
  addL4Length(view, at, c, payload);
  if (!c.isIpv4(SEGMENTATION)) return;
  const ip = c.ipStart(SEGMENTATION);
  view.setUint16(at + ip + 10, 0);
  insertChecksum(view, at, c.headerLength, ip, ip + 10, c.l4Start(SEGMENTATION) - 1, false);
}
