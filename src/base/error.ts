/**
 * Operating errors: what a person can do something about (a missing file, a refused ioctl, a full disk).
 */

/** What a {@link VmmError} may carry beside its message. */
export interface VmmErrorOptions {
  /** What the reader can do about it, one sentence. */
  readonly hint?: string;
  /** The lower-level error, if one caused this. */
  readonly cause?: unknown;
}

/**
 * An error with a stable code (`KVM_MISSING`, `DISK_LOCKED`, ...), a sentence that says what failed and why,
 * and, where there is one, a hint that says what to do.
 */
export class VmmError extends Error {
  override readonly name = 'VmmError';
  readonly code: string;
  readonly hint: string | undefined;

  constructor(code: string, message: string, options: VmmErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.hint = options.hint;
  }
}

/** The message of anything thrown, without its stack. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The `code` of a Node.js or native error (`ENOENT`), or undefined. */
export function codeOf(error: unknown): string | undefined {
  if (typeof error === 'object' && error !== null && 'code' in error) {
    const { code } = error;
    return typeof code === 'string' ? code : undefined;
  }
  return undefined;
}
