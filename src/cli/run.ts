/**
 * `tsvmm run`: makes the machine that the options describe, runs it, and ends with the status that the guest's end
 * deserves: 0 for power-off, the guest's code for a debug exit, 1 for an error.
 */
import { VmmError } from '../base/error.ts';
import { openConsole } from '../console/open.ts';
import type { PrimaryShell } from '../ft/shell/primary-shell.ts';
import { openKvmHost } from '../kvm/host.ts';
import { loadNativeIo } from '../kvm/native-io.ts';
import { Machine } from '../machine/machine.ts';
import type { Outcome } from '../machine/outcome.ts';
import { preciseTime } from '../machine/precise-time.ts';
import { openSavedFile, writeSavedFile } from '../machine/saved-file.ts';
import { type ControlHandler, ControlServer, controlPath } from '../monitor/control-server.ts';
import { openDevices } from './device-options.ts';
import { bootImages, describeMachine, parseDescription } from './ft-description.ts';
import { NO_ARBITER, openArbiter, randomName } from './ft-options.ts';
import { closeAll, tapOutputs } from './open-parts.ts';
import { endGuest, protect, protectionCommand } from './protect.ts';
import { adoptImages, describeStorage, recordDisks } from './replicated-disks.ts';
import { openLog } from './report.ts';
import { parseRunOptions, type RunOptions } from './run-options.ts';

/** Exit status of a run that a signal ended: what a shell shows for a process that died of it. */
const SIGNAL_STATUS: Readonly<Record<string, number>> = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 };

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

/** What the control socket of a running guest answers. */
export function controlHandler(machine: Machine, shell: PrimaryShell | undefined): ControlHandler {
  return (request) => {
    const done = shell && protectionCommand(shell, machine, request.command);
    if (done !== undefined) return done;
    switch (request.command) {
      case 'status':
        return { ...machine.status(), ...(shell && { replication: shell.figures() }) };
      case 'pause':
        machine.pause();
        return { state: machine.phase };
      case 'resume':
        machine.resume();
        return { state: machine.phase };
      case 'powerdown':
        machine.powerButton();
        return {};
      case 'reset':
        machine.reset();
        return {};
      case 'quit':
        machine.stop();
        return {};
      case 'save': {
        if (typeof request.file !== 'string')
          throw new VmmError('CONTROL_REQUEST', 'save needs a file');
        return saveAndEnd(machine, request.file);
      }
      default:
        throw new VmmError('CONTROL_REQUEST', `there is no command '${String(request.command)}'`);
    }
  };
}

/** Writes the guest's state and ends it; when writing fails the guest runs on. */
function saveAndEnd(machine: Machine, file: string): { file: string } {
  const wasRunning = machine.running;
  machine.pause();
  try {
    writeSavedFile(file, machine.saveContainer(), machine.memory);
  } catch (error) {
    if (wasRunning) machine.resume();
    throw error;
  }
  machine.requestEnd({ kind: 'stopped' });
  return { file };
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

/**
 * The first signal presses the power button, or hands a protected guest over to its standby; the second ends the run.
 */
export function handleSignals(
  machine: Machine,
  shell: PrimaryShell | undefined,
): { status: number | undefined; release(): void } {
  const state = { status: undefined as number | undefined, release };
  let pressed = false;
  const onSignal = (signal: NodeJS.Signals): void => {
    if (pressed || signal === 'SIGHUP') {
      state.status = SIGNAL_STATUS[signal] ?? 1;
      machine.stop();
      return;
    }
    pressed = true;
    if (shell?.switchover() === true) {
      machine.log.info('handing the guest over to the standby');
      return;
    }
    machine.log.info('power button pressed; a second signal ends the guest at once');
    machine.powerButton();
  };
  for (const signal of Object.keys(SIGNAL_STATUS)) process.on(signal, onSignal);
  function release(): void {
    for (const signal of Object.keys(SIGNAL_STATUS)) process.off(signal, onSignal);
  }
  return state;
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
    const arbiter = options.ft && openArbiter(io, log, options.ft.arbiter);
    if (arbiter) closers.push(() => arbiter.close());
    const generation = (await arbiter?.begin()) ?? 1;
    let shell: PrimaryShell | undefined;
    const onQuit = (): void => {
      if (machine) endGuest(machine, shell);
    };
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
    const doorbellsOfAnyWidth = host.probe().hasIoeventfdAnyLength;
    if (options.ft === undefined) {
      machine.assemble({ serial: [console], ...devices, doorbellsOfAnyWidth });
      return await runToEnd(machine, options, undefined, closers);
    }
    const recorded = recordDisks(diskHost, machine, options.disks, devices, closers);
    const { outputs, parts } = tapOutputs([console], recorded.devices, options.machine.cpus);
    machine.assemble({ ...parts, doorbellsOfAnyWidth });
    const { ft } = options;
    const { disks, nets } = devices;
    const storages = describeStorage(options.disks);
    const description = describeMachine(randomName(16), options.machine, 1, disks, nets, storages);
    shell = protect(
      {
        machine,
        outputs,
        disks: recorded.disks,
        io,
        description: parseDescription(description),
        images: bootImages(options.machine.boot).map((image) => image.bytes),
        arbiter,
        generation,
        peer: { ...ft.peer, key: ft.key, log },
      },
      ft,
    );
    closers.push(() => shell?.close());
    if (arbiter === undefined) log.warn(NO_ARBITER);
    return await runToEnd(machine, options, shell, closers);
  } finally {
    machine?.dispose();
    await closeAll(closers, log);
  }
}

async function runToEnd(
  machine: Machine,
  options: RunOptions,
  shell: PrimaryShell | undefined,
  closers: (() => unknown)[],
): Promise<number> {
  const socket = options.control ?? (options.named ? controlPath(options.machine.name) : undefined);
  if (socket !== undefined) {
    const server = await ControlServer.listen(socket, controlHandler(machine, shell));
    closers.push(() => server.close());
  }
  if (options.restore === undefined) machine.boot();
  else restore(machine, options.restore);
  const signals = handleSignals(machine, shell);
  closers.push(() => signals.release());
  machine.start();
  shell?.start();
  const outcome = await machine.finished;
  return signals.status ?? statusOf(outcome);
}
