// The CPU as guests see it: per-CPU data, ring-0 services, interrupts, locks.
#ifndef CPU_H
#define CPU_H
#include "base.h"

struct PACKED tss {
  uint32_t reserved0;
  uint64_t rsp0, rsp1, rsp2, reserved1, ist[7], reserved2;
  uint16_t reserved3, iomap;
  uint8_t bitmap[8193]; // all zero: every port allowed; the last byte ends the scan
};

struct cpu {
  struct cpu *self;
  uint64_t stack0, stack3;
  uint32_t tss_selector;
  uint32_t index; // 0 is the boot CPU
  uint32_t apic_id;
  volatile uint32_t online;
  struct tss *tss;
  void (*entry)(struct cpu *cpu, void *argument); // what a further CPU runs in ring 3
  void *argument;
};
_Static_assert(offsetof(struct cpu, stack0) == CPU_STACK0, "layout.h");
_Static_assert(offsetof(struct cpu, stack3) == CPU_STACK3, "layout.h");
_Static_assert(offsetof(struct cpu, tss_selector) == CPU_TSS_SELECTOR, "layout.h");
_Static_assert(sizeof(struct tss) == TSS_SIZE, "layout.h");

extern struct cpu boot_cpu;

static inline struct cpu *this_cpu(void) {
  struct cpu *c;
  __asm__("mov %%gs:0, %0" : "=r"(c));
  return c;
}

// Enters ring 0: a SVC_ number, or a function called there as f(a, b, c) whose result is returned.
uint64_t svc(uint64_t what, uint64_t a, uint64_t b, uint64_t c);

static inline void irq_off(void) { svc(SVC_CLI, 0, 0, 0); }
static inline void irq_on(void) { svc(SVC_STI, 0, 0, 0); }
// Halts with interrupts on until one came; the caller's interrupt flag is unchanged, so that
// `irq_off(); while (!flag) halt(); irq_on();` cannot miss the interrupt.
static inline void halt(void) { svc(SVC_HLT, 0, 0, 0); }

uint64_t read_msr(uint32_t msr);
void write_msr(uint32_t msr, uint64_t value);
uint64_t read_cr4(void);
void write_cr4(uint64_t value);
void flush_tlb(void);
// Sets CR4.OSXSAVE and XCR0 (x87, SSE, AVX) if CPUID shows XSAVE and AVX; true if AVX is
// then usable. (QEMU's software SVM does not intercept XSETBV, so that XCR0 does not last in a guest there.)
bool enable_avx(void);

// An interrupt handler runs in ring 0 with interrupts off. Keep it short (ring 0 may be emulated), call no printing
// function in it, and acknowledge with lapic_eoi().
typedef void irq_handler(uint64_t vector);
extern irq_handler *irq_handlers[256];
// Interrupts taken by the vectors [VECTOR_COUNTED, VECTOR_COUNTED_END), which need no handler and are the fastest.
extern volatile uint32_t irq_counts[256];

typedef struct {
  volatile uint32_t held;
} spinlock;
static inline void spin_lock(spinlock *l) {
  while (__atomic_exchange_n(&l->held, 1, __ATOMIC_ACQUIRE)) {
    while (l->held) pause();
  }
}
static inline void spin_unlock(spinlock *l) { __atomic_store_n(&l->held, 0, __ATOMIC_RELEASE); }

#endif
