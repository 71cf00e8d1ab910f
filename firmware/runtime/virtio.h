// VIRTIO 1.2 over PCI, modern interface only: transport (4.1) and split virtqueues (2.7).
#ifndef VIRTIO_H
#define VIRTIO_H
#include "pci.h"

#define VIRTIO_NET 1
#define VIRTIO_BLK 2
#define VIRTIO_RNG 4

#define VIRTIO_F_INDIRECT_DESC 28
#define VIRTIO_F_EVENT_IDX 29
#define VIRTIO_F_VERSION_1 32

struct virtio {
  struct pci_device pci;
  uint64_t common, notify, isr, config; // addresses of the structures (4.1.4)
  uint32_t notify_multiplier;
  uint64_t features; // negotiated
};

struct virtq_desc {
  uint64_t address;
  uint32_t length;
  uint16_t flags, next;
};
#define VIRTQ_NEXT 1
#define VIRTQ_WRITE 2

struct virtq_used_elem {
  uint32_t id, length;
};

// A queue whose descriptors are cut into slots of equal size: request s owns descriptors [s * segments, (s + 1) * segments).
struct virtq {
  struct virtio *device;
  uint16_t index, size, segments, slots;
  struct virtq_desc *desc;
  volatile uint16_t *avail; // flags, idx, ring[size], used_event
  volatile uint16_t *used;  // flags, idx, then ring
  volatile struct virtq_used_elem *used_ring;
  uint64_t doorbell;
  uint16_t next_avail, kicked, next_used;
  bool event_index;
};

struct virtq_segment {
  void *address;
  uint32_t length;
};

static inline bool virtio_has(const struct virtio *v, unsigned bit) { return v->features >> bit & 1; }
static inline bool virtq_done(const struct virtq *q) { return q->used[1] != q->next_used; }

// Opens the index-th device of a type and negotiates `wanted` (a set of bits) & offered | VERSION_1. False where there
// is none; a device that does not do what the specification says fails the guest.
bool virtio_open(struct virtio *v, uint16_t type, uint32_t index, uint64_t wanted);
// Sets a queue up, with at most `size_max` descriptors; vector 0 polls, else MSI-X entry `index` raises it on this CPU.
void virtq_open(struct virtio *v, struct virtq *q, uint16_t index, uint16_t size_max, uint16_t segments, uint8_t vector);
void virtio_start(struct virtio *v); // DRIVER_OK
void virtio_reset(struct virtio *v);

// Puts a request into a slot that the caller knows to be free; `out` readable segments come before `in` writable ones.
void virtq_add(struct virtq *q, uint16_t slot, const struct virtq_segment *segments, uint16_t out, uint16_t in);
// Tells the device about what was added, unless it asked not to be told. True if the doorbell rang.
bool virtq_kick(struct virtq *q);
// Takes one completion: its slot and the bytes written.
bool virtq_take(struct virtq *q, uint16_t *slot, uint32_t *length);
// Asks for an interrupt at the next completion; true if one has come meanwhile (do not sleep then).
bool virtq_arm(struct virtq *q);
// Asks for no interrupts until virtq_arm().
void virtq_disarm(struct virtq *q);

#endif
