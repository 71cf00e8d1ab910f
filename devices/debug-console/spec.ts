/** The debug console port: where SeaBIOS and OVMF write their log when it is there (QEMU's `isa-debugcon`). */

/** Default I/O port; one byte. */
export const DEBUG_CONSOLE_PORT = 0x402;
/** What a read gives, by which firmware knows that the port is there. */
export const DEBUG_CONSOLE_PRESENT = 0xe9;
