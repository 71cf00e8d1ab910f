// Exceptions, the interrupt table, and ring-0 services written in C. Everything here may run in ring 0.
#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "guest.h"

irq_handler *irq_handlers[256];
volatile uint32_t irq_counts[256];

static void unexpected(uint64_t vector) {
  irq_counts[vector]++;
  lapic_eoi();
}

void irq_init(void) {
  for (int i = 0; i < 256; i++) irq_handlers[i] = unexpected;
  // Both 8259s masked: guests use the IOAPIC unless they say otherwise.
  outb(0xa1, 0xff);
  outb(0x21, 0xff);
}

struct exception_frame {
  uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
  uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

static uint64_t do_read_cr2(void) {
  uint64_t v;
  __asm__ volatile("mov %%cr2, %0" : "=r"(v));
  return v;
}

// From start.S. The status is STATUS_EXCEPTION.
void exception_report(const struct exception_frame *f) {
  print("\nEXCEPTION %lu error 0x%lx rip 0x%lx cs 0x%lx rflags 0x%lx rsp 0x%lx cr2 0x%lx\n", f->vector, f->error, f->rip,
        f->cs, f->rflags, f->rsp, do_read_cr2());
  print("rax %lx rbx %lx rcx %lx rdx %lx rsi %lx rdi %lx rbp %lx cpu %u\n", f->rax, f->rbx, f->rcx, f->rdx, f->rsi, f->rdi,
        f->rbp, this_cpu()->index);
  console_drain();
  outl(DEBUG_EXIT_PORT, STATUS_EXCEPTION);
}

static uint64_t do_read_msr(uint64_t msr, uint64_t b, uint64_t c) {
  (void)b, (void)c;
  uint32_t lo, hi;
  __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"((uint32_t)msr));
  return ((uint64_t)hi << 32) | lo;
}

static uint64_t do_write_msr(uint64_t msr, uint64_t v, uint64_t c) {
  (void)c;
  __asm__ volatile("wrmsr" ::"c"((uint32_t)msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)));
  return 0;
}

static uint64_t do_read_cr4(uint64_t a, uint64_t b, uint64_t c) {
  (void)a, (void)b, (void)c;
  uint64_t v;
  __asm__ volatile("mov %%cr4, %0" : "=r"(v));
  return v;
}

static uint64_t do_write_cr4(uint64_t v, uint64_t b, uint64_t c) {
  (void)b, (void)c;
  __asm__ volatile("mov %0, %%cr4" ::"r"(v));
  return 0;
}

static uint64_t do_flush_tlb(uint64_t a, uint64_t b, uint64_t c) {
  (void)a, (void)b, (void)c;
  uint64_t v;
  __asm__ volatile("mov %%cr3, %0; mov %0, %%cr3" : "=r"(v)::"memory");
  return 0;
}

static uint64_t do_write_xcr0(uint64_t v, uint64_t b, uint64_t c) {
  (void)b, (void)c;
  __asm__ volatile("xsetbv" ::"c"(0), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)));
  return 0;
}

uint64_t load_idt_and_trap(uint64_t pointer, uint64_t b, uint64_t c) {
  (void)b, (void)c;
  __asm__ volatile("lidt (%0); ud2" ::"r"(pointer));
  return 0;
}

uint64_t read_msr(uint32_t msr) { return svc((uint64_t)do_read_msr, msr, 0, 0); }
void write_msr(uint32_t msr, uint64_t value) { svc((uint64_t)do_write_msr, msr, value, 0); }
uint64_t read_cr4(void) { return svc((uint64_t)do_read_cr4, 0, 0, 0); }
void write_cr4(uint64_t value) { svc((uint64_t)do_write_cr4, value, 0, 0); }
void flush_tlb(void) { svc((uint64_t)do_flush_tlb, 0, 0, 0); }

bool enable_avx(void) {
  uint32_t r[4];
  cpuid(1, 0, r);
  if (!(r[2] & 1u << 26) || !(r[2] & 1u << 28)) return false;
  write_cr4(read_cr4() | 1u << 18);
  svc((uint64_t)do_write_xcr0, 7, 0, 0);
  inb(0x80); // a hypervisor that did not see XSETBV puts its own idea of XCR0 back at the next exit
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (lo & 6) == 6;
}
