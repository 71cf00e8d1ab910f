/**
 * `tsvmm run`: makes the machine that the options describe, runs it, and ends with the status that the guest's end
 * deserves: 0 for power-off, the guest's code for a debug exit, 1 for an error.
 */
import { openConsole } from '../console/open.ts';
import { openKvmHost } from '../kvm/host.ts';
import { loadNativeIo } from '../kvm/native-io.ts';
import { Machine } from '../machine/machine.ts';
import type { Outcome } from '../machine/outcome.ts';
import { preciseTime } from '../machine/precise-time.ts';
import { openSavedFile } from '../machine/saved-file.ts';
import { type OpenDevices, openDevices } from './device-options.ts';
import { controlHandler, handleSignals } from './guest-commands.ts';
import { closeAll, tapOutputs } from './open-parts.ts';
import { ProtectionOnDemand } from './protection-on-demand.ts';
import type { DiskHost } from './replicated-disks.ts';
import { openLog } from './report.ts';
import { parseRunOptions, type RunOptions } from './run-options.ts';
import type { RunDisks } from './run-protection.ts';

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
    // Replication is loaded by those who ask for it.
    const arbiter = ft && (await import('./ft-options.ts')).openArbiter(io, log, ft.arbiter);
    if (arbiter) closers.push(() => arbiter.close());
    const generation = (await arbiter?.begin()) ?? 1;
    let protection: ProtectionOnDemand | undefined;
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
    const disks = await openDisksToRecord(diskHost, machine, options, devices, closers);
    const { outputs, parts } = tapOutputs(
      [console],
      disks?.recorded.devices ?? devices,
      options.machine.cpus,
    );
    machine.assemble({
      ...parts,
      doorbellsOfAnyWidth: host.probe().hasIoeventfdAnyLength,
    });
    const guest = { ...diskHost, machine, options, devices, disks, outputs, closers };
    protection = new ProtectionOnDemand(machine, options.settings, async (settings) => {
      const { protectRun } = await import('./run-protection.ts');
      return protectRun(guest, settings);
    });
    if (ft) await protection.start({ arbiter, generation }, ft.arbiter, ft.peers);
    return await runToEnd(machine, options, protection, closers);
  } finally {
    machine?.dispose();
    await closeAll(closers, log);
  }
}

/** What replication has to know of the guest's writes from the start; nothing for a guest without disks. */
async function openDisksToRecord(
  parts: DiskHost,
  machine: Machine,
  { disks }: RunOptions,
  devices: OpenDevices,
  closers: (() => unknown)[],
): Promise<RunDisks | undefined> {
  if (disks.length === 0) return undefined;
  const { adoptImages, readBases, recordDisks } = await import('./replicated-disks.ts');
  await adoptImages(parts, disks);
  const bases = await readBases(parts.io, disks);
  return { bases, recorded: recordDisks(parts, machine, disks, devices, closers) };
}

async function runToEnd(
  machine: Machine,
  options: RunOptions,
  protection: ProtectionOnDemand,
  closers: (() => unknown)[],
): Promise<number> {
  if (options.control !== undefined || options.named) {
    const { ControlServer, controlPath } = await import('../monitor/control-server.ts');
    const socket = options.control ?? controlPath(options.machine.name);
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
