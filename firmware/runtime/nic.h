// A network card, whichever it is: virtio-net or e1000.
#ifndef NIC_H
#define NIC_H
#include "virtio.h"

#define FRAME_MAX 1514 // with an MTU of 1500
#define JUMBO_MAX 9014 // for cards whose network takes such frames
#define BIG_FRAME_MAX 65549 // an Ethernet header and the largest IPv4 packet

struct nic {
  const char *model;
  uint8_t mac[6];
  uint8_t vector; // raised for received frames; 0: poll
  bool can_segment, pseudo_without_length;
  uint32_t frame_max; // largest frame to send, FRAME_MAX to JUMBO_MAX
  void *state; // the driver's
  uint64_t sent, received, dropped, doorbells;
  // The next received frame, valid until release(); NULL where there is none.
  uint8_t *(*receive)(struct nic *nic, uint32_t *bytes);
  void (*release)(struct nic *nic);
  bool (*room)(struct nic *nic); // for one more frame
  // Puts a copy of a frame into the transmit ring; false if it is full. flush() makes the card look.
  bool (*queue)(struct nic *nic, const void *frame, uint32_t bytes);
  // The same for a TCP/IPv4 frame of up to BIG_FRAME_MAX bytes that the card cuts into segments of mss bytes. Not copied:
  // it must not change until idle(). Its TCP checksum field holds the sum over the pseudo header, in which the length is
  // 0 where pseudo_without_length says so.
  bool (*queue_big)(struct nic *nic, const void *frame, uint32_t bytes, uint16_t mss);
  void (*flush)(struct nic *nic);
  bool (*idle)(struct nic *nic); // everything queued has been sent
  // Asks for an interrupt at the next frame; true if one is there already.
  bool (*arm)(struct nic *nic);
};

// Opens the index-th card, virtio-net first, then e1000; false where there is none. `offloads` asks for segmentation of
// what is sent and lets the card hand over merged frames larger than FRAME_MAX with unverified checksums.
bool nic_open(struct nic *nic, uint32_t index, uint8_t vector, bool offloads);
bool virtio_net_open(struct nic *nic, uint32_t index, uint8_t vector, bool offloads);
bool e1000_open(struct nic *nic, uint32_t index, uint8_t vector, bool offloads);

static inline bool nic_send(struct nic *nic, const void *frame, uint32_t bytes) {
  bool queued = nic->queue(nic, frame, bytes);
  nic->flush(nic);
  return queued;
}

#endif
