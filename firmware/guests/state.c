// A guest that notices when anything of its state is not what it left there: registers (general, flags, x87, SSE, AVX,
// debug, MSRs), memory, LAPIC timer, PIT, clocks. It is for capture and restore at arbitrary instants: what it prints
// depends on its options only, never on time, so an interrupted run must print what an uninterrupted one prints.
//
// Options: iters=N (100) spins=N (20000) mem=SIZE (4M) pages=N per iteration (64) every=N lines (1) tick=MICROSECONDS
// (2000) avx=auto|force|off pit=on|off debug=on|off. avx=force executes AVX without asking CPUID.
#include "apic.h"
#include "guest.h"
#include "timer.h"

#define TICK_VECTOR VECTOR_COUNTED
#define PIT_VECTOR (VECTOR_COUNTED + 1)
#define FLAGS_CHECKED 0x240cd5u // CF PF AF ZF SF DF OF AC ID
#define GENERAL_REGISTERS 15

struct PACKED registers {
  uint64_t general[GENERAL_REGISTERS]; // rax rbx rcx rdx rsi rdi rbp r8-r15
  uint64_t flags;
  uint16_t control;
  uint16_t pad0;
  uint32_t mxcsr;
  uint64_t pad1;
  uint8_t x87[8][16];
  uint8_t pad2[16];
  uint64_t vector[16][4];
};
_Static_assert(offsetof(struct registers, flags) == 120, "state.S");
_Static_assert(offsetof(struct registers, mxcsr) == 132, "state.S");
_Static_assert(offsetof(struct registers, x87) == 144, "state.S");
_Static_assert(offsetof(struct registers, vector) == 288, "state.S");

struct registers state_in, state_out;
uint64_t state_spins;
volatile uint64_t state_left;
uint32_t state_avx;
void state_hold(void);

static uint64_t random_state;
static uint64_t random64(void) { // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

static uint64_t iteration;

static void expect(const char *what, uint64_t number, uint64_t found, uint64_t expected) {
  if (found != expected)
    fail("iteration %lu: %s %lu is 0x%lx instead of 0x%lx", iteration, what, number, found, expected);
}

// ---- registers ----
static void new_patterns(void) {
  for (int i = 0; i < GENERAL_REGISTERS; i++) state_in.general[i] = random64();
  state_in.flags = (random64() & FLAGS_CHECKED) | 2;
  state_in.control = (uint16_t)(0x037f & ~(random64() & 0x0c00)); // all masked; precision stays, rounding varies
  state_in.control |= (uint16_t)(random64() & 0x0c00);
  state_in.mxcsr = 0x1f80 | (uint32_t)(random64() & 0xe03f); // all masked; rounding, flush, sticky flags vary
  for (int i = 0; i < 8; i++) {
    uint64_t mantissa = random64() | 1ul << 63;
    uint16_t exponent = (uint16_t)((random64() & 0x8000) | (0x3000 + (random64() & 0xfff)));
    memcpy(state_in.x87[i], &mantissa, 8);
    memcpy(state_in.x87[i] + 8, &exponent, 2);
  }
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 4; k++) state_in.vector[i][k] = random64();
}

static uint32_t check_registers(void) {
  for (uint64_t i = 0; i < GENERAL_REGISTERS; i++)
    expect("general register", i, state_out.general[i], state_in.general[i]);
  expect("flags", 0, state_out.flags & FLAGS_CHECKED, state_in.flags & FLAGS_CHECKED);
  expect("x87 control word", 0, state_out.control, state_in.control);
  expect("mxcsr", 0, state_out.mxcsr, state_in.mxcsr);
  for (uint64_t i = 0; i < 8; i++)
    if (memcmp(state_out.x87[i], state_in.x87[i], 10)) fail("iteration %lu: x87 register %lu changed", iteration, i);
  for (uint64_t k = 0; k < 2; k++) state_in.vector[15][k] += state_spins * state_in.vector[14][k];
  for (uint64_t i = 0; i < 16; i++)
    for (uint64_t k = 0; k < (state_avx ? 4 : 2); k++)
      expect(k < 2 ? "xmm quadword" : "ymm high quadword", i * 4 + k, state_out.vector[i][k], state_in.vector[i][k]);
  return crc32c(crc32c(0, state_out.general, sizeof state_out.general), state_out.vector[15], 16);
}

