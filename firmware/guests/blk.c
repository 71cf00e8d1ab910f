// Bench and test guest: a virtio-blk disk at a given queue depth.
//
// Options: op=read|write|verify (read) size=SIZE (4K) depth=N (1) count=N requests (2000) order=seq|random (random)
// span=SIZE of the disk used (all) flush=N writes per flush (0: none) disk=N (0) wait=irq|poll (irq) ms=N (0): a run ends
// after that long and not after count requests; runs=N of a read or write (1; 0: for ever), with one line each.
// op=verify writes patterns, flushes, reads them back and compares. The line of a run: "bench: blk op=... size=...
// depth=... count=... ns=... iops=... kib_s=... p50_ns=... p99_ns=... doorbells=... interrupts=...".
#include "apic.h"
#include "guest.h"
#include "timer.h"
#include "virtio-blk.h"

#define DISK_VECTOR VECTOR_COUNTED
#define SAMPLES 65536

static struct blk disk;
static uint8_t *buffers;
static uint64_t size, depth, count, span_requests, issued, completed, doorbells, flush_every, run_ns;
static uint64_t started[BLK_SLOTS_MAX], request_number[BLK_SLOTS_MAX];
static uint32_t *latency; // in ns, the first SAMPLES requests
static bool in_order;

static uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

static uint64_t place_of(uint64_t n) { return (in_order ? n : mix(n + 1)) % span_requests; }

static uint64_t pattern(uint64_t place, uint64_t word) { return mix(place << 20 | word); }

static void issue(uint16_t slot, uint32_t type) {
  uint64_t n = issued++, place = place_of(n);
  uint8_t *buffer = buffers + slot * size;
  uint64_t *words = (uint64_t *)buffer;
  if (type == BLK_OUT)
    for (uint64_t i = 0; i < size / 8; i += 64) words[i] = pattern(place, i);
  request_number[slot] = n;
  started[slot] = rdtsc();
  blk_submit(&disk, slot, type, place * (size / 512), buffer, (uint32_t)size);
}

static void check_read(uint16_t slot) {
  uint64_t place = place_of(request_number[slot]);
  uint64_t *words = (uint64_t *)(buffers + slot * size);
  for (uint64_t i = 0; i < size / 8; i += 64)
    if (words[i] != pattern(place, i)) fail("sector %lu word %lu holds 0x%lx", place * (size / 512), i, words[i]);
}

// A flush uses the slot behind the data slots; nothing else waits for it.
static void run(uint32_t type, bool compare) {
  uint16_t slot;
  uint8_t status;
  uint64_t since_flush = 0;
  bool flushing = false;
  issued = completed = 0;
  uint64_t begin = rdtsc();
  for (uint16_t i = 0; i < depth && issued < count; i++) issue(i, type);
  doorbells += virtq_kick(&disk.queue);
  while (completed < count) {
    bool added = false;
    while (blk_take(&disk, &slot, &status)) {
      if (status) fail("request %lu: status %u", request_number[slot], status);
      if (slot == depth) {
        flushing = false;
        continue;
      }
      if (completed < SAMPLES) latency[completed] = (uint32_t)tsc_to_ns(rdtsc() - started[slot]);
      completed++;
      if (run_ns && tsc_to_ns(rdtsc() - begin) >= run_ns) count = issued;
      if (compare) check_read(slot);
      if (flush_every && type == BLK_OUT && ++since_flush >= flush_every && !flushing && disk.can_flush) {
        since_flush = 0;
        flushing = true;
        added = true;
        blk_submit(&disk, (uint16_t)depth, BLK_FLUSH, 0, 0, 0);
      }
      if (issued < count) {
        issue(slot, type);
        added = true;
      }
    }
    if (added) doorbells += virtq_kick(&disk.queue);
    else if (completed < count) blk_wait(&disk);
  }
  while (flushing) {
    if (blk_take(&disk, &slot, &status)) flushing = false;
    else blk_wait(&disk);
  }
}

static void sort(uint32_t *v, uint64_t n) { // shell sort
  for (uint64_t gap = n / 2; gap; gap /= 2)
    for (uint64_t i = gap; i < n; i++)
      for (uint64_t k = i; k >= gap && v[k - gap] > v[k]; k -= gap) {
        uint32_t t = v[k];
        v[k] = v[k - gap];
        v[k - gap] = t;
      }
}

int main(void) {
  const char *op = option("op", "read");
  size = option_number("size", 4096) & ~511ul;
  depth = option_number("depth", 1);
  count = option_number("count", 2000);
  flush_every = option_number("flush", 0);
  in_order = option_is("order", "seq");
  lapic_init();
  if (!blk_open(&disk, (uint32_t)option_number("disk", 0), option_is("wait", "poll") ? 0 : DISK_VECTOR)) fail("no virtio-blk disk");
  uint64_t span = option_number("span", disk.sectors * 512);
  if (span > disk.sectors * 512) span = disk.sectors * 512;
  if (size == 0 || span < size || count == 0) fail("size, span or count is too small");
  span_requests = span / size;
  if (depth == 0 || depth >= disk.queue.slots) fail("depth must be 1 to %u", disk.queue.slots - 1);
  buffers = allocate(depth * size, 4096);
  latency = allocate(SAMPLES * sizeof *latency, 64);
  tsc_khz();
  print("blk: %lu sectors, %s%s, ready\n", disk.sectors, disk.read_only ? "read-only" : "writable", disk.can_flush ? ", cache" : "");

  if (strcmp(op, "verify") == 0) {
    if (span_requests < count) count = span_requests;
    run(BLK_OUT, false);
    if (blk_flush(&disk)) fail("flush");
    run(BLK_IN, true);
    print("blk: %lu requests of %lu bytes verified\n", count, size);
    return 0;
  }
  bool writes = strcmp(op, "write") == 0;
  if (!writes && strcmp(op, "read")) fail("op=%s is not known", op);
  uint64_t requests = count, runs = option_number("runs", 1);
  run_ns = option_number("ms", 0) * 1000000;
  for (uint64_t n = 0; !runs || n < runs; n++) {
    doorbells = 0;
    count = run_ns ? ~0ul : requests;
    uint32_t interrupts = irq_counts[DISK_VECTOR];
    uint64_t start = rdtsc();
    run(writes ? BLK_OUT : BLK_IN, false);
    uint64_t ns = tsc_to_ns(rdtsc() - start);
    uint64_t samples = count < SAMPLES ? count : SAMPLES;
    sort(latency, samples);
    print("bench: blk op=%s size=%lu depth=%lu count=%lu ns=%lu iops=%lu kib_s=%lu p50_ns=%u p99_ns=%u doorbells=%lu interrupts=%u\n",
          op, size, depth, count, ns, count * 1000000000 / ns, (count * size >> 10) * 1000000000 / ns, latency[samples / 2],
          latency[samples * 99 / 100], doorbells, irq_counts[DISK_VECTOR] - interrupts);
  }
  return 0;
}
