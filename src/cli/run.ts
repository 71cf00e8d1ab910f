/**
 * `tsvmm run`: makes the machine that the options describe, runs it, and ends with the status that the guest's end
 * deserves: 0 for power-off, the guest's code for a debug exit, 1 for an error.
 */
import { openConsole } from '../console/open.ts';
import type { KvmHost } from '../kvm/api.ts';
import { openKvmHost } from '../kvm/host.ts';
import { loadNativeIo } from '../kvm/native-io.ts';
import { Machine } from '../machine/machine.ts';
import type { Outcome } from '../machine/outcome.ts';
import { preciseTime } from '../machine/precise-time.ts';
import { openSavedFile } from '../machine/saved-file.ts';
import { ControlServer, controlPath } from '../monitor/control-server.ts';
import { checkForReplication, type OpenDevices, openDevices } from './device-options.ts';
import { bootImages, describeMachine } from './ft-description.ts';
import { openArbiter, randomName } from './ft-options.ts';
import { controlHandler, handleSignals } from './guest-commands.ts';
import { closeAll, tapOutputs } from './open-parts.ts';
import { type GuestDescription, Protection } from './protect.ts';
import {
  adoptImages,
  type Bases,
  describeStorage,
  readBases,
  recordDisks,
} from './replicated-disks.ts';
import { openLog } from './report.ts';
import { parseRunOptions, type RunOptions } from './run-options.ts';

/** The exit status that an outcome deserves. */
export function statusOf(outcome: Outcome): number {
  switch (outcome.kind) {
    case 'power-off':
    case 'reset':
    case 'stopped':
      return 0;
    case 'debug-exit':
      return outcome.status;
    case 'error':
      process.stderr.write(`tsvmm: ${outcome.message}\r\n`);
      return 1;
  }
}

function restore(machine: Machine, path: string): void {
  const saved = openSavedFile(path);
  try {
    machine.loadContainer(saved.container);
    saved.readInto(machine.memory);
  } finally {
    saved.close();
  }
}

/** Runs a guest to its end; returns the exit status. */
export async function run(line: Readonly<Record<string, unknown>>): Promise<number> {
  const options = await parseRunOptions(line);
  const log = await openLog(options);
  const io = loadNativeIo();
  const host = openKvmHost();
  const closers: (() => unknown)[] = [];
  let machine: Machine | undefined;
  try {
    const { ft } = options;
    const arbiter = ft && openArbiter(io, log, ft.arbiter);
    if (arbiter) closers.push(() => arbiter.close());
    const generation = (await arbiter?.begin()) ?? 1;
    let protection: Protection | undefined;
    const onQuit = (): void => protection?.endGuest();
    const console = await openConsole(options.serial, { io, log, onQuit });
    closers.push(() => console.close());
    machine = new Machine(options.machine, {
      host,
      log,
      time: preciseTime(io),
      onReset: options.reboot ? 'restart' : 'exit',
    });
    const devices = await openDevices(machine, io, options.disks, options.nets, closers);
    const diskHost = { host, io, log };
    await adoptImages(diskHost, options.disks);
    const bases = await readBases(io, options.disks);
    const recorded = recordDisks(diskHost, machine, options.disks, devices, closers);
    const { outputs, parts } = tapOutputs([console], recorded.devices, options.machine.cpus);
    machine.assemble({
      ...parts,
      doorbellsOfAnyWidth: host.probe().hasIoeventfdAnyLength,
    });
    protection = new Protection(
      {
        machine,
        outputs,
        disks: recorded.disks,
        io,
        describe: describer(host, options, devices, bases),
        atEnd: (close) => closers.push(close),
      },
      options.settings,
    );
    if (ft) protection.start({ arbiter, generation }, ft.arbiter, ft.peers);
    return await runToEnd(machine, options, protection, closers);
  } finally {
    machine?.dispose();
    await closeAll(closers, log);
  }
}

/** Describes the guest for a standby, when that is asked for. */
function describer(
  host: KvmHost,
  options: RunOptions,
  devices: OpenDevices,
  bases: Bases,
): () => GuestDescription {
  let made: GuestDescription | undefined;
  return () => {
    if (made !== undefined) return made;
    checkForReplication(options.disks, options.nets);
    // Measured once, by a throw-away VM: not inside a pause.
    void host.probe().lazySkip;
    const { machine } = options;
    const { disks, nets } = devices;
    const description = describeMachine(
      randomName(16),
      machine,
      1,
      disks,
      nets,
      describeStorage(options.disks, bases),
    );
    made = {
      description,
      images: bootImages(machine.boot).map((image) => image.bytes),
    };
    return made;
  };
}

async function runToEnd(
  machine: Machine,
  options: RunOptions,
  protection: Protection,
  closers: (() => unknown)[],
): Promise<number> {
  const socket = options.control ?? (options.named ? controlPath(options.machine.name) : undefined);
  if (socket !== undefined) {
    const server = await ControlServer.listen(socket, controlHandler(machine, protection));
    closers.push(() => server.close());
  }
  if (options.restore === undefined) machine.boot();
  else restore(machine, options.restore);
  const signals = handleSignals(machine, protection);
  closers.push(() => signals.release());
  machine.start();
  protection.run();
  const outcome = await machine.finished;
  return signals.status ?? statusOf(outcome);
}
