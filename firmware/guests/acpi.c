// Checks what a board tells its guest: ACPI tables, memory map, PM timer, RTC, fw_cfg, PCI host bridge.
//
// Options: cpus=N (expected in the MADT) mem=SIZE (expected usable RAM, up to 1 MiB less) hz=off rtc=off fwcfg=off pci=off
// leave a part out. button=wait: at the end waits for the power button and then switches itself off.
#include "acpi.h"

#include "apic.h"
#include "check.h"
#include "guest.h"
#include "timer.h"

static void tables(void) {
  const uint8_t *rsdp = acpi_rsdp();
  if (!check(rsdp != 0, "RSDP with a right checksum")) return;
  if (rsdp[15] >= 2) check(acpi_checksum_ok(rsdp, 36), "RSDP extended checksum");
  const struct acpi_header *t;
  for (uint32_t i = 0; (t = acpi_table_at(i)); i++)
    check(acpi_checksum_ok(t, t->length), "table %c%c%c%c: checksum over %u bytes", t->signature[0], t->signature[1],
          t->signature[2], t->signature[3], t->length);
  check(acpi_table("APIC") != 0, "MADT found");
  check(acpi_fadt() != 0, "FADT found");
  check(acpi_dsdt() != 0, "DSDT found, checksum right");

  const struct acpi_madt_summary *m = acpi_madt();
  check(m->cpus == option_number("cpus", m->cpus), "MADT: %u CPUs", m->cpus);
  bool self = false;
  for (uint32_t i = 0; i < m->cpus; i++) self = self || m->apic_ids[i] == lapic_id();
  check(self, "MADT names this CPU's APIC id %u", lapic_id());
  check(m->ioapic_address == 0xfec00000, "MADT: IOAPIC at 0x%x", m->ioapic_address);
  check((ioapic_read(1) >> 16 & 0xff) >= 23, "IOAPIC has %u pins", (ioapic_read(1) >> 16 & 0xff) + 1);
  check((lapic_read(LAPIC_VERSION) & 0xff) >= 0x10, "LAPIC version 0x%x", lapic_read(LAPIC_VERSION) & 0xff);
}

static void fixed_hardware(void) {
  const struct acpi_fadt *f = acpi_fadt();
  if (!f || f->flags & FADT_HARDWARE_REDUCED) return print("acpi: no fixed hardware, not checked\n");
  check(f->pm1a_event && f->pm1_event_length >= 4, "PM1a event block at 0x%x", f->pm1a_event);
  check(f->pm1a_control && f->pm1_control_length >= 2, "PM1a control block at 0x%x", f->pm1a_control);
  check(f->pm_timer && f->pm_timer_length == 4, "PM timer at 0x%x", f->pm_timer);
  check(f->sci_irq == 9, "SCI is interrupt %u", f->sci_irq);
  if (f->flags & FADT_RESET_SUPPORTED) check(f->reset.address != 0, "reset register at 0x%lx", f->reset.address);
  uint16_t control = (uint16_t)f->pm1a_control;
  if (!(inw(control) & 1) && f->smi_command) { // ACPI 6.4, 16.3.3: legacy mode until asked
    outb((uint16_t)f->smi_command, f->acpi_enable);
    uint64_t end = now_ns() + 1000000000;
    while (!(inw(control) & 1) && now_ns() < end) pause();
  }
  check(inw(control) & 1, "PM1a control: SCI_EN");
  uint16_t enable = (uint16_t)(f->pm1a_event + f->pm1_event_length / 2);
  outw(enable, 0x0100);
  check(inw(enable) == 0x0100, "PM1a enable keeps PWRBTN_EN");
  outw(enable, 0);
}

static void clocks(void) {
  if (!pm_timer_present()) return print("acpi: no PM timer, not checked\n");
  if (option_is("hz", "off")) return;
  bool forward = true;
  uint32_t last = pm_timer();
  for (int i = 0; i < 200; i++) {
    uint32_t now = pm_timer();
    forward = forward && ((now - last) & 0xffffff) < 0x800000;
    last = now;
  }
  check(forward, "PM timer runs forward");

  // About 30 ms on PIT channel 0, PM timer and TSC together; descheduling only lengthens the interval.
  pit_periodic(0);
  uint32_t pm0 = pm_timer();
  uint16_t pit0 = pit_count();
  uint64_t t0 = rdtsc();
  delay_us(30000);
  uint32_t pm = (pm_timer() - pm0) & 0xffffff;
  uint32_t pit = (uint16_t)(pit0 - pit_count());
  uint64_t us = tsc_to_ns(rdtsc() - t0) / 1000;
  uint64_t pm_us = pm * 1000000ul / PM_TIMER_HZ, pit_us = pit * 1000000ul / PIT_HZ;
  check(pm_us * 20 > us * 19 && pm_us * 20 < us * 21, "PM timer ran %lu us in %lu us of TSC (%lu kHz)", pm_us, us, tsc_khz());
  if (us < 50000) check(pit_us * 20 > us * 19 && pit_us * 20 < us * 21, "PIT ran %lu us", pit_us);
}

