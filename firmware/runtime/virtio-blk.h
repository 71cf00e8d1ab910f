// virtio-blk (VIRTIO 1.2, 5.2): many requests in flight, or one at a time.
#ifndef VIRTIO_BLK_H
#define VIRTIO_BLK_H
#include "virtio.h"

#define BLK_IN 0
#define BLK_OUT 1
#define BLK_FLUSH 4
#define BLK_GET_ID 8
#define BLK_DISCARD 11
#define BLK_WRITE_ZEROES 13
#define BLK_SLOTS_MAX 128

struct blk {
  struct virtio device;
  struct virtq queue;
  uint64_t sectors; // of 512 bytes
  bool read_only, can_flush;
  uint8_t vector; // 0: polled
  struct blk_request {
    uint32_t type, reserved;
    uint64_t sector;
    volatile uint8_t status;
    bool busy;
  } *requests; // by slot
};

// Opens the index-th disk; vector 0 polls.
bool blk_open(struct blk *b, uint32_t index, uint8_t vector);
// Starts a request in a free slot; kick with virtq_kick(&b->queue).
void blk_submit(struct blk *b, uint16_t slot, uint32_t type, uint64_t sector, void *data, uint32_t bytes);
// Takes one completion; its status (0 is good) is in *status.
bool blk_take(struct blk *b, uint16_t *slot, uint8_t *status);
// Passes time until a completion may have come: halted where the disk has a vector, with interrupts off before and after.
void blk_wait(struct blk *b);
// One request, waited for. Returns the status. Nothing else may be in flight.
uint8_t blk_do(struct blk *b, uint32_t type, uint64_t sector, void *data, uint32_t bytes);
uint8_t blk_flush(struct blk *b); // 0 at once where the device has no volatile cache

#endif
