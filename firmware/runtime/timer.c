#include "timer.h"

#include "acpi.h"

static uint16_t pm_port(void) {
  static uint16_t port;
  static bool known;
  if (!known) port = acpi_pm_timer_port(), known = true;
  return port;
}

bool pm_timer_present(void) { return pm_port() != 0; }
uint32_t pm_timer(void) { return inl(pm_port()) & 0xffffff; }

// 8254 data sheet: control word, latch command.
void pit_periodic(uint32_t hz) {
  uint32_t reload = hz < 19 ? 0 : PIT_HZ / hz;
  outb(0x43, 0x34);
  outb(0x40, (uint8_t)reload);
  outb(0x40, (uint8_t)(reload >> 8));
}

void pit_stop(void) { outb(0x43, 0x30); } // mode 0 without a count: waits

uint16_t pit_count(void) {
  outb(0x43, 0);
  uint8_t low = inb(0x40);
  return (uint16_t)(low | inb(0x40) << 8);
}

static uint32_t reference_read(bool pm, uint64_t *tsc) {
  uint32_t best = 0;
  uint64_t best_gap = ~0ul;
  for (int i = 0; i < 8; i++) {
    uint64_t before = rdtsc();
    uint32_t v = pm ? pm_timer() : pit_count();
    uint64_t after = rdtsc();
    if (after - before >= best_gap) continue;
    best_gap = after - before;
    best = v;
    *tsc = before + best_gap / 2;
  }
  return best;
}

uint64_t tsc_khz(void) {
  static uint64_t khz;
  if (khz) return khz;
  bool pm = pm_timer_present();
  uint32_t hz = pm ? PM_TIMER_HZ : PIT_HZ, wanted = hz / 100, elapsed = 0;
  if (!pm) pit_periodic(0);
  uint64_t t0 = 0, t1 = 0;
  uint32_t r0 = reference_read(pm, &t0);
  uint64_t give_up = t0 + 20000000000;
  while (elapsed < wanted && t1 < give_up) {
    uint32_t r1 = reference_read(pm, &t1);
    elapsed = pm ? (r1 - r0) & 0xffffff : (r0 - r1) & 0xffff;
  }
  khz = elapsed ? (t1 - t0) * hz / elapsed / 1000 : 1000000;
  return khz;
}

uint64_t tsc_to_ns(uint64_t cycles) { return (uint64_t)((unsigned __int128)cycles * 1000000 / tsc_khz()); }
uint64_t now_ns(void) { return tsc_to_ns(rdtsc()); }

void delay_us(uint64_t us) {
  uint64_t cycles = us * tsc_khz() / 1000, start = rdtsc();
  while (rdtsc() - start < cycles) pause();
}
