// ACPI tables (ACPI 6.4, chapter 5) as far as a guest without an AML interpreter needs them.
#ifndef ACPI_H
#define ACPI_H
#include "base.h"

struct PACKED acpi_header {
  char signature[4];
  uint32_t length;
  uint8_t revision, checksum;
  char oem_id[6], oem_table_id[8];
  uint32_t oem_revision;
  char creator_id[4];
  uint32_t creator_revision;
};

struct PACKED acpi_address {
  uint8_t space, width, offset, access; // space 0 memory, 1 port
  uint64_t address;
};

struct PACKED acpi_fadt {
  struct acpi_header header;
  uint32_t facs, dsdt;
  uint8_t reserved1, profile;
  uint16_t sci_irq;
  uint32_t smi_command;
  uint8_t acpi_enable, acpi_disable, s4bios, pstate;
  uint32_t pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control, pm_timer, gpe0, gpe1;
  uint8_t pm1_event_length, pm1_control_length, pm2_control_length, pm_timer_length;
  uint8_t gpe0_length, gpe1_length, gpe1_base, cst;
  uint16_t c2_latency, c3_latency, flush_size, flush_stride;
  uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
  uint16_t boot_arch;
  uint8_t reserved2;
  uint32_t flags;
  struct acpi_address reset;
  uint8_t reset_value;
  uint16_t arm_boot_arch;
  uint8_t minor;
  uint64_t x_facs, x_dsdt;
  struct acpi_address x_pm1a_event, x_pm1b_event, x_pm1a_control, x_pm1b_control, x_pm2_control, x_pm_timer, x_gpe0, x_gpe1;
  struct acpi_address sleep_control, sleep_status;
};
#define FADT_RESET_SUPPORTED (1u << 10)
#define FADT_HARDWARE_REDUCED (1u << 20)
#define FADT_TIMER_32BIT (1u << 8)

#define MAX_ACPI_CPUS 64
// What the MADT says; defaults without one.
struct acpi_madt_summary {
  uint32_t cpus;
  uint32_t apic_ids[MAX_ACPI_CPUS];
  uint32_t ioapic_address; // of the IOAPIC that serves GSI 0
  uint32_t isa_gsi[16];
  uint16_t isa_flags[16]; // MPS INTI flags: bits 0-1 polarity (3 low), 2-3 trigger (3 level)
};

// A table by signature (first match whose checksum is right), or NULL. Tables are found by the loader's RSDP, else by
// the search of ACPI 6.4, 5.2.5.1.
const void *acpi_table(const char signature[4]);
// The i-th table of the RSDT or XSDT, right checksum or not; NULL after the last.
const struct acpi_header *acpi_table_at(uint32_t i);
bool acpi_checksum_ok(const void *table, uint32_t length);
const void *acpi_rsdp(void);
const struct acpi_fadt *acpi_fadt(void);
const struct acpi_header *acpi_dsdt(void);
const struct acpi_madt_summary *acpi_madt(void);

// Port of the power-management timer; 0 where there is none.
uint16_t acpi_pm_timer_port(void);
void acpi_power_off(void); // returns where the machine did not go off
void acpi_reset(void);     // returns likewise

#endif
