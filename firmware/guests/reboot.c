// Test guest: resets the machine while its disk works, and looks in its next life whether anything of the last one came late.
//
// Options: boots=N (4) depth=N (16) requests of size=SIZE (4K) in flight at a reset, settle=MS (200) that a life waits for late ones.
// Sector 0 counts the lives. Each life fills the memory into which the last one's reads were to go, writes its own pattern over what
// the last one's writes were to change, waits, and compares both; then it starts reads and writes and resets in their midst.
#include "acpi.h"
#include "guest.h"
#include "timer.h"
#include "virtio-blk.h"

#define CANARY 0xa5a5c0dea5a5c0deul

static struct blk disk;
static uint64_t size, depth;
static uint64_t *targets, *sources; // of the reads; of the writes

static uint64_t pattern(uint64_t life, uint64_t place, uint64_t word) { return life << 48 | place << 24 | word; }

static uint64_t *piece(uint64_t *of, uint64_t slot) { return of + slot * size / 8; }

// Places of the writes lie behind those of the reads, all of them behind the first 64 KiB.
static uint64_t sector_of(uint64_t place) { return 128 + place * (size / 512); }

static void wait_all(uint64_t count) {
  uint16_t slot;
  uint8_t status;
  while (count > 0) {
    if (!blk_take(&disk, &slot, &status)) continue;
    if (status) fail("slot %u: status %u", slot, status);
    count--;
  }
}

static void fill(uint64_t life) {
  for (uint64_t i = 0; i < depth; i++)
    for (uint64_t w = 0; w < size / 8; w++) piece(sources, i)[w] = pattern(life, i, w);
}

static void transfer(uint32_t type, uint64_t *buffers, uint64_t first_place) {
  for (uint16_t i = 0; i < depth; i++) blk_submit(&disk, i, type, sector_of(first_place + i), piece(buffers, i), (uint32_t)size);
  virtq_kick(&disk.queue);
  wait_all(depth);
}

int main(void) {
  uint64_t boots = option_number("boots", 4);
  depth = option_number("depth", 16);
  size = option_number("size", 4096) & ~511ul;
  if (!blk_open(&disk, 0, 0)) fail("no virtio-blk disk");
  if (depth == 0 || 2 * depth >= disk.queue.slots) fail("depth must be 1 to %u", disk.queue.slots / 2 - 1);
  if (sector_of(2 * depth) > disk.sectors) fail("the disk is too small");
  targets = allocate(depth * size, 4096);
  sources = allocate(depth * size, 4096);
  uint64_t *counter = allocate(512, 512);
  for (uint64_t w = 0; w < depth * size / 8; w++) targets[w] = CANARY;
  if (blk_do(&disk, BLK_IN, 0, counter, 512)) fail("sector 0");
  uint64_t life = counter[0] + 1;
  print("reboot: life %lu\n", life);

  fill(life);
  transfer(BLK_OUT, sources, depth);
  if (blk_flush(&disk)) fail("flush");
  delay_us(option_number("settle", 200) * 1000);
  for (uint64_t w = 0; w < depth * size / 8; w++)
    if (targets[w] != CANARY) fail("life %lu: a late read wrote to memory: word %lu is 0x%lx", life, w, targets[w]);
  transfer(BLK_IN, targets, depth);
  for (uint64_t i = 0; i < depth; i++)
    for (uint64_t w = 0; w < size / 8; w++)
      if (piece(targets, i)[w] != pattern(life, i, w))
        fail("life %lu: a late write: place %lu word %lu is 0x%lx", life, i, w, piece(targets, i)[w]);
  if (life > boots) {
    print("reboot: %lu resets verified\n", boots);
    return 0;
  }

  counter[0] = life;
  if (blk_do(&disk, BLK_OUT, 0, counter, 512) || blk_flush(&disk)) fail("sector 0");
  fill(life | 0x80);
  for (uint16_t i = 0; i < depth; i++) {
    blk_submit(&disk, i, BLK_IN, sector_of(i), piece(targets, i), (uint32_t)size);
    blk_submit(&disk, (uint16_t)(depth + i), BLK_OUT, sector_of(depth + i), piece(sources, i), (uint32_t)size);
  }
  virtq_kick(&disk.queue);
  acpi_reset();
  for (;;) delay_us(1000);
}