// ---- what only ring 0 sees ----
static const uint32_t checked_msrs[] = {
  0xc0000082, // LSTAR
  0xc0000084, // SFMASK
  0xc0000102, // KERNEL_GS_BASE
  0x175,      // SYSENTER_ESP
  0x176,      // SYSENTER_EIP
};
static uint64_t msr_pattern(uint32_t msr) {
  if (msr == 0xc0000084) return 0x47700;
  // KVM keeps 32 bits of SYSENTER_ESP and SYSENTER_EIP for a guest that sees an AMD processor, which uses no more.
  if (msr == 0x175 || msr == 0x176) return 0x12340000 + msr;
  return 0x7f0012340000 + msr % 0x1000;
}

static uint64_t debug_pattern[4];

static uint64_t set_ring0(uint64_t with_debug, uint64_t b, uint64_t c) {
  (void)b, (void)c;
  if (!with_debug) return 0;
  __asm__ volatile("mov %0, %%dr0" ::"r"(debug_pattern[0]));
  __asm__ volatile("mov %0, %%dr1" ::"r"(debug_pattern[1]));
  __asm__ volatile("mov %0, %%dr2" ::"r"(debug_pattern[2]));
  __asm__ volatile("mov %0, %%dr3" ::"r"(debug_pattern[3]));
  return 0;
}

static uint64_t read_debug(uint64_t out, uint64_t b, uint64_t c) {
  (void)b, (void)c;
  uint64_t *d = (uint64_t *)out;
  __asm__ volatile("mov %%dr0, %0" : "=r"(d[0]));
  __asm__ volatile("mov %%dr1, %0" : "=r"(d[1]));
  __asm__ volatile("mov %%dr2, %0" : "=r"(d[2]));
  __asm__ volatile("mov %%dr3, %0" : "=r"(d[3]));
  return 0;
}

static void start_ring0(bool with_debug) {
  for (int i = 0; i < 4; i++) debug_pattern[i] = 0x1000 * (uint64_t)(i + 1) + 0x123;
  svc((uint64_t)set_ring0, with_debug, 0, 0);
  for (uint32_t i = 0; i < COUNT_OF(checked_msrs); i++) write_msr(checked_msrs[i], msr_pattern(checked_msrs[i]));
  write_msr(0xc0000100, (uint64_t)&random_state); // FS base
}

static void check_ring0(bool with_debug) {
  uint32_t msr = checked_msrs[iteration % COUNT_OF(checked_msrs)];
  expect("MSR", msr, read_msr(msr), msr_pattern(msr));
  uint64_t through_fs;
  __asm__ volatile("mov %%fs:0, %0" : "=r"(through_fs));
  expect("FS base: word", 0, through_fs, random_state);
  expect("GS base: word", 0, (uint64_t)this_cpu(), (uint64_t)&boot_cpu);
  if (!with_debug) return;
  uint64_t d[4];
  svc((uint64_t)read_debug, (uint64_t)d, 0, 0);
  for (uint64_t i = 0; i < 4; i++) expect("debug register", i, d[i], debug_pattern[i]);
}

// ---- memory: each page holds words that follow from its number and generation ----
#define WORDS 512
static uint64_t (*pages)[WORDS];
static uint32_t *generation;
static uint64_t page_count;

static uint64_t page_seed(uint64_t page) { return (page << 32 | generation[page]) * 0x9e3779b97f4a7c15 + 1; }

static void fill_page(uint64_t page) {
  uint64_t x = page_seed(page);
  for (int i = 0; i < WORDS; i++) pages[page][i] = x = x * 6364136223846793005 + 1442695040888963407;
}

