// Starts every CPU of the MADT and has them count together: with atomics, under a lock, by IPIs sent round a ring while
// the receivers are halted, and by each CPU's own timer.
//
// Options: cpus=N expected (default: what the MADT says) incs=N (100000) rounds=N (100) ticks=N (5).
#include "acpi.h"
#include "apic.h"
#include "guest.h"
#include "smp.h"
#include "timer.h"

#define VECTOR_OF(index) ((uint8_t)(VECTOR_COUNTED + (index)))

static volatile uint64_t atomic_total;
static volatile uint64_t locked_total;
static spinlock lock;
static volatile uint32_t ready, all_ready, finished;
static volatile uint64_t own_counts[CPUS_MAX], own_ipis[CPUS_MAX], own_ticks[CPUS_MAX];
static uint64_t increments, rounds, ticks;

static void wait_interrupt(uint8_t vector, uint32_t seen) {
  irq_off();
  while (irq_counts[vector] == seen) halt();
}

static void work(struct cpu *cpu, void *unused) {
  (void)unused;
  uint32_t me = cpu->index;
  uint8_t vector = VECTOR_OF(me);
  lapic_init();
  if (lapic_id() != cpu->apic_id) fail("CPU %u reads APIC id %u instead of %u", me, lapic_id(), cpu->apic_id);
  if (this_cpu() != cpu) fail("CPU %u has another CPU's GS base", me);
  __atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
  while (!all_ready) pause();

  for (uint64_t i = 0; i < increments; i++) {
    __atomic_add_fetch(&atomic_total, 1, __ATOMIC_SEQ_CST);
    own_counts[me]++;
    if (i % 64) continue;
    spin_lock(&lock);
    locked_total = locked_total + 1;
    spin_unlock(&lock);
  }

  // The token goes round: wait for it halted, pass it on. CPU 0 puts it in.
  uint32_t next = (me + 1) % cpu_count;
  for (uint32_t r = 0; r < rounds; r++) {
    if (me == 0) lapic_send(cpus[next]->apic_id, VECTOR_OF(next));
    wait_interrupt(vector, r);
    own_ipis[me]++;
    if (me != 0) lapic_send(cpus[next]->apic_id, VECTOR_OF(next));
  }

  lapic_timer_periodic(1000000, vector);
  for (uint32_t t = 0; t < ticks; t++) {
    wait_interrupt(vector, (uint32_t)rounds + t);
    own_ticks[me]++;
  }
  lapic_timer_stop();
  __atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
}

int main(void) {
  increments = option_number("incs", 100000);
  rounds = option_number("rounds", 100);
  ticks = option_number("ticks", 5);
  uint32_t expected = (uint32_t)option_number("cpus", acpi_madt()->cpus);
  tsc_khz();
  lapic_timer_hz();
  smp_start(CPUS_MAX, work, 0);
  while (ready != cpu_count - 1) pause();
  all_ready = 1;
  work(&boot_cpu, 0);
  while (finished != cpu_count) pause();

  for (uint32_t i = 0; i < cpu_count; i++)
    print("smp: cpu %u apic %u counts %lu ipis %lu ticks %lu\n", i, cpus[i]->apic_id, own_counts[i], own_ipis[i], own_ticks[i]);
  if (cpu_count != expected) fail("%u CPUs started, %u expected", cpu_count, expected);
  if (atomic_total != increments * cpu_count) fail("atomic total %lu", atomic_total);
  if (locked_total != (increments + 63) / 64 * cpu_count) fail("locked total %lu", locked_total);
  print("smp: %u cpus OK\n", cpu_count);
  return 0;
}
