/** What the measures of a protected guest share: its policies, and a pair of hosts with or without protection. */
import { existsSync, readFileSync } from 'node:fs';
import { Pair, type PairOptions, until } from '../failover/pair.ts';
import { undoAtEnd } from './guest-run.ts';

/** How a guest is protected; `off`: not at all. */
export type Policy =
  | 'off'
  | 'kemari'
  | 'adaptive'
  | 'periodic 5ms'
  | 'periodic 20ms'
  | 'periodic 100ms';

/** All of them but `off`. */
export const POLICIES: readonly Policy[] = [
  'kemari',
  'adaptive',
  'periodic 5ms',
  'periodic 20ms',
  'periodic 100ms',
];

/** Until a guest says something, at most. */
export const WAIT_MS = 20_000;

/** Arguments of a policy. */
export function policyArgs(policy: Policy): string[] {
  if (policy === 'off') return [];
  const [name, interval] = policy.split(' ');
  return ['--ft-policy', name!, ...(interval === undefined ? [] : ['--ft-interval', interval])];
}

/** The words of the command line that protect a guest, as somebody would type them. */
export function policyText(policy: Policy): string {
  if (policy === 'off') return '';
  return ` --ft-peer 127.0.0.1:PORT --ft-arbiter lock:FILE ${policyArgs(policy).join(' ')}`;
}

/**
 * Runs `body` with a pair of hosts whose guest is protected, or runs alone (`off`).
 * @param before after the standby is there and before the guest starts
 */
export async function withPair<T>(
  policy: Policy,
  options: PairOptions,
  body: (pair: Pair) => Promise<T>,
  before?: (pair: Pair) => Promise<void> | void,
): Promise<T> {
  const off = policy === 'off';
  const args = [...policyArgs(policy), ...(options.primaryArgs ?? [])];
  const pair = new Pair({ ...options, unprotected: off, primaryArgs: args });
  const forget = undoAtEnd(() => pair.close());
  try {
    await pair.startStandby();
    await before?.(pair);
    pair.startPrimary();
    if (!off) await pair.protected();
    return await body(pair);
  } finally {
    forget();
    await pair.end();
    pair.close();
  }
}

/** What a guest printed in a stretch of time, by this machine's clock. */
export interface Stretch<T> {
  /** Lines after the one that began the stretch. */
  readonly lines: readonly T[];
  readonly ms: number;
}

/**
 * Waits for a line of the guest's console that is whole, and takes what comes from there until a line at least `ms` later. A line of
 * a protected guest is held back until its epoch commits, so both ends are late by up to an interval.
 * @param read finds the lines that count in what the console printed
 * @throws Error when the guest ends or says nothing
 */
export async function consoleStretch<T>(
  pair: Pair,
  read: (text: string) => T[],
  ms: number,
): Promise<Stretch<T>> {
  const lines = (): T[] => {
    if (pair.primary.ended) throw new Error(`the guest ended: ${pair.primary.log.slice(-300)}`);
    const console = pair.path('console-a');
    const text = existsSync(console) ? readFileSync(console, 'utf8') : '';
    return read(text.slice(0, text.lastIndexOf('\n') + 1));
  };
  const known = lines().length;
  let now: T[] = [];
  const more = (than: number) => (): boolean => {
    now = lines();
    return now.length > than;
  };
  // The first one began before.
  await until('the guest measures', WAIT_MS, more(known + 1));
  const first = now.length;
  const begin = performance.now();
  await until('the guest measures', WAIT_MS + ms, () => {
    now = lines();
    return performance.now() - begin >= ms;
  });
  // The end is the moment of a line, and not one between two lines.
  const last = now.length;
  await until('the guest measures', WAIT_MS, more(last));
  return { lines: now.slice(first), ms: performance.now() - begin };
}
