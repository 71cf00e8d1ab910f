#include "apic.h"

#include "acpi.h"
#include "timer.h"

// SDM volume 3, 11.4.3 and 11.9.
void lapic_init(void) { lapic_write(LAPIC_SVR, 0x100 | VECTOR_SPURIOUS); }

void lapic_send(uint32_t apic_id, uint32_t icr_low) {
  while (lapic_read(LAPIC_ICR_LOW) & 1 << 12) pause();
  lapic_write(LAPIC_ICR_HIGH, apic_id << 24);
  lapic_write(LAPIC_ICR_LOW, icr_low);
}

// Counts for about 5 ms against the TSC. Being descheduled between the two reads would falsify the result, so the
// pair is taken again until it is tight.
static uint32_t paired_read(uint64_t *tsc) {
  uint32_t best = 0;
  uint64_t best_gap = ~0ul;
  for (int i = 0; i < 8; i++) {
    uint64_t before = rdtsc();
    uint32_t v = lapic_read(LAPIC_TIMER_CURRENT);
    uint64_t after = rdtsc();
    if (after - before >= best_gap) continue;
    best_gap = after - before;
    best = v;
    *tsc = before + best_gap / 2;
  }
  return best;
}

uint64_t lapic_timer_hz(void) {
  static uint64_t hz;
  if (hz) return hz;
  lapic_init();
  lapic_write(LAPIC_TIMER, 1 << 16);
  lapic_write(LAPIC_TIMER_DIVIDE, 0xb); // divide by 1
  lapic_write(LAPIC_TIMER_INITIAL, 0xffffffff);
  uint64_t t0 = 0, t1 = 0;
  uint32_t c0 = paired_read(&t0);
  delay_us(5000);
  uint32_t c1 = paired_read(&t1);
  lapic_write(LAPIC_TIMER_INITIAL, 0);
  uint64_t ns = tsc_to_ns(t1 - t0);
  hz = ns ? (uint64_t)(c0 - c1) * 1000000000 / ns : 0;
  if (!hz) hz = 1000000000;
  return hz;
}

static void timer_start(uint64_t ns, uint32_t lvt) {
  uint64_t count = (uint64_t)((unsigned __int128)ns * lapic_timer_hz() / 1000000000);
  uint32_t shift = 0;
  while (count >> shift > 0xffffffff && shift < 7) shift++;
  static const uint8_t divide[8] = {0xb, 0x0, 0x1, 0x2, 0x3, 0x8, 0x9, 0xa}; // by 1, 2, 4, ... 128
  lapic_write(LAPIC_TIMER_DIVIDE, divide[shift]);
  lapic_write(LAPIC_TIMER, lvt);
  count >>= shift;
  lapic_write(LAPIC_TIMER_INITIAL, count > 0xffffffff ? 0xffffffff : count ? (uint32_t)count : 1);
}

void lapic_timer_periodic(uint64_t ns, uint8_t vector) { timer_start(ns, 1 << 17 | vector); }
void lapic_timer_oneshot(uint64_t ns, uint8_t vector) { timer_start(ns, vector); }
void lapic_timer_stop(void) {
  lapic_write(LAPIC_TIMER, 1 << 16);
  lapic_write(LAPIC_TIMER_INITIAL, 0);
}

uint32_t ioapic_read(uint8_t reg) {
  uint64_t base = acpi_madt()->ioapic_address;
  mmio_write32(base, reg);
  return mmio_read32(base + 16);
}

static void ioapic_write(uint8_t reg, uint32_t v) {
  uint64_t base = acpi_madt()->ioapic_address;
  mmio_write32(base, reg);
  mmio_write32(base + 16, v);
}

// 82093AA data sheet, 3.2.4: redirection table.
void ioapic_route(uint32_t gsi, uint8_t vector, uint32_t apic_id, uint16_t flags) {
  uint32_t low = vector;
  if ((flags & 3) == 3) low |= 1 << 13;
  if ((flags >> 2 & 3) == 3) low |= 1 << 15;
  ioapic_write((uint8_t)(0x10 + 2 * gsi), 1 << 16);
  ioapic_write((uint8_t)(0x11 + 2 * gsi), apic_id << 24);
  ioapic_write((uint8_t)(0x10 + 2 * gsi), low);
}

void ioapic_mask(uint32_t gsi) {
  ioapic_write((uint8_t)(0x10 + 2 * gsi), 1 << 16);
}

void isa_irq_route(uint8_t irq, uint8_t vector) {
  const struct acpi_madt_summary *m = acpi_madt();
  ioapic_route(m->isa_gsi[irq], vector, lapic_id(), m->isa_flags[irq]);
}

void isa_irq_mask(uint8_t irq) { ioapic_mask(acpi_madt()->isa_gsi[irq]); }
