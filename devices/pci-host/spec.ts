/**
 * Registers of the host bridge. "82441FX" is Intel's data sheet 290549, 440FX PCIset 82441FX PMC.
 */

export const HOST_BRIDGE_ID = { vendor: 0x8086, device: 0x1237, revision: 0x02 } as const;

/** Class 06, subclass 00: host bridge. */
export const HOST_BRIDGE_CLASS = 0x060000;

/** Programmable attribute map, PAM0 to PAM6 (82441FX, 3.2.16). */
export const PAM_FIRST = 0x59;
export const PAM_LAST = 0x5f;

/** Attribute bits of one nibble; cacheability (bit 2) is kept and means nothing here. */
export const PAM_READ = 1;
export const PAM_WRITE = 2;
/** Bits of a PAM register that a guest can write. */
export const PAM_MASK = 0x77;

/** System management RAM control (82441FX, 3.2.20): storage only, there is no SMRAM. */
export const SMRAM = 0x72;
