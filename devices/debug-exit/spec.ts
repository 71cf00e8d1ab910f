/** The debug-exit port: a convention of test machines (QEMU's `isa-debug-exit`), no hardware. */

/** Default I/O port and its length. */
export const DEBUG_EXIT_PORT = 0xf4;
export const DEBUG_EXIT_PORTS = 4;

/** The exit status of a guest that wrote `value`: always odd, so never mistaken for success. */
export function exitStatus(value: number): number {
  return ((value << 1) | 1) & 0xff;
}
