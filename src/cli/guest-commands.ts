/** What the control socket of a running guest answers, and what signals mean to it. */
import { VmmError } from '../base/error.ts';
import { shown } from '../base/text.ts';
import type { Machine } from '../machine/machine.ts';
import { writeSavedFile } from '../machine/saved-file.ts';
import type { ControlHandler, ControlRequest } from '../monitor/control-server.ts';
import { keyOf } from './ft-endpoint.ts';
import { changeSettings, parsePeers, parseSettings } from './ft-settings.ts';
import type { GuestProtection } from './protection-on-demand.ts';

/** Exit status of a run that a signal ended: what a shell shows for a process that died of it. */
const SIGNAL_STATUS: Readonly<Record<string, number>> = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 };

/** What the control socket of a running guest answers. */
export function controlHandler(machine: Machine, protection: GuestProtection): ControlHandler {
  return (request) => {
    const { shell } = protection;
    switch (request.command) {
      case 'status':
        return { ...machine.status(), ...(shell && { replication: shell.figures() }) };
      case 'pause':
        if (shell) shell.pauseGuest();
        else machine.pause();
        return { state: machine.phase };
      case 'resume':
        if (shell) shell.resumeGuest();
        else machine.resume();
        return { state: machine.phase };
      case 'powerdown':
        machine.powerButton();
        return {};
      case 'reset':
        if (shell) shell.whenWhole(() => machine.reset());
        else machine.reset();
        return {};
      case 'quit':
        protection.endGuest();
        return {};
      case 'save':
        return saveAndEnd(machine, text(request, 'file') ?? missing('save needs a file'));
      case 'protect':
        return askForProtection(protection, request);
      case 'set':
        return set(protection, request);
      case 'switchover':
        protection.switchover();
        return {};
      case 'cancel':
        shell?.operatorGoOn();
        return {};
      case 'takeover':
        throw new VmmError(
          'FT_ROLE',
          'this host runs the guest already; takeover is for a standby',
        );
      default:
        throw new VmmError(
          'CONTROL_REQUEST',
          `there is no command '${shown(String(request.command))}'`,
        );
    }
  };
}

function missing(sentence: string): never {
  throw new VmmError('CONTROL_REQUEST', sentence);
}

function text(request: ControlRequest, key: string): string | undefined {
  const value = request[key];
  return typeof value === 'string' ? value : undefined;
}

async function askForProtection(
  protection: GuestProtection,
  request: ControlRequest,
): Promise<Record<string, unknown>> {
  const peers = text(request, 'ft-peer') ?? missing('protect needs --peer HOST[:PORT]');
  const key = text(request, 'ft-key');
  return await protection.request(
    {
      addresses: parsePeers('--peer', peers),
      key: key === undefined ? undefined : keyOf(key),
    },
    text(request, 'ft-arbiter'),
    parseSettings((name) => text(request, name), protection.settings),
  );
}

function set(protection: GuestProtection, request: ControlRequest): Record<string, unknown> {
  const { settings } = request;
  if (typeof settings !== 'object' || settings === null) missing('set needs settings');
  const now = changeSettings(settings as Record<string, unknown>, protection.settings);
  protection.configure(now);
  const ms = (ns: number): string => `${ns / 1e6}ms`;
  return {
    'ft-policy': now.policy,
    'ft-interval': ms(now.intervalNs),
    'ft-max-downtime': ms(now.maxDowntimeNs),
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

/**
 * The first signal presses the power button, or hands a protected guest over to its standby; the second ends the run.
 */
export function handleSignals(
  machine: Machine,
  protection: GuestProtection,
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
    if (protection.shell?.switchover() === true) {
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
