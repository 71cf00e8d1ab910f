/** Native errors of the KVM core as VmmError, with what a person can do. */
import { constants } from 'node:os';
import { codeOf, messageOf, VmmError } from '../base/error.ts';

const HINTS: Readonly<Record<string, string>> = {
  KVM_PAUSE_TIMEOUT: 'The host may be overloaded; try again.',
  KVM_MEMORY: 'Give the guest less memory or free some on the host.',
  KVM_DESTROYED: 'This is a mistake in the program: the VM is used after destroy().',
};

function field(error: unknown, name: 'call' | 'errno'): unknown {
  return typeof error === 'object' && error !== null
    ? (error as Record<string, unknown>)[name]
    : undefined;
}

function hintOfErrno(call: string, errno: number): string | undefined {
  switch (errno) {
    case constants.errno.EACCES:
    case constants.errno.EPERM:
      return call === 'open(/dev/kvm)'
        ? 'Add your user to the group kvm (sudo usermod -aG kvm $USER) and log in again.'
        : undefined;
    case constants.errno.ENOENT:
    case constants.errno.ENODEV:
    case constants.errno.ENXIO:
      return call === 'open(/dev/kvm)'
        ? 'Switch virtualisation on in the firmware setup and load kvm_intel or kvm_amd; in a virtual machine, allow nesting.'
        : undefined;
    case constants.errno.EBUSY:
      return 'Another hypervisor may be using the processor.';
    case constants.errno.EMFILE:
    case constants.errno.ENFILE:
      return 'Raise the limit of open files (ulimit -n).';
    case constants.errno.ENOMEM:
      return HINTS.KVM_MEMORY;
    default:
      return undefined;
  }
}

/** `error` as VmmError when the KVM core threw it, else `error` itself (a programmer's mistake, a handler's throw). */
export function toVmmError(error: unknown): unknown {
  if (error instanceof VmmError) return error;
  const code = codeOf(error);
  if (code === undefined || !code.startsWith('KVM_')) return error;
  const call = field(error, 'call');
  const errno = field(error, 'errno');
  if (typeof call === 'string' && typeof errno === 'number') {
    const hint = hintOfErrno(call, errno);
    const unavailable = call === 'open(/dev/kvm)';
    return new VmmError(
      unavailable ? 'KVM_UNAVAILABLE' : code,
      unavailable
        ? `KVM cannot be used: ${messageOf(error)}`
        : `the kernel refused a KVM request: ${messageOf(error)}`,
      { cause: error, ...(hint === undefined ? {} : { hint }) },
    );
  }
  const hint = HINTS[code];
  return new VmmError(code, messageOf(error), {
    cause: error,
    ...(hint === undefined ? {} : { hint }),
  });
}

/** Runs `action` and throws its native errors as VmmError. Not for hot paths (takes a closure). */
export function guarded<T>(action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw toVmmError(error);
  }
}
