#include "acpi.h"

#include "console.h"
#include "guest.h"
#include "timer.h"

// A VMM may let the CPU run on for a while after it was told to end.
#define SETTLE_US 2000000

struct PACKED rsdp {
  char signature[8];
  uint8_t checksum;
  char oem_id[6];
  uint8_t revision;
  uint32_t rsdt, length;
  uint64_t xsdt;
  uint8_t extended_checksum, reserved[3];
};

bool acpi_checksum_ok(const void *table, uint32_t length) {
  const uint8_t *p = table;
  uint8_t sum = 0;
  while (length--) sum += *p++;
  return sum == 0;
}

static bool is_rsdp(uint64_t a) {
  return memcmp((const void *)a, "RSD PTR ", 8) == 0 && acpi_checksum_ok((const void *)a, 20);
}

const void *acpi_rsdp(void) {
  if (start_rsdp) {
    map_identity(start_rsdp, sizeof(struct rsdp), false);
    return is_rsdp(start_rsdp) ? (const void *)start_rsdp : 0;
  }
  for (uint64_t a = 0xe0000; a < 0x100000; a += 16)
    if (is_rsdp(a)) return (const void *)a;
  return 0;
}

const struct acpi_header *acpi_table_at(uint32_t i) {
  const struct rsdp *r = acpi_rsdp();
  if (!r) return 0;
  bool wide = r->revision >= 2 && r->xsdt;
  uint64_t root_at = wide ? r->xsdt : r->rsdt;
  const struct acpi_header *root = (const struct acpi_header *)root_at;
  uint32_t size = wide ? 8 : 4;
  if (sizeof *root + (i + 1) * size > root->length) return 0;
  uint64_t entry = 0;
  memcpy(&entry, (const uint8_t *)(root + 1) + i * size, size);
  return (const struct acpi_header *)entry;
}

const void *acpi_table(const char signature[4]) {
  const struct acpi_header *t;
  for (uint32_t i = 0; (t = acpi_table_at(i)); i++)
    if (memcmp(t->signature, signature, 4) == 0 && acpi_checksum_ok(t, t->length)) return t;
  return 0;
}

const struct acpi_fadt *acpi_fadt(void) { return acpi_table("FACP"); }

static bool fadt_has(const struct acpi_fadt *f, size_t end) { return f && f->header.length >= end; }
#define FADT_HAS(f, field) fadt_has(f, offsetof(struct acpi_fadt, field) + sizeof(f)->field)

const struct acpi_header *acpi_dsdt(void) {
  const struct acpi_fadt *f = acpi_fadt();
  if (!f) return 0;
  uint64_t at = FADT_HAS(f, x_dsdt) && f->x_dsdt ? f->x_dsdt : f->dsdt;
  return at && acpi_checksum_ok((const void *)at, ((const struct acpi_header *)at)->length) ? (const struct acpi_header *)at : 0;
}

const struct acpi_madt_summary *acpi_madt(void) {
  static struct acpi_madt_summary s;
  if (s.ioapic_address) return &s;
  s.ioapic_address = 0xfec00000;
  for (uint32_t i = 0; i < 16; i++) s.isa_gsi[i] = i;
  const struct acpi_header *madt = acpi_table("APIC");
  if (!madt) {
    s.cpus = 1;
    return &s;
  }
  const uint8_t *p = (const uint8_t *)madt + 44, *end = (const uint8_t *)madt + madt->length;
  for (; p + 2 <= end && p[1] >= 2; p += p[1]) {
    uint32_t words[4] = {0};
    memcpy(words, p, p[1] < 16 ? p[1] : 16);
    if (p[0] == 0 && (words[1] & 1) && s.cpus < MAX_ACPI_CPUS) s.apic_ids[s.cpus++] = p[3]; // local APIC
    if (p[0] == 9 && (words[2] & 1) && s.cpus < MAX_ACPI_CPUS) s.apic_ids[s.cpus++] = words[1]; // local x2APIC
    if (p[0] == 1 && words[2] == 0) s.ioapic_address = words[1]; // the one that serves GSI 0
    if (p[0] == 2 && p[3] < 16) s.isa_gsi[p[3]] = words[1], s.isa_flags[p[3]] = (uint16_t)words[2];
  }
  return &s;
}

uint16_t acpi_pm_timer_port(void) {
  const struct acpi_fadt *f = acpi_fadt();
  if (!f || f->pm_timer_length != 4) return 0;
  if (FADT_HAS(f, x_pm_timer) && f->x_pm_timer.space == 1 && f->x_pm_timer.address) return (uint16_t)f->x_pm_timer.address;
  return (uint16_t)f->pm_timer;
}

// SLP_TYPa of \_S5, read from the DSDT's bytes: Name(_S5, Package(){typ_a, ...}).
static uint8_t sleep_type(void) {
  const struct acpi_header *dsdt = acpi_dsdt();
  if (!dsdt) return 0;
  const uint8_t *p = (const uint8_t *)dsdt;
  for (uint32_t i = sizeof *dsdt; i + 10 < dsdt->length; i++) {
    if (memcmp(p + i, "_S5_\x12", 5)) continue;
    const uint8_t *v = p + i + 7;                  // past PkgOp, a one-byte PkgLength and NumElements
    if (v[0] == 0x0a) return v[1];                 // BytePrefix
    return v[0] == 1 ? 1 : 0;                      // OneOp, else ZeroOp
  }
  return 0;
}

void acpi_power_off(void) {
  const struct acpi_fadt *f = acpi_fadt();
  if (!f) return;
  uint8_t type = sleep_type();
  if (f->flags & FADT_HARDWARE_REDUCED) { // ACPI 6.4, 4.8.3.7: SLP_EN is bit 5, SLP_TYP bits 2-4
    if (!FADT_HAS(f, sleep_control) || !f->sleep_control.address) return;
    if (f->sleep_control.space == 1) outb((uint16_t)f->sleep_control.address, (uint8_t)(type << 2 | 0x20));
    else mmio_write8(f->sleep_control.address, (uint8_t)(type << 2 | 0x20));
  } else { // ACPI 6.4, 4.8.3.2.1: SLP_EN is bit 13, SLP_TYP bits 10-12
    outw((uint16_t)f->pm1a_control, (uint16_t)(type << 10 | 1 << 13));
  }
  delay_us(SETTLE_US);
}

void acpi_reset(void) {
  const struct acpi_fadt *f = acpi_fadt();
  if (FADT_HAS(f, reset_value) && (f->flags & FADT_RESET_SUPPORTED)) {
    if (f->reset.space == 1) outb((uint16_t)f->reset.address, f->reset_value);
    else if (f->reset.space == 0) mmio_write8(f->reset.address, f->reset_value);
    delay_us(SETTLE_US);
  }
  outb(0x64, 0xfe); // 8042: pulse the reset line
  delay_us(SETTLE_US);
}
