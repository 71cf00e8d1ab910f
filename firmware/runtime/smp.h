// Further CPUs.
#ifndef SMP_H
#define SMP_H
#include "cpu.h"

extern struct cpu *cpus[CPUS_MAX]; // by index; 0 is the boot CPU
extern uint32_t cpu_count;         // started so far, the boot CPU included

// Starts every CPU of the MADT, at most `limit` in all; each runs entry(cpu, argument) in ring 3 with interrupts off.
// Fails the guest if one does not come up. Returns cpu_count.
uint32_t smp_start(uint32_t limit, void (*entry)(struct cpu *, void *), void *argument);

#endif
