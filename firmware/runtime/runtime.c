// Entry of every CPU in ring 3, the command line, memory, and the ways to end.
#include "guest.h"

#include "acpi.h"

// PVH boot ABI, struct hvm_start_info (Xen public headers, arch-x86/hvm/start_info.h).
struct start_info {
  uint32_t magic, version, flags, modules;
  uint64_t module_list, command_line, rsdp, memory_map;
  uint32_t memory_map_entries, reserved;
};
#define START_INFO_MAGIC 0x336ec578

extern char image_end[];

const struct memory_range *memory_map;
uint32_t memory_map_entries;
uint64_t start_rsdp;

#define MEMORY_MAP_MAX 64
static struct memory_range map_copy[MEMORY_MAP_MAX]; // the loader's may lie where guests write
static char words[2048]; // NUL-separated, ended by an empty word
static uint64_t heap_next, heap_end;

static void read_command_line(const char *s) {
  size_t n = 0;
  while (*s && n < sizeof words - 2) {
    while (*s == ' ') s++;
    while (*s && *s != ' ' && n < sizeof words - 2) words[n++] = *s++;
    if (n && words[n - 1]) words[n++] = 0;
  }
}

const char *option(const char *key, const char *fallback) {
  size_t n = strlen(key);
  for (const char *w = words; *w; w += strlen(w) + 1) {
    if (strlen(w) < n || memcmp(w, key, n)) continue;
    if (w[n] == '=') return w + n + 1;
    if (!w[n]) return w + n;
  }
  return fallback;
}

bool option_is(const char *key, const char *value) {
  const char *v = option(key, 0);
  return v && strcmp(v, value) == 0;
}

uint64_t option_number(const char *key, uint64_t fallback) {
  const char *s = option(key, 0);
  if (!s || !*s) return fallback;
  uint64_t v = 0, base = 10;
  if (s[0] == '0' && s[1] == 'x') s += 2, base = 16;
  for (;; s++) {
    uint64_t digit = *s >= '0' && *s <= '9'              ? (uint64_t)(*s - '0')
                     : base == 16 && *s >= 'a' && *s <= 'f' ? (uint64_t)(*s - 'a' + 10)
                     : base == 16 && *s >= 'A' && *s <= 'F' ? (uint64_t)(*s - 'A' + 10)
                                                            : 99;
    if (digit == 99) break;
    v = v * base + digit;
  }
  switch (*s) {
    case 'K': return v << 10;
    case 'M': return v << 20;
    case 'G': return v << 30;
    default: return v;
  }
}

// The heap is the part below 3 GiB of the usable range that holds the image.
static void find_heap(void) {
  heap_next = (uint64_t)image_end;
  heap_end = 16 << 20; // a loader without a memory map: assume little
  for (uint32_t i = 0; i < memory_map_entries; i++) {
    const struct memory_range *r = &memory_map[i];
    if (r->type == 1 && r->base <= heap_next && r->base + r->size > heap_next) heap_end = r->base + r->size;
  }
  if (heap_end > 0xc0000000) heap_end = 0xc0000000;
}

void *allocate(size_t size, size_t alignment) {
  static spinlock lock;
  spin_lock(&lock);
  uint64_t at = (heap_next + alignment - 1) & ~(uint64_t)(alignment - 1);
  bool fits = at + size <= heap_end;
  if (fits) heap_next = at + size;
  spin_unlock(&lock);
  if (!fits) fail("out of memory: %lu bytes asked, heap ends at 0x%lx", size, heap_end);
  return memset((void *)at, 0, size);
}

struct memory_range free_memory(void) {
  struct memory_range best = {heap_next, heap_end - heap_next, 1, 0};
  for (uint32_t i = 0; i < memory_map_entries; i++) {
    const struct memory_range *r = &memory_map[i];
    if (r->type == 1 && r->base >= 0x100000000 && r->size > best.size) best = *r;
  }
  best.size -= -best.base & 4095;
  best.base = (best.base + 4095) & ~4095ul;
  return best;
}

static uint64_t *table_of(uint64_t *entry) {
  if (!(*entry & 1)) *entry = (uint64_t)allocate(4096, 4096) | 7;
  return (uint64_t *)(*entry & 0x000ffffffffff000);
}

void map_identity(uint64_t base, uint64_t size, bool device) {
  extern uint64_t boot_pml4[];
  for (uint64_t a = base & ~0x1ffffful; a < base + size; a += 0x200000) {
    uint64_t *directory = table_of(&table_of(&boot_pml4[a >> 39 & 511])[a >> 30 & 511]);
    uint64_t *entry = &directory[a >> 21 & 511];
    if (!(*entry & 1)) *entry = a | 0x87 | (device ? 0x18 : 0);
  }
}

void fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  print("FAIL: ");
  vprint(format, args);
  print("\n");
  va_end(args);
  guest_end(1);
}

// SDM volume 3, 6.15: a fault that cannot be delivered shuts the CPU down, which boards turn into a reset.
static NORETURN void triple_fault(void) {
  static const struct PACKED {
    uint16_t limit;
    uint64_t base;
  } none;
  extern uint64_t load_idt_and_trap(uint64_t pointer, uint64_t, uint64_t);
  svc((uint64_t)load_idt_and_trap, (uint64_t)&none, 0, 0);
  for (;;) halt();
}

void guest_end(int status) {
  irq_off();
  console_drain();
  if (option("exit", 0) && status == 0) status = (int)option_number("exit", 0);
  const char *off = option("off", status || option("exit", 0) ? "debug" : "acpi");
  if (strcmp(off, "triple") == 0) triple_fault();
  if (strcmp(off, "reset") == 0) acpi_reset();
  if (strcmp(off, "acpi") == 0) acpi_power_off();
  outl(DEBUG_EXIT_PORT, (uint32_t)status);
  print("the machine did not end by %s or debug exit; halting\n", off);
  for (;;) svc(SVC_CLI, 0, 0, 0), halt();
}

// First C code of each CPU (from start.S).
NORETURN void cpu_start(struct cpu *cpu, const struct start_info *info) {
  if (cpu != &boot_cpu) {
    __atomic_store_n(&cpu->online, 1, __ATOMIC_RELEASE);
    cpu->entry(cpu, cpu->argument);
    for (;;) halt();
  }
  extern struct tss boot_tss;
  void irq_init(void);
  cpu->tss = &boot_tss;
  cpu->online = 1;
  console_init();
  if (info->magic != START_INFO_MAGIC) fail("no hvm_start_info at 0x%lx", (uint64_t)info);
  if (info->command_line) read_command_line((const char *)info->command_line);
  start_rsdp = info->rsdp;
  if (info->version >= 1) {
    memory_map_entries = info->memory_map_entries < MEMORY_MAP_MAX ? info->memory_map_entries : MEMORY_MAP_MAX;
    memcpy(map_copy, (const void *)info->memory_map, memory_map_entries * sizeof map_copy[0]);
    memory_map = map_copy;
  }
  find_heap();
  irq_init();
  guest_end(main());
}
