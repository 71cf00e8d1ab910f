/**
 * Assertions for programmer errors. They stay on in production: a broken invariant in a machine that
 * claims fault tolerance is worth a crash (the peer takes over) rather than wrong output.
 */

/** Thrown when an invariant of the program itself is broken; never for a guest's or an operator's mistake. */
export class AssertionError extends Error {
  override readonly name = 'AssertionError';
}

/** Throws {@link AssertionError} unless `condition` holds. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

/** Marks a place that control never reaches; with a union fully narrowed, `value` is `never`. */
export function unreachable(value: never, what: string): never {
  throw new AssertionError(`unreachable ${what}: ${String(value)}`);
}
