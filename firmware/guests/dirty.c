// Bench and test guest: dirties a known number of pages per round, with contents of a known kind.
//
// Options: pages=N per round (256) content=zero|text|code|random|delta (random) change=PERCENT of a page's words that
// delta changes (5) mem=SIZE of the area (as large as the pages) order=seq|random (seq) rounds=N (0: for ever) spin=N
// turns of a register loop per round (0). Between rounds: period=µs halts until the next tick of that timer;
// doorbell=PORT writes the round's number (32 bits) there; without either the next round follows at once.
// every=N prints "dirty: round N" (0: never). At the end: "bench: dirty ... round_ns=...", without the waiting.
#include "apic.h"
#include "guest.h"
#include "timer.h"

#define WORDS 512

static uint64_t (*area)[WORDS];
static uint64_t area_pages, seed = 1;

static uint64_t next(void) { // xorshift64
  seed ^= seed << 13;
  seed ^= seed >> 7;
  return seed ^= seed << 17;
}

static void fill_zero(uint64_t *page, uint64_t change) {
  (void)change;
  for (int i = 0; i < WORDS; i++) *(volatile uint64_t *)&page[i] = 0;
}

static void fill_random(uint64_t *page, uint64_t change) {
  (void)change;
  for (int i = 0; i < WORDS; i++) page[i] = next();
}

// Text is made once and copied from, because a page of it costs more to make than to replicate.
#define TEXT_BYTES (4u << 20)
static uint8_t *text;

static void make_text(void) {
  static const char *const words[16] = {"the ",  "guest ", "writes ", "a ",    "page ", "of ",    "plain ", "text ",
                                        "with ", "some ",  "words, ", "then ", "more ", "until ", "full. ", "And\n"};
  text = allocate(TEXT_BYTES, 64);
  for (uint32_t at = 0; at < TEXT_BYTES;)
    for (const char *w = words[next() >> 20 & 15]; *w && at < TEXT_BYTES; w++) text[at++] = (uint8_t)*w;
}

static void fill_text(uint64_t *page, uint64_t change) {
  (void)change;
  memcpy(page, text + next() % (TEXT_BYTES - 4096), 4096);
}

static void fill_code(uint64_t *page, uint64_t change) { // this guest's own instructions, from somewhere
  extern const uint8_t isr_stubs[];
  (void)change;
  memcpy(page, isr_stubs + 0x1000 + (next() & 0xfff), 4096);
}

static void fill_delta(uint64_t *page, uint64_t change) {
  for (uint64_t i = 0; i < change; i++) page[next() % WORDS] += i + 1;
}

static const struct {
  const char *name;
  void (*fill)(uint64_t *page, uint64_t change);
} kinds[] = {{"zero", fill_zero}, {"text", fill_text}, {"code", fill_code}, {"random", fill_random}, {"delta", fill_delta}};

int main(void) {
  uint64_t pages = option_number("pages", 256), rounds = option_number("rounds", 0), spin = option_number("spin", 0);
  uint64_t period = option_number("period", 0), every = option_number("every", 0);
  uint64_t change = option_number("change", 5) * WORDS / 100;
  const char *content = option("content", "random");
  bool in_order = !option_is("order", "random"), doorbell = option("doorbell", 0) != 0;
  uint16_t port = (uint16_t)option_number("doorbell", 0);
  uint32_t kind = 0;
  while (kind < COUNT_OF(kinds) && strcmp(kinds[kind].name, content)) kind++;
  if (kind == COUNT_OF(kinds)) fail("content=%s is not known", content);
  area_pages = option_number("mem", pages * 4096) / 4096;
  if (area_pages < pages || area_pages == 0) area_pages = pages + !pages;

  if (kinds[kind].fill == fill_text) make_text();
  struct memory_range free = free_memory();
  if (free.size < area_pages * 4096) fail("%lu pages do not fit in %lu KiB of free memory", area_pages, free.size >> 10);
  map_identity(free.base, area_pages * 4096, false);
  area = (void *)free.base;
  for (uint64_t i = 0; i < area_pages; i++) kind == 4 ? fill_random(area[i], 0) : kinds[kind].fill(area[i], 0);
  lapic_init();
  tsc_khz();
  if (period) lapic_timer_periodic(period * 1000, VECTOR_COUNTED);
  print("dirty: ready, %lu pages at 0x%lx, %lu per round, %s\n", area_pages, free.base, pages, content);

  uint64_t at = 0, busy = 0, done = 0;
  while (!rounds || done < rounds) {
    uint64_t start = rdtsc();
    for (uint64_t i = 0; i < pages; i++) {
      kinds[kind].fill(area[in_order ? at : next() % area_pages], change);
      if (++at == area_pages) at = 0;
    }
    for (uint64_t i = 0; i < spin; i++) barrier();
    busy += rdtsc() - start;
    done++;
    if (every && done % every == 0) print("dirty: round %lu\n", done);
    if (doorbell) outl(port, (uint32_t)done);
    if (period) {
      uint32_t seen = irq_counts[VECTOR_COUNTED];
      while (irq_counts[VECTOR_COUNTED] == seen) halt();
    }
  }
  print("bench: dirty pages=%lu content=%s rounds=%lu round_ns=%lu\n", pages, content, done, tsc_to_ns(busy / done));
  return 0;
}
