import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { FrameBatch, VNET_HEADER_BYTES } from '../../net/backend.ts';
import { createLoop } from '../../net/loop.ts';
import {
  LOGGED,
  LOGGED_HEADER_BYTES,
  TAP_LOG_HEADER_BYTES,
  writeLoggedHeader,
  writeTapLogHeader,
} from '../wire/tap-log.ts';
import { announce, announcementOf, rarpFrame } from './announce.ts';
import { ADDRESSES_MAX, type GuestAddress, GuestAddresses } from './guest-addresses.ts';

const MAC = '525400123456';
const LINK_LOCAL = 'fe80000000000000505400fffe123456';

const bytes = (text: string): Uint8Array =>
  Uint8Array.from(Buffer.from(text.replace(/ /g, ''), 'hex'));
const hex = (data: Uint8Array): string => Buffer.from(data).toString('hex');
const ip4 = (text: string): Uint8Array => Uint8Array.from(text.split('.').map(Number));

function address(ip: Uint8Array, more: Partial<GuestAddress> = {}): GuestAddress {
  return { mac: bytes(MAC), vlan: undefined, ip, router: false, ...more };
}

/** An ARP packet as a guest sends it. */
function arp(
  operation: number,
  sender: string,
  options: { mac?: string; sha?: string } = {},
): string {
  const { mac = MAC, sha = mac } = options;
  const body = `0001 0800 06 04 000${operation} ${sha} ${hex(ip4(sender))} 000000000000 0a000201`;
  return `ffffffffffff ${mac} 0806 ${body}`;
}

/** A neighbour (136) or router (134) advertisement as a guest sends it. */
function advertisement(
  type: number,
  flags: string,
  target: string,
  options: { hops?: string; named?: string } = {},
): string {
  const { hops = 'ff', named = MAC } = options;
  const ip = `60000000 0020 3a ${hops} ${LINK_LOCAL} ff020000000000000000000000000001`;
  const icmp = `${type.toString(16)} 00 0000 ${flags}000000 ${target} 0201 ${named}`;
  return `333300000001 ${MAC} 86dd ${ip} ${icmp}`;
}

function learnt(...frames: string[]): string[] {
  const known = new GuestAddresses();
  for (const frame of frames) {
    const data = bytes(frame);
    known.learn(3, data, 0, data.length);
  }
  return known
    .of(3)
    .map(({ mac, vlan, ip, router }) => [hex(mac), vlan, hex(ip), router].join(' '));
}

describe('frames that announce', () => {
  it('are a RARP request', () => {
    expect(hex(rarpFrame(bytes(MAC)))).toBe(
      `ffffffffffff${MAC}80350001080006040003${MAC}00000000${MAC}00000000${'00'.repeat(18)}`,
    );
  });

  it('are an ARP announcement, with the tag of its VLAN', () => {
    const body = `0001080006040001${MAC}0a00020f0000000000000a00020f${'00'.repeat(18)}`;
    const known = address(ip4('10.0.2.15'));
    expect(hex(announcementOf(known))).toBe(`ffffffffffff${MAC}0806${body}`);
    expect(hex(announcementOf({ ...known, vlan: 0x6005 }))).toBe(
      `ffffffffffff${MAC}810060050806${body}`,
    );
  });

  it('are an unsolicited neighbour advertisement with its checksum', () => {
    const known = address(bytes(LINK_LOCAL));
    const whole = `33330000000152540012345686dd6000000000203aff${LINK_LOCAL}ff0200000000000000000000000000018800cb6820000000${LINK_LOCAL}0201${MAC}`;
    expect(hex(announcementOf(known))).toBe(whole);
    const router = announcementOf({ ...known, router: true });
    expect([router[58], hex(router.subarray(56, 58))]).toEqual([0xa0, '4b68']);
  });
});

