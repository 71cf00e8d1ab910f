#include "virtio.h"

#include "apic.h"
#include "guest.h"

// VIRTIO 1.2, 4.1.4.3: common configuration.
#define DEVICE_FEATURE_SELECT 0x00
#define DEVICE_FEATURE 0x04
#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURE 0x0c
#define CONFIG_MSIX_VECTOR 0x10
#define DEVICE_STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_MSIX_VECTOR 0x1a
#define QUEUE_ENABLE 0x1c
#define QUEUE_NOTIFY_OFF 0x1e
#define QUEUE_DESC 0x20
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30

// 2.1: device status.
#define ACKNOWLEDGE 1
#define DRIVER 2
#define DRIVER_OK 4
#define FEATURES_OK 8

static void find_structures(struct virtio *v) {
  for (uint8_t cap = pci_capability(&v->pci, PCI_CAP_VENDOR, 0); cap; cap = pci_capability(&v->pci, PCI_CAP_VENDOR, cap)) {
    uint8_t type = pci_read8(v->pci.address, (uint8_t)(cap + 3)), bar = pci_read8(v->pci.address, (uint8_t)(cap + 4));
    if (bar > 5 || !v->pci.bar_size[bar] || v->pci.bar_is_port[bar]) continue;
    uint64_t at = v->pci.bar[bar] + pci_read(v->pci.address, (uint8_t)(cap + 8));
    if (type == 1 && !v->common) v->common = at;
    if (type == 2 && !v->notify) {
      v->notify = at;
      v->notify_multiplier = pci_read(v->pci.address, (uint8_t)(cap + 16));
    }
    if (type == 3 && !v->isr) v->isr = at;
    if (type == 4 && !v->config) v->config = at;
  }
}

void virtio_reset(struct virtio *v) {
  mmio_write8(v->common + DEVICE_STATUS, 0);
  while (mmio_read8(v->common + DEVICE_STATUS)) pause();
}

