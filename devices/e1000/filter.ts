/**
 * Which received frames the 82540EM takes (8254x SDM, 3.2.1, 9.3, 13.5): exact addresses, the multicast hash, the
 * promiscuous modes, broadcast, and the VLAN filter. Pure functions over the register words.
 */
import { RAH, RCTL, RECEIVE_ADDRESSES, REG } from './spec.ts';

/** Why a frame is taken. */
export const MATCH = { none: 0, exact: 1, inexact: 2 } as const;

/** Bits to drop from the upper 16 bits of the address, by RCTL.MO (13.4.22). */
const HASH_SHIFT = [4, 3, 2, 0] as const;

/** Whether, and how, the destination address at `at` is accepted: a {@link MATCH}. */
export function matchAddress(words: Uint32Array, view: DataView, at: number): number {
  const rctl = words[REG.rctl >>> 2]!;
  const low = view.getUint32(at, true);
  const high = view.getUint16(at + 4, true);
  const multicast = (low & 1) !== 0;
  if (multicast) {
    if (low === 0xffffffff && high === 0xffff && (rctl & RCTL.bam) !== 0) return MATCH.exact;
    if ((rctl & RCTL.mpe) !== 0) return MATCH.exact;
  } else if ((rctl & RCTL.upe) !== 0) return MATCH.exact;
  for (let i = 0; i < RECEIVE_ADDRESSES; i++) {
    const rah = words[(REG.rah >>> 2) + 2 * i]!;
    // Address select other than "destination" never matches one (13.5.3).
    if ((rah & (RAH.av | RAH.asMask)) >>> 0 !== RAH.av || (rah & 0xffff) !== high) continue;
    if (words[(REG.ral >>> 2) + 2 * i] === low) return MATCH.exact;
  }
  if (!multicast) return MATCH.none;
  const hash = (high >>> HASH_SHIFT[(rctl >>> RCTL.moShift) & 3]!) & 0xfff;
  const bit = words[(REG.mta >>> 2) + (hash >>> 5)]! & (1 << (hash & 31));
  return bit === 0 ? MATCH.none : MATCH.inexact;
}

/** Whether a frame with VLAN tag `tci` passes the VLAN filter (9.3); always where it is off. */
export function passesVlan(words: Uint32Array, tci: number): boolean {
  const rctl = words[REG.rctl >>> 2]!;
  if ((rctl & RCTL.vfe) === 0) return true;
  const cfi = (tci & 0x1000) !== 0;
  if ((rctl & RCTL.cfien) !== 0 && cfi !== ((rctl & RCTL.cfi) !== 0)) return false;
  const vid = tci & 0xfff;
  return (words[(REG.vfta >>> 2) + (vid >>> 5)]! & (1 << (vid & 31))) !== 0;
}
