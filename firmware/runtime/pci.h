// PCI by configuration mechanism 1 (PCI 3.0, 3.2.2.3): finding devices, BARs, capabilities, MSI-X.
#ifndef PCI_H
#define PCI_H
#include "base.h"

#define PCI_CAP_MSI 0x05
#define PCI_CAP_VENDOR 0x09
#define PCI_CAP_MSIX 0x11

struct pci_device {
  uint16_t address; // bus << 8 | slot << 3 | function
  uint16_t vendor, device;
  uint32_t class_code; // class, subclass, interface
  uint8_t interrupt_line;
  bool bar_is_port[6];
  uint64_t bar[6], bar_size[6]; // 0 where there is none
  uint64_t msix_table;          // 0 without MSI-X
  uint16_t msix_entries;
};

uint32_t pci_read(uint16_t address, uint8_t reg); // 32 bits, aligned
void pci_write(uint16_t address, uint8_t reg, uint32_t value);
uint8_t pci_read8(uint16_t address, uint8_t reg);
uint16_t pci_read16(uint16_t address, uint8_t reg);
void pci_write16(uint16_t address, uint8_t reg, uint16_t value);

// Calls visit(address, id, argument) for each function of bus 0 until it returns true; returns whether one did.
bool pci_scan(bool (*visit)(uint16_t address, uint32_t id, void *argument), void *argument);
// Opens the index-th device with one of two ids: BARs sized, placed if nobody has, mapped; memory, port and bus-master
// decoding on; MSI-X off, its table found. False where there is none.
bool pci_open(struct pci_device *d, uint16_t vendor, uint16_t device, uint16_t other_device, uint32_t index);
// Offset of the first capability `id` after offset `after` (0: from the start); 0 if none.
uint8_t pci_capability(const struct pci_device *d, uint8_t id, uint8_t after);

// Where INTx arrives: the interrupt line that firmware wrote; where none did, tsvmm's wiring, which its _PRT describes.
uint8_t pci_intx_gsi(const struct pci_device *d);

void pci_msix_enable(struct pci_device *d);
void pci_msix_route(struct pci_device *d, uint16_t entry, uint8_t vector, uint32_t apic_id);
void pci_msix_mask(struct pci_device *d, uint16_t entry, bool masked);

#endif
