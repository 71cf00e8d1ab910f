/** `tsvmm status`, `pause`, `resume`, `powerdown`, `reset`, `quit`, `save`: requests to a running guest. */
import { resolve } from 'node:path';
import { VmmError } from '../base/error.ts';
import { askControl, controlPath } from '../monitor/control-server.ts';

/** Options that these commands share. */
export interface ControlOptions {
  readonly name?: string;
  readonly control?: string;
  readonly json?: boolean;
}

/** Sends `command` and prints the answer; returns the exit status. */
export async function control(
  command: string,
  file: string | undefined,
  options: ControlOptions,
): Promise<number> {
  const path =
    options.control ?? (options.name === undefined ? undefined : controlPath(options.name));
  if (path === undefined) {
    throw new VmmError('OPTION', `tsvmm ${command} needs to know which guest is meant`, {
      hint: 'Give --name NAME (as the guest was started with) or --control SOCKET.',
    });
  }
  const answer = await askControl(path, {
    command,
    ...(file === undefined ? {} : { file: resolve(file) }),
  });
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
