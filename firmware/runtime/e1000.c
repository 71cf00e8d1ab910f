// e1000 (82540EM; "8254x SDM" is the PCI/PCI-X Family Software Developer's Manual): legacy descriptors, and
// TSO with extended ones; one ring each way; interrupts by INTx.
#include "acpi.h"
#include "apic.h"
#include "guest.h"
#include "nic.h"

// 8254x SDM, 13.3: registers.
#define CTRL 0x0000
#define EERD 0x0014
#define ICR 0x00c0
#define IMS 0x00d0
#define IMC 0x00d8
#define RCTL 0x0100
#define TCTL 0x0400
#define TIPG 0x0410
#define RDBAL 0x2800
#define RDH 0x2810
#define RDT 0x2818
#define TDBAL 0x3800
#define TDH 0x3810
#define TDT 0x3818
#define MTA 0x5200
#define RAL 0x5400
#define RAH 0x5404

#define RING 256
#define BUFFER_BYTES 2048
#define DONE 1
// Command bits of transmit descriptors.
#define EOP 0x01
#define IFCS 0x02
#define TSE 0x04
#define RS 0x08
#define DEXT 0x20
#define CAUSE_RXT0 0x80
#define CAUSE_RXO 0x40
#define CAUSE_RXDMT0 0x10

struct rx_desc {
  uint64_t address;
  uint16_t length, checksum;
  volatile uint8_t status;
  uint8_t errors;
  uint16_t special;
};
struct tx_desc {
  uint64_t address;
  uint16_t length;
  uint8_t checksum_offset, command;
  volatile uint8_t status;
  uint8_t checksum_start;
  uint16_t special;
};

struct e1000 {
  struct pci_device pci;
  uint64_t base;
  struct rx_desc *rx;
  struct tx_desc *tx;
  uint8_t *rx_buffers, *tx_buffers;
  uint32_t rx_next, tx_next, tx_told;
  uint8_t irq_count_vector;
};

static struct e1000 *interrupting; // INTx of one card is enough here

static uint32_t get(struct e1000 *e, uint32_t reg) { return mmio_read32(e->base + reg); }
static void set(struct e1000 *e, uint32_t reg, uint32_t v) { mmio_write32(e->base + reg, v); }

static void on_interrupt(uint64_t vector) {
  (void)vector;
  mmio_read32(interrupting->base + ICR); // reading clears and lowers the line
  irq_counts[interrupting->irq_count_vector]++;
  lapic_eoi();
}

static void place_ring(struct e1000 *e, uint32_t reg, void *ring) {
  set(e, reg, (uint32_t)(uint64_t)ring);
  set(e, reg + 4, (uint32_t)((uint64_t)ring >> 32));
  set(e, reg + 8, RING * 16);
  set(e, reg + 16, 0);
  set(e, reg + 24, 0);
}

static uint8_t *receive(struct nic *nic, uint32_t *bytes) {
  struct e1000 *e = nic->state;
  struct rx_desc *d = &e->rx[e->rx_next];
  if (!(d->status & DONE)) return 0;
  barrier();
  nic->received++;
  *bytes = d->errors || !(d->status & 2) ? 0 : d->length; // whole frames only
  return e->rx_buffers + e->rx_next * BUFFER_BYTES;
}

static void release(struct nic *nic) {
  struct e1000 *e = nic->state;
  e->rx[e->rx_next].status = 0;
  uint32_t freed = e->rx_next;
  e->rx_next = (freed + 1) % RING;
  // The tail never catches up with the head, and moves in steps to save exits.
  if (freed % 16 == 15 || !(e->rx[e->rx_next].status & DONE)) set(e, RDT, freed);
}

// One descriptor stays unused, so that a full ring does not look empty.
static bool free_for(struct e1000 *e, uint32_t descriptors) {
  for (uint32_t i = 0; i <= descriptors; i++)
    if (!(e->tx[(e->tx_next + i) % RING].status & DONE)) return false;
  return true;
}

static bool room(struct nic *nic) { return free_for(nic->state, 1); }

static bool take_room(struct nic *nic, uint32_t descriptors) {
  bool free = free_for(nic->state, descriptors);
  free ? nic->sent++ : nic->dropped++;
  return free;
}

static struct tx_desc *next_tx(struct e1000 *e) {
  struct tx_desc *d = &e->tx[e->tx_next];
  e->tx_next = (e->tx_next + 1) % RING;
  return d;
}

static bool queue(struct nic *nic, const void *frame, uint32_t bytes) {
  struct e1000 *e = nic->state;
  if (bytes > BUFFER_BYTES || !take_room(nic, 1)) return false;
  uint8_t *buffer = e->tx_buffers + e->tx_next * BUFFER_BYTES;
  memcpy(buffer, frame, bytes);
  *next_tx(e) = (struct tx_desc){.address = (uint64_t)buffer, .length = (uint16_t)bytes, .command = EOP | IFCS | RS};
  return true;
}