bool virtio_open(struct virtio *v, uint16_t type, uint32_t index, uint64_t wanted) {
  memset(v, 0, sizeof *v);
  uint16_t transitional = type == VIRTIO_NET ? 0x1000 : type == VIRTIO_BLK ? 0x1001 : type == VIRTIO_RNG ? 0x1005 : 0x1040;
  if (!pci_open(&v->pci, 0x1af4, (uint16_t)(0x1040 + type), transitional, index)) return false;
  find_structures(v);
  if (!v->common || !v->notify) fail("virtio device %u has no modern interface", type);
  virtio_reset(v);
  mmio_write8(v->common + DEVICE_STATUS, ACKNOWLEDGE);
  mmio_write8(v->common + DEVICE_STATUS, ACKNOWLEDGE | DRIVER);
  for (uint32_t half = 0; half < 2; half++) {
    mmio_write32(v->common + DEVICE_FEATURE_SELECT, half);
    v->features |= (uint64_t)mmio_read32(v->common + DEVICE_FEATURE) << 32 * half;
  }
  v->features &= wanted | 1ul << VIRTIO_F_VERSION_1;
  if (!virtio_has(v, VIRTIO_F_VERSION_1)) fail("virtio device %u does not offer VERSION_1", type);
  for (uint32_t half = 0; half < 2; half++) {
    mmio_write32(v->common + DRIVER_FEATURE_SELECT, half);
    mmio_write32(v->common + DRIVER_FEATURE, (uint32_t)(v->features >> 32 * half));
  }
  mmio_write8(v->common + DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
  if (!(mmio_read8(v->common + DEVICE_STATUS) & FEATURES_OK)) fail("virtio device %u refused its own features", type);
  if (v->pci.msix_table) {
    lapic_init();
    pci_msix_enable(&v->pci);
  }
  mmio_write16(v->common + CONFIG_MSIX_VECTOR, 0xffff);
  return true;
}

static void write64(uint64_t at, uint64_t value) {
  mmio_write32(at, (uint32_t)value);
  mmio_write32(at + 4, (uint32_t)(value >> 32));
}

void virtq_open(struct virtio *v, struct virtq *q, uint16_t index, uint16_t size_max, uint16_t segments, uint8_t vector) {
  memset(q, 0, sizeof *q);
  mmio_write16(v->common + QUEUE_SELECT, index);
  uint16_t size = mmio_read16(v->common + QUEUE_SIZE);
  if (size == 0) fail("virtqueue %u does not exist", index);
  if (size > size_max) size = size_max;
  mmio_write16(v->common + QUEUE_SIZE, size);
  q->device = v;
  q->index = index;
  q->size = size;
  q->segments = segments;
  q->slots = size / segments;
  q->event_index = virtio_has(v, VIRTIO_F_EVENT_IDX);
  q->desc = allocate(16ul * size, 4096);
  q->avail = allocate(6 + 2ul * size, 64);
  q->used = allocate(6 + 8ul * size, 64);
  q->used_ring = (volatile struct virtq_used_elem *)(q->used + 2);
  for (uint16_t i = 0; i < size; i++) q->desc[i].next = (uint16_t)(i + 1);
  if (v->pci.msix_table) {
    uint16_t entry = vector && index < v->pci.msix_entries ? index : 0xffff;
    if (entry != 0xffff) pci_msix_route(&v->pci, entry, vector, lapic_id());
    mmio_write16(v->common + QUEUE_MSIX_VECTOR, entry);
    if (mmio_read16(v->common + QUEUE_MSIX_VECTOR) != entry) fail("virtqueue %u refused MSI-X entry %u", index, entry);
  }
  q->doorbell = v->notify + (uint64_t)mmio_read16(v->common + QUEUE_NOTIFY_OFF) * v->notify_multiplier;
  write64(v->common + QUEUE_DESC, (uint64_t)q->desc);
  write64(v->common + QUEUE_DRIVER, (uint64_t)q->avail);
  write64(v->common + QUEUE_DEVICE, (uint64_t)q->used);
  mmio_write16(v->common + QUEUE_ENABLE, 1);
  if (!vector) virtq_disarm(q);
}

void virtio_start(struct virtio *v) {
  mmio_write8(v->common + DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

void virtq_add(struct virtq *q, uint16_t slot, const struct virtq_segment *segments, uint16_t out, uint16_t in) {
  uint16_t head = (uint16_t)(slot * q->segments), n = (uint16_t)(out + in);
  for (uint16_t i = 0; i < n; i++) {
    struct virtq_desc *d = &q->desc[head + i];
    d->address = (uint64_t)segments[i].address;
    d->length = segments[i].length;
    d->flags = (uint16_t)((i >= out ? VIRTQ_WRITE : 0) | (i + 1 < n ? VIRTQ_NEXT : 0));
  }
  q->avail[2 + (q->next_avail & (q->size - 1))] = head;
  q->next_avail++;
}

bool virtq_kick(struct virtq *q) {
  uint16_t before = q->kicked;
  barrier();
  q->avail[1] = q->next_avail;
  q->kicked = q->next_avail;
  fence();
  if (q->event_index) { // 2.7.10: only if the device's avail_event was passed
    uint16_t event = ((volatile uint16_t *)(q->used_ring + q->size))[0];
    if ((uint16_t)(q->next_avail - event - 1) >= (uint16_t)(q->next_avail - before)) return false;
  } else if (q->used[0] & 1) {
    return false;
  }
  mmio_write16(q->doorbell, q->index);
  return true;
}

bool virtq_take(struct virtq *q, uint16_t *slot, uint32_t *length) {
  if (!virtq_done(q)) return false;
  barrier();
  volatile struct virtq_used_elem *e = &q->used_ring[q->next_used & (q->size - 1)];
  if (e->id >= q->size || e->id % q->segments) fail("virtqueue %u completed descriptor %u", q->index, e->id);
  *slot = (uint16_t)(e->id / q->segments);
  *length = e->length;
  q->next_used++;
  return true;
}

bool virtq_arm(struct virtq *q) {
  if (q->event_index) q->avail[2 + q->size] = q->next_used;
  else q->avail[0] = 0;
  fence();
  return virtq_done(q);
}

void virtq_disarm(struct virtq *q) {
  if (q->event_index) q->avail[2 + q->size] = (uint16_t)(q->next_used - 1);
  else q->avail[0] = 1;
}
