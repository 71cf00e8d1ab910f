// Bench guest: the cost of one exit of each kind, on one or several CPUs at a time.
//
// Options: ops=out,in,write,read,uart (all) count=N per kind (20000) cpus=N (1) ring=3|0 port=N (0x80)
// mmio=ADDRESS (default: a register of the first virtio device, else 0xd0000000, where nothing is).
// uart sends dots: one LSR read and one THR write per byte, on COM1.
// A line per kind and CPU: "bench: exits op=out cpus=1 cpu=0 ring=3 count=20000 mean_ns=... median_ns=... min_ns=...",
// where median and minimum are over batches of 100.
#include "guest.h"
#include "smp.h"
#include "timer.h"
#include "virtio.h"

#define BATCH 100
#define BATCHES_MAX 10000

enum { OP_OUT, OP_IN, OP_WRITE, OP_READ, OP_UART, OPS };
static const char *const names[OPS] = {"out", "in", "write", "read", "uart"};

static uint64_t mmio;
static uint16_t port;
static uint32_t batches;
static bool ring0;

static volatile uint32_t go, finished; // go: round * OPS + kind, the rounds from 1
static struct {
  uint64_t total;
  uint64_t *batch;
} results[CPUS_MAX];

static uint64_t batch_of(uint64_t op, uint64_t b, uint64_t c) {
  (void)b, (void)c;
  uint64_t start = rdtsc();
  switch (op) {
    case OP_OUT:
      for (int i = 0; i < BATCH; i++) outb(port, (uint8_t)i);
      break;
    case OP_IN:
      for (int i = 0; i < BATCH; i++) inb(port);
      break;
    case OP_WRITE:
      for (int i = 0; i < BATCH; i++) mmio_write32(mmio, 0);
      break;
    case OP_READ:
      for (int i = 0; i < BATCH; i++) mmio_read32(mmio);
      break;
    default:
      for (int i = 0; i < BATCH; i++) {
        while (!(inb(COM1 + 5) & 0x20)) pause();
        outb(COM1, '.');
      }
  }
  return rdtsc() - start;
}

static void measure(uint32_t cpu, uint64_t op) {
  batch_of(op, 0, 0); // warm-up
  uint64_t start = rdtsc();
  for (uint32_t i = 0; i < batches; i++)
    results[cpu].batch[i] = ring0 ? svc((uint64_t)batch_of, op, 0, 0) : batch_of(op, 0, 0);
  results[cpu].total = rdtsc() - start;
}

static void sort(uint64_t *v, uint32_t n) { // heap sort
  for (uint32_t end = n, root = n / 2;;) {
    uint64_t x;
    if (root > 0) {
      x = v[--root];
    } else {
      if (end <= 1) return;
      x = v[--end];
      v[end] = v[0];
    }
    uint32_t at = root;
    for (uint32_t child; (child = 2 * at + 1) < end; at = child) {
      if (child + 1 < end && v[child + 1] > v[child]) child++;
      if (v[child] <= x) break;
      v[at] = v[child];
    }
    v[at] = x;
  }
}

static void worker(struct cpu *cpu, void *unused) {
  (void)unused;
  for (uint32_t round = 1;; round++) {
    while (go < round * OPS) pause();
    measure(cpu->index, go % OPS);
    __atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
  }
}

static uint64_t mmio_default(void) {
  static struct pci_device d;
  for (uint16_t id = 0x1041; id < 0x1048; id++) {
    static const uint16_t transitional[] = {0x1000, 0x1001, 0x1003, 0x1005};
    uint16_t other = id - 0x1041 < 4 ? transitional[id - 0x1041] : id;
    if (!pci_open(&d, 0x1af4, id, other, 0)) continue;
    for (uint8_t cap = pci_capability(&d, PCI_CAP_VENDOR, 0); cap; cap = pci_capability(&d, PCI_CAP_VENDOR, cap))
      if (pci_read8(d.address, (uint8_t)(cap + 3)) == 1) // common configuration: device_feature_select
        return d.bar[pci_read8(d.address, (uint8_t)(cap + 4))] + pci_read(d.address, (uint8_t)(cap + 8));
  }
  return 0xd0000000;
}

static bool wanted(const char *list, const char *name) {
  for (size_t n = strlen(name); *list; list++) {
    if (memcmp(list, name, n) == 0 && (list[n] == ',' || !list[n])) return true;
    while (list[1] && *list != ',') list++;
  }
  return false;
}

int main(void) {
  const char *ops = option("ops", "out,in,write,read,uart");
  batches = (uint32_t)((option_number("count", 20000) + BATCH - 1) / BATCH);
  if (batches > BATCHES_MAX) batches = BATCHES_MAX;
  uint32_t cpus_wanted = (uint32_t)option_number("cpus", 1), rounds = 0;
  ring0 = option_number("ring", 3) == 0;
  port = (uint16_t)option_number("port", 0x80);
  mmio = option_number("mmio", 0);
  if (!mmio) mmio = mmio_default();
  map_identity(mmio, 4096, true);
  tsc_khz();
  if (cpus_wanted > 1) smp_start(cpus_wanted, worker, 0);
  if (cpu_count != cpus_wanted) fail("%u CPUs started, %u wanted", cpu_count, cpus_wanted);
  for (uint32_t i = 0; i < cpu_count; i++) results[i].batch = allocate(batches * 8, 64);
  print("exits: mmio 0x%lx port 0x%x tsc %lu kHz\n", mmio, port, tsc_khz());

  for (uint32_t op = 0; op < OPS; op++) {
    if (!wanted(ops, names[op])) continue;
    finished = 0;
    go = ++rounds * OPS + op;
    measure(0, op);
    while (finished != cpu_count - 1) pause();
    if (op == OP_UART) print("\n");
    for (uint32_t i = 0; i < cpu_count; i++) {
      sort(results[i].batch, batches);
      print("bench: exits op=%s cpus=%u cpu=%u ring=%u count=%u mean_ns=%lu median_ns=%lu min_ns=%lu\n", names[op], cpu_count,
            i, ring0 ? 0 : 3, batches * BATCH, tsc_to_ns(results[i].total) / (batches * BATCH),
            tsc_to_ns(results[i].batch[batches / 2]) / BATCH, tsc_to_ns(results[i].batch[0]) / BATCH);
    }
  }
  return 0;
}
