#include "virtio-blk.h"

#include "guest.h"

#define F_RO 5
#define F_FLUSH 9

bool blk_open(struct blk *b, uint32_t index, uint8_t vector) {
  if (!virtio_open(&b->device, VIRTIO_BLK, index, 1ul << F_RO | 1ul << F_FLUSH | 1ul << VIRTIO_F_EVENT_IDX)) return false;
  b->vector = b->device.pci.msix_table ? vector : 0;
  b->read_only = virtio_has(&b->device, F_RO);
  b->can_flush = virtio_has(&b->device, F_FLUSH);
  b->sectors = mmio_read32(b->device.config) | (uint64_t)mmio_read32(b->device.config + 4) << 32;
  virtq_open(&b->device, &b->queue, 0, 256, 3, b->vector);
  if (b->queue.slots > BLK_SLOTS_MAX) b->queue.slots = BLK_SLOTS_MAX;
  b->requests = allocate(sizeof *b->requests * b->queue.slots, 64);
  virtio_start(&b->device);
  return true;
}

void blk_submit(struct blk *b, uint16_t slot, uint32_t type, uint64_t sector, void *data, uint32_t bytes) {
  struct blk_request *r = &b->requests[slot];
  r->type = type;
  r->reserved = 0;
  r->sector = sector;
  r->status = 0xff;
  r->busy = true;
  bool reads = type == BLK_IN || type == BLK_GET_ID;
  struct virtq_segment s[3] = {{r, 16}, {data, bytes}, {(void *)&r->status, 1}};
  if (bytes == 0) s[1] = s[2];
  virtq_add(&b->queue, slot, s, bytes == 0 || reads ? 1 : 2, (uint16_t)(bytes && reads ? 2 : 1));
}

bool blk_take(struct blk *b, uint16_t *slot, uint8_t *status) {
  uint32_t length;
  if (!virtq_take(&b->queue, slot, &length)) return false;
  struct blk_request *r = &b->requests[*slot];
  if (!r->busy) fail("the disk completed request %u twice", *slot);
  r->busy = false;
  *status = r->status;
  return true;
}

void blk_wait(struct blk *b) {
  if (!b->vector) pause();
  else if (!virtq_arm(&b->queue)) halt();
}

uint8_t blk_do(struct blk *b, uint32_t type, uint64_t sector, void *data, uint32_t bytes) {
  uint16_t slot;
  uint8_t status;
  blk_submit(b, 0, type, sector, data, bytes);
  virtq_kick(&b->queue);
  while (!blk_take(b, &slot, &status)) blk_wait(b);
  return status;
}

uint8_t blk_flush(struct blk *b) { return b->can_flush ? blk_do(b, BLK_FLUSH, 0, 0, 0) : 0; }
