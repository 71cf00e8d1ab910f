// Local APIC (xAPIC by MMIO), IOAPIC, and the LAPIC timer.
#ifndef APIC_H
#define APIC_H
#include "base.h"

#define LAPIC 0xfee00000ul
#define LAPIC_ID 0x20
#define LAPIC_VERSION 0x30
#define LAPIC_EOI 0xb0
#define LAPIC_SVR 0xf0
#define LAPIC_ICR_LOW 0x300
#define LAPIC_ICR_HIGH 0x310
#define LAPIC_TIMER 0x320
#define LAPIC_TIMER_INITIAL 0x380
#define LAPIC_TIMER_CURRENT 0x390
#define LAPIC_TIMER_DIVIDE 0x3e0

static inline uint32_t lapic_read(uint32_t reg) { return mmio_read32(LAPIC + reg); }
static inline void lapic_write(uint32_t reg, uint32_t v) { mmio_write32(LAPIC + reg, v); }
static inline void lapic_eoi(void) { lapic_write(LAPIC_EOI, 0); }
static inline uint32_t lapic_id(void) { return lapic_read(LAPIC_ID) >> 24; }

// Enables this CPU's LAPIC. Each CPU that takes interrupts calls it once.
void lapic_init(void);
// Sends a fixed interrupt to one CPU, or the raw ICR low word (INIT, SIPI).
void lapic_send(uint32_t apic_id, uint32_t icr_low);

// This CPU's timer; its input clock is measured once by timer.h's clock.
void lapic_timer_periodic(uint64_t ns, uint8_t vector);
void lapic_timer_oneshot(uint64_t ns, uint8_t vector);
void lapic_timer_stop(void);
uint64_t lapic_timer_hz(void);

// Routes a GSI to a vector of one CPU; flags as in the MADT (MPS INTI). ioapic_mask() silences it.
void ioapic_route(uint32_t gsi, uint8_t vector, uint32_t apic_id, uint16_t flags);
void ioapic_mask(uint32_t gsi);
uint32_t ioapic_read(uint8_t reg);
// The same for an ISA interrupt line, through the MADT's overrides.
void isa_irq_route(uint8_t irq, uint8_t vector);
void isa_irq_mask(uint8_t irq);
#define INTI_LEVEL_LOW 0x000f

#endif
