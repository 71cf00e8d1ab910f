/** The protection of a guest of `tsvmm run`, once it is asked for: what it is made of, and how a standby is told of the guest. */
import type { Outputs } from '../ft/shell/outputs.ts';
import type { Machine } from '../machine/machine.ts';
import { checkForReplication, type OpenDevices } from './device-options.ts';
import { bootImages, describeMachine } from './ft-description.ts';
import { randomName } from './ft-options.ts';
import type { ProtectionSettings } from './ft-settings.ts';
import { type GuestDescription, Protection } from './protect.ts';
import {
  type Bases,
  type DiskHost,
  describeStorage,
  type RecordedDisks,
  recordDisks,
} from './replicated-disks.ts';
import type { RunOptions } from './run-options.ts';

/** The disks of a guest that has some, as they were opened at the start. */
export interface RunDisks {
  readonly bases: Bases;
  readonly recorded: RecordedDisks;
}

/** A guest of `tsvmm run`. */
export interface RunGuest extends DiskHost {
  readonly machine: Machine;
  readonly options: RunOptions;
  readonly devices: OpenDevices;
  /** Undefined for a guest without disks. */
  readonly disks: RunDisks | undefined;
  readonly outputs: Outputs;
  /** Gets a function for each thing that has to be closed at the end. */
  readonly closers: (() => unknown)[];
}

/** Makes the protection of a guest; it does nothing yet. */
export function protectRun(guest: RunGuest, settings: ProtectionSettings): Protection {
  const { machine, outputs, io, closers, options, devices } = guest;
  const { disks } =
    guest.disks?.recorded ?? recordDisks(guest, machine, options.disks, devices, closers);
  return new Protection(
    {
      machine,
      outputs,
      disks,
      io,
      describe: describer(guest),
      atEnd: (close) => closers.push(close),
    },
    settings,
  );
}

/** Describes the guest for a standby, when that is asked for. */
function describer({ host, options, devices, disks }: RunGuest): () => GuestDescription {
  let made: GuestDescription | undefined;
  return () => {
    if (made !== undefined) return made;
    checkForReplication(options.disks, options.nets);
    // Measured once, by a throw-away VM: not inside a pause.
    void host.probe().lazySkip;
    const { machine } = options;
    const description = describeMachine(
      randomName(16),
      machine,
      1,
      devices.disks,
      devices.nets,
      describeStorage(options.disks, disks?.bases ?? new Map()),
    );
    made = {
      description,
      images: bootImages(machine.boot).map((image) => image.bytes),
    };
    return made;
  };
}
