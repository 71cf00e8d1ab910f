/** How the command line speaks to people: errors with their remedy, and log lines, on standard error. */
import { createWriteStream } from 'node:fs';
import { createRequire } from 'node:module';
import pc from 'picocolors';
import { AssertionError } from '../base/assert.ts';
import { codeOf, messageOf, VmmError } from '../base/error.ts';
import type { LogFields, Logger } from '../base/log.ts';

/** Levels of `--log-level`, loudest last. */
export const LOG_LEVELS = ['error', 'warn', 'info', 'debug'] as const;
/** One of {@link LOG_LEVELS}. */
export type LogLevel = (typeof LOG_LEVELS)[number];

// Chunks of the bundle take compiled code, which can load packages by require alone (launch.ts).
const load = createRequire(import.meta.url);

const colours = pc.createColors(process.stderr.isTTY === true);

/** Prints an error the way a person can act on; programmer errors with their stack. */
export function printError(error: unknown): void {
  if (error instanceof VmmError) {
    const hint = error.hint === undefined ? '' : `\n  ${error.hint}`;
    process.stderr.write(`${colours.red('tsvmm:')} ${error.message}${hint}\n`);
    return;
  }
  const stack = error instanceof Error ? (error.stack ?? error.message) : messageOf(error);
  const kind =
    error instanceof AssertionError ? 'a broken invariant (please report)' : 'internal error';
  process.stderr.write(`${colours.red('tsvmm:')} ${kind}: ${stack}\n`);
}

/**
 * Lets a command outlive whoever reads what it prints (`tsvmm status | head -1`, `tsvmm run 2>&1 | tee log`): the rest is dropped,
 * and a guest runs on. Standard output that cannot be written for another reason, as on a full disk, is an error.
 */
export function outliveReaders(): void {
  let said = false;
  process.stdout.on('error', (error) => {
    if (said || codeOf(error) === 'EPIPE') return;
    said = true;
    printError(new VmmError('STDOUT', `standard output cannot be written: ${messageOf(error)}`));
    process.once('exit', () => {
      process.exitCode ||= 1;
    });
  });
  // There is nowhere left to say it.
  process.stderr.on('error', () => {});
}

function fieldsText(fields: LogFields | undefined): string {
  if (fields === undefined) return '';
  return Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => ` ${key}=${String(value)}`)
    .join('');
}

/** A logger that writes lines for people to standard error. */
export function terminalLogger(level: LogLevel): Logger {
  const limit = LOG_LEVELS.indexOf(level);
  // A terminal in raw mode needs the carriage return.
  const line = (rank: number, colour: (text: string) => string, name: string) =>
    rank > limit
      ? () => {}
      : (message: string, fields?: LogFields): void => {
          process.stderr.write(`${colour(`tsvmm ${name}:`)} ${message}${fieldsText(fields)}\r\n`);
        };
  return {
    error: line(0, colours.red, 'error'),
    warn: line(1, colours.yellow, 'warning'),
    info: line(2, colours.cyan, 'info'),
    debug: line(3, colours.dim, 'debug'),
  };
}

/** A logger that appends JSON lines to `path` through pino. */
export async function fileLogger(level: LogLevel, path: string): Promise<Logger> {
  const stream = createWriteStream(path, { flags: 'a' });
  await new Promise<void>((resolve, reject) => {
    stream.once('open', () => resolve());
    stream.once('error', (error) =>
      reject(
        new VmmError('LOG_FILE', `the log file '${path}' cannot be opened: ${error.message}`, {
          hint: 'Give --log-file a path that can be written.',
          cause: error,
        }),
      ),
    );
  });
  const { pino } = load('pino') as typeof import('pino');
  const log = pino({ level, base: { pid: process.pid } }, stream);
  return {
    error: (message, fields) => log.error(fields ?? {}, message),
    warn: (message, fields) => log.warn(fields ?? {}, message),
    info: (message, fields) => log.info(fields ?? {}, message),
    debug: (message, fields) => log.debug(fields ?? {}, message),
  };
}

/** The logger that `--log-level` and `--log-file` ask for. */
export async function openLog(options: {
  readonly logLevel: LogLevel;
  readonly logFile: string | undefined;
}): Promise<Logger> {
  return options.logFile === undefined
    ? terminalLogger(options.logLevel)
    : await fileLogger(options.logLevel, options.logFile);
}
