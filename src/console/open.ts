/**
 * Opens the console that a `--serial` option names: stdio, file:PATH, unix:PATH, pty or null. The only place that knows
 * the spelling.
 */
import { VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import type { ConsoleBackend } from './backend.ts';
import { openFileConsole } from './file.ts';
import { NullConsole } from './memory.ts';
import type { ConsoleNative } from './native.ts';
import { StdioConsole } from './stdio.ts';

/** What opening needs. */
export interface OpenConsoleContext {
  readonly io: ConsoleNative;
  readonly log: Logger;
  /** The person at the terminal typed the escape sequence that quits. */
  readonly onQuit: () => void;
}

/**
 * Opens a console.
 * @throws VmmError `OPTION` for an unknown spelling, or the backend's own error
 */
export async function openConsole(
  spec: string,
  { io, log, onQuit }: OpenConsoleContext,
): Promise<ConsoleBackend> {
  const colon = spec.indexOf(':');
  const kind = colon < 0 ? spec : spec.slice(0, colon);
  const path = colon < 0 ? '' : spec.slice(colon + 1);
  if ((kind === 'file' || kind === 'unix') && path !== '') {
    if (kind === 'file') return openFileConsole(log, path);
    const { openUnixConsole } = await import('./unix.ts');
    return await openUnixConsole(log, path);
  }
  if (colon < 0) {
    if (kind === 'stdio') return new StdioConsole({ onQuit });
    if (kind === 'null') return new NullConsole();
    if (kind === 'pty') {
      const { openPtyConsole } = await import('./pty.ts');
      const pty = openPtyConsole(io);
      process.stderr.write(`tsvmm: the serial console is at ${pty.path}\r\n`);
      return pty;
    }
  }
  throw new VmmError(
    'OPTION',
    `--serial ${spec}: is none of stdio, file:PATH, unix:PATH, pty, null`,
  );
}
