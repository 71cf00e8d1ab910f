/** Pieces of opening and closing that `run` and `standby` share. */
import { messageOf } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import type { ConsoleBackend } from '../console/backend.ts';
import { Outputs } from '../ft/shell/outputs.ts';
import type { DiskPart, NetPart } from '../machine/pci-devices.ts';
import type { OpenDevices } from './device-options.ts';

/** Backends of a machine with the event-tap in front of them. */
export interface TappedParts {
  readonly serial: readonly ConsoleBackend[];
  readonly disks: readonly DiskPart[];
  readonly nets: readonly NetPart[];
}

/** Puts an event-tap in front of everything that leaves a guest. Both hosts must list the same things in the same order. */
export function tapOutputs(
  consoles: readonly ConsoleBackend[],
  devices: OpenDevices,
  vcpus: number,
): { readonly outputs: Outputs; readonly parts: TappedParts } {
  const { disks, nets } = devices;
  const outputs = new Outputs(
    {
      consoles,
      nets: nets.map((net) => net.backend),
      disks: disks.map((disk) => disk.backend),
    },
    vcpus,
  );
  return {
    outputs,
    parts: {
      serial: outputs.consoles,
      disks: disks.map((disk, i) => ({ ...disk, backend: outputs.disks[i]! })),
      nets: nets.map((net, i) => ({ ...net, backend: outputs.nets[i]! })),
    },
  };
}

/** Closes everything, last opened first; a failure is logged and the rest is closed all the same. */
export async function closeAll(closers: readonly (() => unknown)[], log: Logger): Promise<void> {
  for (const close of [...closers].reverse()) {
    try {
      await close();
    } catch (error) {
      log.warn(`closing failed: ${messageOf(error)}`);
    }
  }
}
