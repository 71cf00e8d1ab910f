#include "smp.h"

#include "acpi.h"
#include "apic.h"
#include "guest.h"
#include "timer.h"

struct cpu *cpus[CPUS_MAX] = {&boot_cpu};
uint32_t cpu_count = 1;
struct cpu *ap_cpu; // the one that is starting (ap.S)

extern uint64_t gdt[];
extern const uint8_t ap_code[], ap_code_end[];

#define STACK_BYTES 16384

static struct cpu *new_cpu(uint32_t index, uint32_t apic_id) {
  struct cpu *c = allocate(sizeof *c, 64);
  c->self = c;
  c->stack0 = (uint64_t)allocate(STACK_BYTES, 16) + STACK_BYTES;
  c->stack3 = (uint64_t)allocate(STACK_BYTES, 16) + STACK_BYTES;
  c->index = index;
  c->apic_id = apic_id;
  c->tss = allocate(sizeof *c->tss, 64);
  c->tss->rsp0 = c->stack0;
  c->tss->iomap = offsetof(struct tss, bitmap);
  c->tss->bitmap[8192] = 0xff;
  // SDM volume 3, 8.2.3: 64-bit TSS descriptor.
  uint64_t base = (uint64_t)c->tss, limit = sizeof *c->tss - 1;
  c->tss_selector = SEL_TSS0 + 16 * index;
  gdt[c->tss_selector / 8] = limit | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
  gdt[c->tss_selector / 8 + 1] = base >> 32;
  return c;
}

static bool wait_online(struct cpu *c, uint64_t us) {
  uint64_t start = rdtsc(), cycles = us * tsc_khz() / 1000;
  while (!c->online && rdtsc() - start < cycles) pause();
  return c->online;
}

// SDM volume 3, 9.4.4: INIT, then up to two start-up IPIs.
static bool start(struct cpu *c) {
  ap_cpu = c;
  fence();
  lapic_send(c->apic_id, 0x4500);
  delay_us(200);
  lapic_send(c->apic_id, 0x4600 | AP_BASE >> 12);
  if (wait_online(c, 100000)) return true;
  lapic_send(c->apic_id, 0x4600 | AP_BASE >> 12);
  return wait_online(c, 10000000);
}

uint32_t smp_start(uint32_t limit, void (*entry)(struct cpu *, void *), void *argument) {
  const struct acpi_madt_summary *madt = acpi_madt();
  memcpy((void *)AP_BASE, ap_code, (size_t)(ap_code_end - ap_code));
  lapic_init();
  boot_cpu.apic_id = lapic_id();
  if (limit > CPUS_MAX) limit = CPUS_MAX;
  for (uint32_t i = 0; i < madt->cpus && cpu_count < limit; i++) {
    if (madt->apic_ids[i] == boot_cpu.apic_id) continue;
    struct cpu *c = new_cpu(cpu_count, madt->apic_ids[i]);
    c->entry = entry;
    c->argument = argument;
    if (!start(c)) fail("CPU %u (APIC id %u) did not start", c->index, c->apic_id);
    cpus[cpu_count++] = c;
  }
  return cpu_count;
}
