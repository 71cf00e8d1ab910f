// virtio-net (VIRTIO 1.2, 5.1): one receive and one transmit queue; with offloads mergeable buffers, TSO and the MTU that the device names.
#include "guest.h"
#include "nic.h"

#define F_CSUM 0
#define F_GUEST_CSUM 1
#define F_MTU 3
#define F_MAC 5
#define F_GUEST_TSO4 7
#define F_HOST_TSO4 11
#define F_MRG_RXBUF 15
#define CONFIG_MTU 10
#define BUFFER_BYTES 2048
#define RING 256

struct PACKED header { // 5.1.6
  uint8_t flags, gso_type;
  uint16_t header_bytes, gso_bytes, checksum_start, checksum_offset, buffers;
};
#define NEEDS_CHECKSUM 1
#define GSO_TCPV4 1

struct virtio_net {
  struct virtio device;
  struct virtq rx, tx;
  uint8_t *rx_buffers, *tx_buffers, *assembled;
  uint16_t held[40], held_count; // slots of the frame that receive() returned
  uint16_t free_tx[RING], free_tx_count;
  uint32_t tx_bytes; // of a transmit buffer
};

static void give(struct virtio_net *n, uint16_t slot) {
  struct virtq_segment s = {n->rx_buffers + (uint32_t)slot * BUFFER_BYTES, BUFFER_BYTES};
  virtq_add(&n->rx, slot, &s, 0, 1);
}

static bool take_slot(struct virtio_net *n, uint32_t *length) {
  return n->held_count < COUNT_OF(n->held) && virtq_take(&n->rx, &n->held[n->held_count], length) && ++n->held_count;
}

static uint8_t *receive(struct nic *nic, uint32_t *bytes) {
  struct virtio_net *n = nic->state;
  uint32_t length;
  n->held_count = 0;
  if (!take_slot(n, &length)) return 0;
  nic->received++;
  const struct header *h = (const struct header *)(n->rx_buffers + (uint32_t)n->held[0] * BUFFER_BYTES);
  uint8_t *data = (uint8_t *)(h + 1);
  *bytes = length > sizeof *h ? length - (uint32_t)sizeof *h : 0;
  uint16_t buffers = virtio_has(&n->device, F_MRG_RXBUF) ? h->buffers : 1;
  if (buffers <= 1) return data;
  memcpy(n->assembled, data, *bytes);
  while (n->held_count < buffers) {
    if (!take_slot(n, &length)) fail("virtio-net announced %u buffers and used %u", buffers, n->held_count);
    if (*bytes + length > BIG_FRAME_MAX) fail("virtio-net delivered a frame of more than %u bytes", *bytes + length);
    memcpy(n->assembled + *bytes, n->rx_buffers + (uint32_t)n->held[n->held_count - 1] * BUFFER_BYTES, length);
    *bytes += length;
  }
  return n->assembled;
}

static void release(struct nic *nic) {
  struct virtio_net *n = nic->state;
  for (uint16_t i = 0; i < n->held_count; i++) give(n, n->held[i]);
  virtq_kick(&n->rx);
}

static void reclaim(struct virtio_net *n) {
  uint16_t slot;
  uint32_t length;
  while (virtq_take(&n->tx, &slot, &length)) n->free_tx[n->free_tx_count++] = slot;
}

static bool room(struct nic *nic) {
  struct virtio_net *n = nic->state;
  if (n->free_tx_count == 0) reclaim(n);
  return n->free_tx_count > 0;
}

static bool free_slot(struct nic *nic, uint16_t *slot) {
  struct virtio_net *n = nic->state;
  if (!room(nic)) {
    nic->dropped++;
    return false;
  }
  *slot = n->free_tx[--n->free_tx_count];
  nic->sent++;
  return true;
}

