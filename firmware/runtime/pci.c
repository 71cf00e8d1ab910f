#include "pci.h"

#include "guest.h"

uint32_t pci_read(uint16_t address, uint8_t reg) {
  outl(0xcf8, 1u << 31 | (uint32_t)address << 8 | (reg & 0xfc));
  return inl(0xcfc);
}

void pci_write(uint16_t address, uint8_t reg, uint32_t value) {
  outl(0xcf8, 1u << 31 | (uint32_t)address << 8 | (reg & 0xfc));
  outl(0xcfc, value);
}

uint16_t pci_read16(uint16_t address, uint8_t reg) { return (uint16_t)(pci_read(address, reg) >> (reg & 2) * 8); }
uint8_t pci_read8(uint16_t address, uint8_t reg) { return (uint8_t)(pci_read(address, reg) >> (reg & 3) * 8); }

void pci_write16(uint16_t address, uint8_t reg, uint16_t value) {
  outl(0xcf8, 1u << 31 | (uint32_t)address << 8 | (reg & 0xfc));
  outw((uint16_t)(0xcfc + (reg & 2)), value);
}

bool pci_scan(bool (*visit)(uint16_t address, uint32_t id, void *argument), void *argument) {
  for (uint16_t slot = 0; slot < 32; slot++) {
    uint16_t functions = 1;
    for (uint16_t f = 0; f < functions; f++) {
      uint16_t address = (uint16_t)(slot << 3 | f);
      uint32_t id = pci_read(address, 0);
      if ((id & 0xffff) == 0xffff) continue;
      if (f == 0 && pci_read8(address, 0x0e) & 0x80) functions = 8;
      if (visit(address, id, argument)) return true;
    }
  }
  return false;
}

// BARs that nobody placed: from here up, each aligned to its size. Boards place all of them or none.
static uint64_t next_memory = 0xd8000000, next_port = 0xd000;

static void open_bars(struct pci_device *d) {
  for (uint8_t i = 0; i < 6; i++) {
    uint8_t reg = (uint8_t)(0x10 + 4 * i);
    uint32_t low = pci_read(d->address, reg), high = 0;
    bool port = low & 1, wide = !port && (low & 6) == 4;
    uint32_t flags = low & (port ? 3 : 15);
    pci_write(d->address, reg, 0xffffffff);
    uint64_t mask = pci_read(d->address, reg) & ~(port ? 3u : 15u);
    if (mask == 0) {
      pci_write(d->address, reg, low);
      continue;
    }
    if (wide) {
      high = pci_read(d->address, (uint8_t)(reg + 4));
      pci_write(d->address, (uint8_t)(reg + 4), 0xffffffff);
      mask |= (uint64_t)pci_read(d->address, (uint8_t)(reg + 4)) << 32;
    } else {
      mask |= port ? ~0xfffful : 0xffffffff00000000;
    }
    if (port) mask |= ~0xfffful;
    uint64_t size = -mask, base = (low & ~(port ? 3u : 15u)) | (uint64_t)high << 32;
    if (base == 0) {
      uint64_t *next = port ? &next_port : &next_memory;
      base = (*next + size - 1) & -size;
      *next = base + size;
    }
    pci_write(d->address, reg, (uint32_t)base | flags);
    if (wide) pci_write(d->address, (uint8_t)(reg + 4), (uint32_t)(base >> 32));
    d->bar[i] = base;
    d->bar_size[i] = size;
    d->bar_is_port[i] = port;
    if (!port) map_identity(base, size, true);
    if (wide) i++;
  }
}

struct wanted {
  uint16_t vendor, device, other;
  uint32_t index;
  uint16_t found;
};

static bool matches(uint16_t address, uint32_t id, void *argument) {
  struct wanted *w = argument;
  uint16_t device = (uint16_t)(id >> 16);
  if ((id & 0xffff) != w->vendor || (device != w->device && device != w->other)) return false;
  w->found = address;
  return w->index-- == 0;
}

bool pci_open(struct pci_device *d, uint16_t vendor, uint16_t device, uint16_t other_device, uint32_t index) {
  struct wanted w = {vendor, device, other_device, index, 0};
  if (!pci_scan(matches, &w)) return false;
  *d = (struct pci_device){.address = w.found, .vendor = vendor, .device = pci_read16(w.found, 2)};
  d->class_code = pci_read(d->address, 8) >> 8;
  d->interrupt_line = pci_read8(d->address, 0x3c);
  uint16_t command = pci_read16(d->address, 4);
  pci_write16(d->address, 4, command & ~3);
  open_bars(d);
  pci_write16(d->address, 4, command | 7);
  uint8_t cap = pci_capability(d, PCI_CAP_MSIX, 0);
  if (cap) {
    uint32_t table = pci_read(d->address, (uint8_t)(cap + 4));
    d->msix_entries = (pci_read16(d->address, (uint8_t)(cap + 2)) & 0x7ff) + 1;
    d->msix_table = d->bar[table & 7] + (table & ~7u);
  }
  return true;
}

uint8_t pci_capability(const struct pci_device *d, uint8_t id, uint8_t after) {
  if (!(pci_read16(d->address, 6) & 0x10)) return 0;
  uint8_t at = pci_read8(d->address, after ? (uint8_t)(after + 1) : 0x34) & 0xfc;
  for (int limit = 48; at && limit; limit--) {
    uint32_t head = pci_read(d->address, at);
    if ((head & 0xff) == id) return at;
    at = head >> 8 & 0xfc;
  }
  return 0;
}

uint8_t pci_intx_gsi(const struct pci_device *d) {
  if (d->interrupt_line && d->interrupt_line < 24) return d->interrupt_line;
  uint8_t pin = pci_read8(d->address, 0x3d); // 1 is INTA#
  return (uint8_t)(16 + ((d->address >> 3) + pin + 2) % 4);
}

// PCI 3.0, 6.8.2: message control, table entries.
void pci_msix_enable(struct pci_device *d) {
  uint8_t cap = pci_capability(d, PCI_CAP_MSIX, 0);
  for (uint16_t i = 0; i < d->msix_entries; i++) pci_msix_mask(d, i, true);
  pci_write16(d->address, (uint8_t)(cap + 2), 0x8000);
  pci_write16(d->address, 4, pci_read16(d->address, 4) | 0x400); // no INTx
}

void pci_msix_route(struct pci_device *d, uint16_t entry, uint8_t vector, uint32_t apic_id) {
  uint64_t at = d->msix_table + 16ul * entry;
  mmio_write32(at, 0xfee00000 | apic_id << 12);
  mmio_write32(at + 4, 0);
  mmio_write32(at + 8, vector);
  mmio_write32(at + 12, 0);
}

void pci_msix_mask(struct pci_device *d, uint16_t entry, bool masked) {
  mmio_write32(d->msix_table + 16ul * entry + 12, masked);
}
