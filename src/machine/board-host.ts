/** What a board and its devices see of the machine that they are part of. */
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';
import type { KvmVm } from '../kvm/api.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import type { MachineConfig } from './config.ts';
import type { GuestRam } from './guest-ram.ts';
import type { Outcome } from './outcome.ts';

/** Implemented by the machine; exists before the board. */
export interface BoardHost {
  readonly config: MachineConfig;
  readonly vm: KvmVm;
  readonly ram: GuestRam;
  readonly memory: GuestMemory;
  readonly clock: Clock;
  readonly log: Logger;
  /** The guest wants a reset; takes effect before its next access to a device. */
  requestReset(why: string): void;
  /** The guest ended itself. */
  requestEnd(outcome: Outcome): void;
}
