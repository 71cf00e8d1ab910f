/** `tsvmm status`, `pause`, `save`, `protect`, `set` and their kin: requests to a running guest. */
import { resolve } from 'node:path';
import { VmmError } from '../base/error.ts';
import { askControl, controlPath } from '../monitor/control-server.ts';
import { wholeArbiter } from './arbiter-paths.ts';

/** Options that these commands share. */
export interface ControlOptions {
  readonly name?: string;
  readonly control?: string;
  readonly json?: boolean;
}

/** Options of `tsvmm protect`. */
export interface ProtectOptions extends ControlOptions {
  readonly peer: string;
  readonly key?: string;
  readonly arbiter?: string;
  readonly ftPolicy?: string;
  readonly ftInterval?: string;
  readonly ftMaxDowntime?: string;
  readonly ftTimeout?: string;
  readonly ftOnPeerLoss?: string;
}

/** A request about a file of the operator's. */
export function fileRequest(file: string): Record<string, unknown> {
  return { file: resolve(file) };
}

/** What `tsvmm protect` asks the guest for. Its process opens files, so their paths are made whole here. */
export function protectRequest(options: ProtectOptions): Record<string, unknown> {
  const { arbiter, key } = options;
  return {
    'ft-peer': options.peer,
    'ft-key': key === undefined ? undefined : resolve(key),
    'ft-arbiter': arbiter === undefined ? undefined : wholeArbiter(arbiter),
    'ft-policy': options.ftPolicy,
    'ft-interval': options.ftInterval,
    'ft-max-downtime': options.ftMaxDowntime,
    'ft-timeout': options.ftTimeout,
    'ft-on-peer-loss': options.ftOnPeerLoss,
  };
}

/** `KEY=VALUE` words as `tsvmm set` sends them. @throws VmmError `OPTION` */
export function setRequest(words: readonly string[]): Record<string, unknown> {
  const settings: Record<string, string> = {};
  for (const word of words) {
    const equals = word.indexOf('=');
    if (equals < 1) throw new VmmError('OPTION', `${word}: is not of the form NAME=VALUE`);
    settings[word.slice(0, equals)] = word.slice(equals + 1);
  }
  return { settings };
}

/** Sends `command` with `fields` and prints the answer; returns the exit status. */
export async function control(
  command: string,
  fields: Readonly<Record<string, unknown>>,
  options: ControlOptions,
): Promise<number> {
  const path =
    options.control ?? (options.name === undefined ? undefined : controlPath(options.name));
  if (path === undefined) {
    throw new VmmError('OPTION', `tsvmm ${command} needs to know which guest is meant`, {
      hint: 'Give --name NAME (as the guest was started with) or --control SOCKET.',
    });
  }
  const answer = await askControl(path, { command, ...fields });
  if (options.json === true) {
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  } else {
    for (const [key, value] of Object.entries(answer)) {
      if (key !== 'ok')
        process.stdout.write(
          `${key}: ${typeof value === 'object' ? JSON.stringify(value) : String(value)}\n`,
        );
    }
  }
  return 0;
}
