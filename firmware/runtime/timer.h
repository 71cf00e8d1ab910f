// Time: the TSC (measured against the ACPI PM timer, else the PIT), the PM timer, the PIT.
#ifndef TIMER_H
#define TIMER_H
#include "base.h"

#define PM_TIMER_HZ 3579545
#define PIT_HZ 1193182

uint64_t tsc_khz(void); // measured at the first call (about 10 ms)
uint64_t tsc_to_ns(uint64_t cycles);
uint64_t now_ns(void); // since an arbitrary instant
void delay_us(uint64_t us);

bool pm_timer_present(void);
uint32_t pm_timer(void); // 24 bits

void pit_periodic(uint32_t hz); // channel 0, mode 2; 18.2 Hz at the least
void pit_stop(void);
uint16_t pit_count(void); // channel 0, counts down

#endif