// 8254x SDM, 3.3.6 and 3.3.7: one context descriptor, then data descriptors of 4 KiB.
static bool queue_big(struct nic *nic, const void *frame, uint32_t bytes, uint16_t mss) {
  struct e1000 *e = nic->state;
  const uint64_t ip = 14, tcp = 34, payload = 54;
  uint32_t pieces = (bytes + 4095) / 4096;
  if (!take_room(nic, pieces + 1)) return false;
  volatile uint64_t *context = (volatile uint64_t *)next_tx(e);
  context[0] = ip | (ip + 10) << 8 | (tcp - 1) << 16 | tcp << 32 | (tcp + 16) << 40;
  context[1] = (bytes - payload) | (uint64_t)(DEXT | TSE | RS | 3) << 24 | payload << 40 | (uint64_t)mss << 48;
  for (uint32_t at = 0; at < bytes; at += 4096) {
    uint32_t n = bytes - at < 4096 ? bytes - at : 4096;
    volatile uint64_t *d = (volatile uint64_t *)next_tx(e);
    d[0] = (uint64_t)frame + at;
    d[1] = n | 1ul << 20 | (uint64_t)(DEXT | TSE | RS | IFCS | (at + n == bytes ? EOP : 0)) << 24 | 3ul << 40;
  }
  return true;
}

static void flush(struct nic *nic) {
  struct e1000 *e = nic->state;
  if (e->tx_next == e->tx_told) return;
  fence();
  set(e, TDT, e->tx_next);
  e->tx_told = e->tx_next;
  nic->doorbells++;
}

static bool idle(struct nic *nic) {
  struct e1000 *e = nic->state;
  for (uint32_t i = 0; i < RING; i++)
    if (!(e->tx[i].status & DONE)) return false;
  return true;
}

static bool arm(struct nic *nic) {
  struct e1000 *e = nic->state;
  return !nic->vector || e->rx[e->rx_next].status & DONE;
}

static void read_mac(struct e1000 *e, uint8_t mac[6]) {
  for (uint32_t word = 0; word < 3; word++) { // 8254x SDM, 13.4.4
    set(e, EERD, word << 8 | 1);
    uint32_t v;
    while (!((v = get(e, EERD)) & 0x10)) pause();
    mac[2 * word] = (uint8_t)(v >> 16);
    mac[2 * word + 1] = (uint8_t)(v >> 24);
  }
}

bool e1000_open(struct nic *nic, uint32_t index, uint8_t vector, bool offloads) {
  struct e1000 *e = allocate(sizeof *e, 64);
  if (!pci_open(&e->pci, 0x8086, 0x100e, 0x100e, index)) return false;
  e->base = e->pci.bar[0];
  set(e, IMC, 0xffffffff);
  set(e, CTRL, 1u << 26); // RST
  while (get(e, CTRL) & 1u << 26) pause();
  set(e, IMC, 0xffffffff);
  set(e, CTRL, 0x60); // ASDE, SLU
  *nic = (struct nic){.model = "e1000", .state = e, .receive = receive, .release = release, .queue = queue};
  nic->room = room, nic->queue_big = queue_big, nic->flush = flush, nic->idle = idle, nic->arm = arm;
  nic->can_segment = offloads;
  nic->pseudo_without_length = true;
  nic->frame_max = FRAME_MAX;
  read_mac(e, nic->mac);
  set(e, RAL, nic->mac[0] | nic->mac[1] << 8 | nic->mac[2] << 16 | (uint32_t)nic->mac[3] << 24);
  set(e, RAH, nic->mac[4] | nic->mac[5] << 8 | 1u << 31);
  for (uint32_t i = 0; i < 128; i++) set(e, MTA + 4 * i, 0);

  e->rx = allocate(RING * sizeof *e->rx, 4096);
  e->tx = allocate(RING * sizeof *e->tx, 4096);
  e->rx_buffers = allocate(RING * BUFFER_BYTES, 4096);
  e->tx_buffers = allocate(RING * BUFFER_BYTES, 4096);
  for (uint32_t i = 0; i < RING; i++) {
    e->rx[i].address = (uint64_t)(e->rx_buffers + i * BUFFER_BYTES);
    e->tx[i].status = DONE;
  }
  place_ring(e, RDBAL, e->rx);
  place_ring(e, TDBAL, e->tx);

  if (vector) {
    const struct acpi_madt_summary *m = acpi_madt();
    uint8_t gsi = pci_intx_gsi(&e->pci);
    nic->vector = vector;
    e->irq_count_vector = vector;
    interrupting = e;
    irq_handlers[VECTOR_IRQ + 1] = on_interrupt;
    lapic_init();
    ioapic_route(gsi, VECTOR_IRQ + 1, lapic_id(), gsi < 16 && m->isa_flags[gsi] ? m->isa_flags[gsi] : INTI_LEVEL_LOW);
    get(e, ICR);
    set(e, IMS, CAUSE_RXT0 | CAUSE_RXO | CAUSE_RXDMT0);
  }
  set(e, TIPG, 0x0060200a);
  set(e, TCTL, 0x0004010a); // EN, PSP, CT, COLD
  set(e, RCTL, 0x04008002); // EN, BAM, SECRC, 2048-byte buffers
  set(e, RDT, RING - 1);
  return true;
}
