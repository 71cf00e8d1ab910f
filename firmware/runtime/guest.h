// What every guest includes: options, memory, the end. A guest defines main(), which runs in ring 3 on the boot CPU
// with interrupts off; its return value is the guest's status (0 is success).
#ifndef GUEST_H
#define GUEST_H
#include "base.h"
#include "console.h"
#include "cpu.h"

int main(void);

// ---- command line: words key=value, or key alone ----
const char *option(const char *key, const char *fallback); // value; "" for a word without '='
uint64_t option_number(const char *key, uint64_t fallback); // decimal, 0x hex, suffix K, M or G
bool option_is(const char *key, const char *value);

// ---- memory map (hvm_start_info) ----
struct memory_range {
  uint64_t base, size;
  uint32_t type; // E820: 1 is usable
  uint32_t reserved;
};
extern const struct memory_range *memory_map;
extern uint32_t memory_map_entries;
extern uint64_t start_rsdp; // 0 where the loader gave none

// Zeroed memory below 3 GiB that is never freed; stops the guest when there is none.
void *allocate(size_t size, size_t alignment);
// Usable RAM that allocate() has not handed out: the largest range at or above image_end. Nothing else uses it.
struct memory_range free_memory(void);
// Makes [base, base + size) accessible at its own address (needed from 4 GiB up).
void map_identity(uint64_t base, uint64_t size, bool device);

// ---- the end ----
// Ends the guest. Option off=acpi|debug|reset|triple chooses how; without it a status other than 0, or the option
// exit=N, ends through the debug-exit port, and success powers off through ACPI.
NORETURN void guest_end(int status);
// Prints "FAIL: ..." and ends with status 1.
NORETURN void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define DEBUG_EXIT_PORT 0xf4 // writing V ends the VMM with (V << 1) | 1
#define STATUS_EXCEPTION 0x7e

#endif
