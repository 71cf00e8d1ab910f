/** The saved state of the firmware configuration device; its items are configuration and not part of it. */
import { u16, u32 } from '../../src/snapshot/codec.ts';
import { schema } from '../../src/snapshot/schema.ts';

export interface FwCfgState {
  /** The selected key. */
  readonly key: number;
  /** The next byte of its item. */
  readonly offset: number;
  /** The high half of a DMA address whose low half has not been written. */
  readonly dmaHigh: number;
}

export const fwCfgSchema = schema<FwCfgState>('fw-cfg', 1, { key: u16, offset: u32, dmaHigh: u32 });