static uint8_t cmos(uint8_t reg) {
  outb(0x70, reg);
  return inb(0x71);
}

static uint32_t from_bcd(uint8_t v, bool binary) { return binary ? v : (v >> 4) * 10u + (v & 15); }

// MC146818A data sheet: registers 0-9 time, 0x0a-0x0d status.
static void rtc(void) {
  if (option_is("rtc", "off")) return;
  bool binary = cmos(0x0b) & 4;
  check(cmos(0x0d) & 0x80, "RTC: valid RAM and time");
  check((cmos(0x0a) & 0x70) == 0x20, "RTC: divider runs (status A 0x%x)", cmos(0x0a));
  uint32_t second = from_bcd(cmos(0), binary), minute = from_bcd(cmos(2), binary), hour = from_bcd(cmos(4), binary);
  uint32_t day = from_bcd(cmos(7), binary), month = from_bcd(cmos(8), binary), year = from_bcd(cmos(9), binary);
  check(second < 60 && minute < 60 && hour < 24 && day >= 1 && day <= 31 && month >= 1 && month <= 12,
        "RTC: %04u-%02u-%02u %02u:%02u:%02u", 2000 + year, month, day, hour, minute, second);
  uint64_t end = now_ns() + 3000000000;
  while (from_bcd(cmos(0), binary) == second && now_ns() < end) delay_us(2000);
  check(from_bcd(cmos(0), binary) != second, "RTC: the second changes");
  uint8_t old = cmos(0x7f);
  outb(0x70, 0x7f);
  outb(0x71, 0x5a);
  check(cmos(0x7f) == 0x5a, "CMOS: a byte of RAM keeps what is written");
  outb(0x70, 0x7f);
  outb(0x71, old);
}

// QEMU's fw_cfg specification: selector at 0x510, data at 0x511.
static void fw_cfg(void) {
  if (option_is("fwcfg", "off")) return;
  outw(0x510, 0);
  char signature[4];
  for (int i = 0; i < 4; i++) signature[i] = (char)inb(0x511);
  check(memcmp(signature, "QEMU", 4) == 0, "fw_cfg: signature");
  outw(0x510, 1);
  check(inb(0x511) & 1, "fw_cfg: feature bits");
}

static uint32_t config_read(uint32_t bus_device_function, uint32_t reg) {
  outl(0xcf8, 1u << 31 | bus_device_function << 8 | reg);
  return inl(0xcfc);
}

static void pci(void) {
  if (option_is("pci", "off")) return;
  outl(0xcf8, 0x80000000);
  check(inl(0xcf8) == 0x80000000, "PCI: configuration mechanism 1");
  uint32_t id = config_read(0, 0);
  check(id != 0xffffffff && id != 0, "PCI: host bridge %04x:%04x", id & 0xffff, id >> 16);
  check(config_read(0, 8) >> 16 == 0x0600, "PCI: class of the host bridge");
  check(config_read(31 << 3 | 7, 0) == 0xffffffff, "PCI: an empty slot reads all ones");
  const struct acpi_header *mcfg = acpi_table("MCFG");
  if (!mcfg) return;
  uint64_t base;
  memcpy(&base, (const uint8_t *)mcfg + 44, 8);
  map_identity(base, 1 << 20, true);
  check(mmio_read32(base) == id, "PCI: ECAM at 0x%lx shows the same host bridge", base);
}

static void memory(void) {
  uint64_t usable = 0;
  bool apart = true;
  for (uint32_t i = 0; i < memory_map_entries; i++) {
    const struct memory_range *r = &memory_map[i];
    print("memory 0x%lx-0x%lx type %u\n", r->base, r->base + r->size - 1, r->type);
    if (r->type != 1) continue;
    usable += r->size;
    for (uint32_t k = 0; k < memory_map_entries; k++) {
      const struct memory_range *other = &memory_map[k];
      apart = apart && (k == i || r->base >= other->base + other->size || other->base >= r->base + r->size);
    }
  }
  check(memory_map_entries > 0 && apart, "memory map: %u ranges, RAM apart from all else", memory_map_entries);
  uint64_t expected = option_number("mem", 0);
  if (expected) check(usable <= expected && usable + (1 << 20) >= expected, "memory map: %lu KiB usable", usable >> 10);
}

// ACPI 6.4, 4.8.3.1.1: PWRBTN_STS is bit 8 of the PM1 status register and is cleared by writing 1.
static void wait_for_button(void) {
  uint16_t status = (uint16_t)acpi_fadt()->pm1a_event;
  outw(status, 0x0100);
  outw((uint16_t)(status + acpi_fadt()->pm1_event_length / 2), 0x0100);
  print("acpi: waiting for the power button\n");
  while (!(inw(status) & 0x0100)) delay_us(1000);
  outw(status, 0x0100);
  print("acpi: power button\n");
}

int main(void) {
  lapic_init();
  memory();
  tables();
  fixed_hardware();
  clocks();
  rtc();
  fw_cfg();
  pci();
  if (option_is("button", "wait")) wait_for_button();
  return check_status();
}