static bool queue(struct nic *nic, const void *frame, uint32_t bytes) {
  struct virtio_net *n = nic->state;
  uint16_t slot;
  if (bytes > n->tx_bytes - sizeof(struct header) || !free_slot(nic, &slot)) return false;
  struct header *h = (struct header *)(n->tx_buffers + (uint32_t)slot * n->tx_bytes);
  *h = (struct header){0};
  memcpy(h + 1, frame, bytes);
  struct virtq_segment s = {h, (uint32_t)sizeof *h + bytes};
  virtq_add(&n->tx, slot, &s, 1, 0);
  return true;
}

static bool queue_big(struct nic *nic, const void *frame, uint32_t bytes, uint16_t mss) {
  struct virtio_net *n = nic->state;
  uint16_t slot;
  if (!free_slot(nic, &slot)) return false;
  struct header *h = (struct header *)(n->tx_buffers + (uint32_t)slot * n->tx_bytes);
  *h = (struct header){.flags = NEEDS_CHECKSUM, .gso_type = GSO_TCPV4, .header_bytes = 54, .gso_bytes = mss, .checksum_start = 34, .checksum_offset = 16};
  struct virtq_segment s[2] = {{h, sizeof *h}, {(void *)(uint64_t)frame, bytes}};
  virtq_add(&n->tx, slot, s, 2, 0);
  return true;
}

static void flush(struct nic *nic) { nic->doorbells += virtq_kick(&((struct virtio_net *)nic->state)->tx); }

static bool idle(struct nic *nic) {
  struct virtio_net *n = nic->state;
  reclaim(n);
  return n->free_tx_count == n->tx.slots;
}

static bool arm(struct nic *nic) { return !nic->vector || virtq_arm(&((struct virtio_net *)nic->state)->rx); }

bool virtio_net_open(struct nic *nic, uint32_t index, uint8_t vector, bool offloads) {
  struct virtio_net *n = allocate(sizeof *n, 64);
  uint64_t wanted = 1ul << F_MAC | 1ul << VIRTIO_F_EVENT_IDX;
  if (offloads) wanted |= 1ul << F_CSUM | 1ul << F_HOST_TSO4 | 1ul << F_GUEST_CSUM | 1ul << F_GUEST_TSO4 | 1ul << F_MRG_RXBUF | 1ul << F_MTU;
  if (!virtio_open(&n->device, VIRTIO_NET, index, wanted)) return false;
  *nic = (struct nic){.model = "virtio-net", .state = n, .receive = receive, .release = release, .queue = queue};
  nic->room = room, nic->queue_big = queue_big, nic->flush = flush, nic->idle = idle, nic->arm = arm;
  nic->can_segment = virtio_has(&n->device, F_HOST_TSO4) && virtio_has(&n->device, F_CSUM);
  nic->vector = n->device.pci.msix_table ? vector : 0;
  static const uint8_t fallback[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
  for (uint32_t i = 0; i < 6; i++) nic->mac[i] = virtio_has(&n->device, F_MAC) ? mmio_read8(n->device.config + i) : fallback[i];
  virtq_open(&n->device, &n->rx, 0, RING, 1, nic->vector);
  virtq_open(&n->device, &n->tx, 1, RING, 2, 0);
  n->rx_buffers = allocate((uint32_t)n->rx.slots * BUFFER_BYTES, 4096);
  // A driver that takes the MTU supplies buffers for such frames (5.1.4.2): merged ones are large enough.
  uint32_t mtu = virtio_has(&n->device, F_MTU) ? mmio_read16(n->device.config + CONFIG_MTU) : 1500;
  nic->frame_max = 14 + mtu > JUMBO_MAX ? JUMBO_MAX : 14 + mtu;
  n->tx_bytes = nic->frame_max > FRAME_MAX ? 10240 : BUFFER_BYTES;
  n->tx_buffers = allocate((uint32_t)n->tx.slots * n->tx_bytes, 4096);
  n->assembled = allocate(BIG_FRAME_MAX, 4096);
  for (uint16_t i = 0; i < n->tx.slots; i++) n->free_tx[n->free_tx_count++] = i;
  virtio_start(&n->device);
  for (uint16_t i = 0; i < n->rx.slots; i++) give(n, i);
  virtq_kick(&n->rx);
  return true;
}
