/** Waiting for what must happen, on a machine that may have no time for it. */
import { AssertionError } from '../../src/base/assert.ts';

const TICK_MS = 100;
/** Nothing that a fuzzer waits for takes so many. */
const TICKS = 100;

/**
 * The result of `work`; throws if it has not ended within so many ticks of a tenth of a second. Ticks, not time: while the machine does
 * other things this process sees none of them, and between two of them its loop has turned.
 * @param what subject of the error's sentence
 */
export function within<T>(work: Promise<T>, what: string, most = TICKS): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    let ticks = 0;
    timer = setInterval(() => {
      if (++ticks > most) reject(new AssertionError(`${what} does not end`));
    }, TICK_MS);
  });
  return Promise.race([work, late]).finally(() => clearInterval(timer));
}