describe('what a guest answers for', () => {
  it('is learnt from its ARP', () => {
    const frames = [arp(2, '10.0.2.15'), arp(1, '10.0.2.16'), arp(1, '10.0.2.15')];
    expect(learnt(...frames)).toEqual([`${MAC}  0a000210 false`, `${MAC}  0a00020f false`]);
    const [to, rest] = [arp(2, '10.0.2.15').slice(0, 25), arp(2, '10.0.2.15').slice(26)];
    expect(learnt(`${to} 8100 0005 ${rest}`)).toEqual([`${MAC} 5 0a00020f false`]);
  });

  it('is not learnt from probes, for others, from groups, or from pieces', () => {
    expect(
      learnt(
        arp(1, '0.0.0.0'),
        arp(2, '10.0.2.9', { sha: '525400999999' }),
        arp(2, '10.0.2.9', { mac: '010000000009' }),
        arp(2, '224.0.0.1'),
        arp(2, '10.0.2.15').slice(0, -3),
      ),
    ).toEqual([]);
  });

  it('is learnt from packets that it made, not from those that it forwards', () => {
    const packet = (ttl: number, source: string, more = ''): string =>
      `02000000000a ${MAC} ${more} 0800 45000014 00000000 ${ttl.toString(16).padStart(2, '0')}11 0000 ${hex(ip4(source))} 0a000201`;
    expect(
      learnt(
        packet(64, '10.0.2.15'),
        packet(64, '10.0.2.15'),
        packet(63, '10.0.7.1'),
        packet(128, '10.0.2.17'),
        packet(127, '10.0.7.2'),
        packet(64, '0.0.0.0'),
        packet(64, '127.0.0.1'),
        packet(255, '224.0.0.251'),
        packet(64, '10.0.3.15', '8100 0005'),
        packet(64, '10.0.2.18').slice(0, -4),
      ),
    ).toEqual([`${MAC}  0a00020f false`, `${MAC}  0a000211 false`, `${MAC} 5 0a00030f false`]);
    expect(learnt(packet(255, '224.0.0.251'))).toEqual([]);
  });

  it('is learnt from its neighbour and router advertisements, with the flag that it set', () => {
    const global = '20010db8000000000000000000000007';
    expect(
      learnt(
        advertisement(136, '60', global),
        advertisement(136, 'e0', LINK_LOCAL),
        advertisement(136, '60', '20010db8000000000000000000000008', { named: '525400999999' }),
        advertisement(136, '60', '20010db8000000000000000000000009', { hops: '40' }),
        advertisement(136, '60', 'ff020000000000000000000000000009'),
        advertisement(135, '00', global),
      ),
    ).toEqual([`${MAC}  ${global} false`, `${MAC}  ${LINK_LOCAL} true`]);
    expect(learnt(advertisement(134, '00', global))).toEqual([`${MAC}  ${LINK_LOCAL} true`]);
  });

  it('is bounded: who was not heard of for longest makes room', () => {
    const frames = Array.from({ length: ADDRESSES_MAX + 2 }, (_, i) => arp(2, `10.0.2.${i + 1}`));
    const known = learnt(...frames.slice(0, 2), ...frames.slice(2), frames[2]!);
    expect(known).toHaveLength(ADDRESSES_MAX);
    expect(known[0]).toContain('0a000204');
    expect(known.at(-1)).toContain('0a000203');
  });

  it('is found in the logs of the tap', () => {
    const frame = bytes(arp(2, '10.0.2.15'));
    const length = VNET_HEADER_BYTES + frame.length;
    const log = new Uint8Array(TAP_LOG_HEADER_BYTES + 2 * LOGGED_HEADER_BYTES + 3 + length);
    writeTapLogHeader(log, 0, 0, 1, 2, 0);
    let at = writeLoggedHeader(log, TAP_LOG_HEADER_BYTES, LOGGED.console, 0, 3);
    at = writeLoggedHeader(log, at + 3, LOGGED.frame, 1, length);
    log.set(frame, at + VNET_HEADER_BYTES);
    const known = new GuestAddresses();
    known.learnLog(log);
    expect(known.of(1).map(({ ip }) => hex(ip))).toEqual(['0a00020f']);
    expect(known.of(0)).toEqual([]);
  });

  it('survives any frame', () => {
    const known = new GuestAddresses();
    const frame = bytes(advertisement(136, '60', LINK_LOCAL));
    for (let length = 0; length <= frame.length; length++) known.learn(0, frame, 0, length);
    expect(known.of(0)).toHaveLength(1);
  });
});

describe('an announcement', () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  function rig(capable: boolean) {
    const [card, other] = createLoop();
    let asked = 0;
    const end = announce({
      backend: card,
      mac: bytes(MAC),
      addresses: [address(ip4('10.0.2.15')), address(bytes(LINK_LOCAL))],
      askGuest: () => {
        asked++;
        return capable;
      },
    });
    const seen = (): string[] => {
      const batch = new FrameBatch();
      other.receive(batch, 64);
      return Array.from({ length: batch.count }, (_, i) => hex(batch.frame(i).subarray(12, 14)));
    };
    return { seen, end, asked: () => asked };
  }

  it('is repeated with growing gaps, for a guest that cannot do it itself', () => {
    const { seen, asked } = rig(false);
    expect(seen()).toEqual(['8035', '0806', '86dd']);
    const rounds = [50, 150, 300, 500, 1000].map((ms) => {
      vi.advanceTimersByTime(ms);
      return seen().length;
    });
    expect(rounds).toEqual([3, 3, 3, 3, 3]);
    vi.advanceTimersByTime(10_000);
    expect([seen(), asked()]).toEqual([[], 6]);
  });

  it('is left to a guest that can, but for the RARP', () => {
    const { seen, asked } = rig(true);
    vi.advanceTimersByTime(200);
    expect([seen(), asked()]).toEqual([['8035', '8035', '8035'], 3]);
  });

  it('ends when told', () => {
    const { seen, end } = rig(false);
    seen();
    end();
    vi.advanceTimersByTime(10_000);
    expect(seen()).toEqual([]);
  });
});