static uint64_t check_page(uint64_t page) {
  uint64_t x = page_seed(page), sum = 0;
  for (uint64_t i = 0; i < WORDS; i++) {
    x = x * 6364136223846793005 + 1442695040888963407;
    if (pages[page][i] != x)
      fail("iteration %lu: memory page %lu word %lu is 0x%lx instead of 0x%lx", iteration, page, i, pages[page][i], x);
    sum = (sum << 5 | sum >> 59) ^ x;
  }
  return sum;
}

static uint64_t change_pages(uint64_t n) {
  uint64_t sum = 0;
  while (n--) {
    uint64_t page = random64() % page_count;
    sum = sum * 31 + check_page(page);
    generation[page]++;
    fill_page(page);
  }
  return sum;
}

// ---- time ----
static void wait_for_tick(uint8_t vector, const char *what) {
  uint32_t before = irq_counts[vector];
  for (uint64_t spins = 0; irq_counts[vector] == before; spins++) {
    if (spins == 1ul << 28) fail("iteration %lu: the %s does not tick any more", iteration, what);
    pause();
  }
  irq_off();
  before = irq_counts[vector];
  while (irq_counts[vector] == before) halt();
  irq_on();
}

static void check_clocks(bool with_pm_timer) {
  static uint64_t last_tsc, last_pm_tsc;
  static uint32_t last_pm;
  uint64_t t = rdtsc();
  if (t < last_tsc) fail("iteration %lu: TSC went back from 0x%lx to 0x%lx", iteration, last_tsc, t);
  last_tsc = t;
  if (!with_pm_timer) return;
  // 24 bits wrap after 4.7 s: a large difference is a step back only if little time went by on the TSC.
  uint32_t pm = pm_timer(), forward = (pm - last_pm) & 0xffffff;
  if (last_pm_tsc && forward > 0xc00000 && t - last_pm_tsc < tsc_khz() * 1000)
    fail("iteration %lu: the PM timer went back from 0x%x to 0x%x", iteration, last_pm, pm);
  last_pm = pm;
  last_pm_tsc = t;
}

int main(void) {
  uint64_t iterations = option_number("iters", 100), every = option_number("every", 1);
  uint64_t changed_pages = option_number("pages", 64);
  bool with_pit = !option_is("pit", "off"), with_debug = !option_is("debug", "off");
  state_spins = option_number("spins", 20000);
  state_avx = option_is("avx", "force") || (!option_is("avx", "off") && enable_avx());
  if (option_is("avx", "force")) enable_avx();
  bool with_pm_timer = pm_timer_present();

  page_count = option_number("mem", 4 << 20) / 4096;
  generation = allocate(page_count * sizeof *generation, 64);
  pages = allocate(page_count * 4096, 4096);
  for (uint64_t i = 0; i < page_count; i++) fill_page(i);

  start_ring0(with_debug);
  lapic_init();
  tsc_khz();
  lapic_timer_periodic(option_number("tick", 2000) * 1000, TICK_VECTOR);
  if (with_pit) {
    isa_irq_route(0, PIT_VECTOR);
    pit_periodic(100);
  }
  irq_on();
  print("state: iters %lu avx %u pages %lu\n", iterations, state_avx, page_count);

  uint32_t digest = 0;
  for (iteration = 1; iteration <= iterations; iteration++) {
    new_patterns();
    state_hold();
    uint32_t registers = check_registers();
    check_ring0(with_debug);
    uint64_t memory = change_pages(changed_pages);
    check_clocks(with_pm_timer);
    if (iteration % 8 == 0) wait_for_tick(TICK_VECTOR, "LAPIC timer");
    if (with_pit && iteration % 32 == 0) wait_for_tick(PIT_VECTOR, "PIT");
    digest = crc32c(digest, &registers, sizeof registers);
    digest = crc32c(digest, &memory, sizeof memory);
    if (iteration % every == 0) print("state: %lu %08x\n", iteration, digest);
  }
  iteration = iterations;
  uint64_t sum = 0;
  for (uint64_t i = 0; i < page_count; i++) sum = sum * 31 + check_page(i);
  irq_off();
  print("state: end %08x memory %016lx\n", digest, sum);
  return 0;
}
