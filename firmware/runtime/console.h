// Text on the first 16550 (COM1), by polling; safe to call from several CPUs, not from interrupt handlers.
#ifndef CONSOLE_H
#define CONSOLE_H
#include "base.h"

#define COM1 0x3f8

void console_init(void);
void console_write(const char *bytes, size_t n);
void console_drain(void); // waits (not for ever) until all has left the chip

// A small printf: %d %u %x %c %s %p %%, with l for 64 bits, a width, 0 for leading zeros, - for left alignment.
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void vprint(const char *format, va_list args);

#endif
