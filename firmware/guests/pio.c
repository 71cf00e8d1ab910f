// Every form of IN and OUT on one port, for a host that compares what its device saw with what this guest says it did.
// One line per instruction: "pio: FORM out SIZE: VALUE..." in the order the port must see them, "pio: FORM in SIZE:
// VALUE..." with what was read. Final RSI, RDI and RCX of the string forms are checked here.
//
// Options: port=N (0xe9; immediate forms need one below 0x100), modes= any of 64 (ring 3), 32 and 16 (compatibility
// segments in ring 0), ap (a second CPU in real mode, then in protected mode), joined by commas; default 64,32,16.
#include "apic.h"
#include "acpi.h"
#include "guest.h"
#include "timer.h"

#define PIO_DATA 0xa000ul
#define CODE_BASE 0x9000ul

struct ends {
  uint64_t pointer, count;
};

#define SIMPLE(X) \
  X(out_dx_8, 1) X(out_dx_16, 2) X(out_dx_32, 4) X(out_dx_8_rexw, 1) X(out_dx_8_66, 1) X(out_dx_16_rex, 2) X(out_dx_32_rexw, 4)
#define IMMEDIATE(X) X(out_imm_8, 1) X(out_imm_16, 2) X(out_imm_32, 4) X(out_imm_32_rex, 4)
#define IN_DX(X) X(in_dx_8, 1) X(in_dx_16, 2) X(in_dx_32, 4) X(in_dx_32_rex, 4)
#define IN_IMMEDIATE(X) X(in_imm_8, 1) X(in_imm_16, 2) X(in_imm_32, 4)
#define OUT_STRINGS(X) \
  X(outs_8, 1, 1) X(outs_16, 2, 1) X(outs_32, 4, 1) X(rep_outs_8, 1, 5) X(rep_outs_16, 2, 4) X(rep_outs_16_swapped, 2, 3) \
  X(rep_outs_32, 4, 3) X(rep_outs_32_addr32, 4, 2) X(rep_outs_32_rexw, 4, 2)
#define IN_STRINGS(X) \
  X(ins_8, 1, 1) X(ins_16, 2, 1) X(ins_32, 4, 1) X(rep_ins_8, 1, 5) X(rep_ins_16, 2, 3) X(rep_ins_32, 4, 3) X(rep_ins_32_rexw, 4, 2)

#define DECLARE(name, size) uint64_t name(uint64_t port, uint64_t value);
#define DECLARE_IMMEDIATE(name, size) DECLARE(name, size) extern uint8_t name##_port[];
#define DECLARE_STRING(name, size, count)                                   \
  struct ends name##_up(uint64_t port, void *buffer, uint64_t count_or_rcx); \
  struct ends name##_down(uint64_t port, void *buffer, uint64_t count_or_rcx);
SIMPLE(DECLARE) IMMEDIATE(DECLARE_IMMEDIATE) IN_DX(DECLARE) IN_IMMEDIATE(DECLARE_IMMEDIATE)
OUT_STRINGS(DECLARE_STRING) IN_STRINGS(DECLARE_STRING)

static uint16_t port;
static uint32_t serial_number;

// A value whose bytes all differ and that no other call returned lately.
static uint32_t next_value(void) { return 0x10203040u + 0x01010101u * (serial_number++ % 0x40); }

static void say(const char *mode, const char *form, const char *what, uint32_t size, const uint8_t *bytes, uint32_t count) {
  print("pio: %s%s %s %u:", mode, form, what, size * 8);
  for (uint32_t i = 0; i < count; i++) {
    uint32_t v = 0;
    memcpy(&v, bytes + i * size, size);
    if (size == 1) print(" %02x", v);
    else if (size == 2) print(" %04x", v);
    else print(" %08x", v);
  }
  print("\n");
}

// ---- 64-bit, ring 3 ----
static void out_64(const char *form, uint32_t size, uint64_t (*f)(uint64_t, uint64_t)) {
  uint32_t v = next_value();
  f(port, 0xdeadbeef00000000 | v);
  say("", form, "out", size, (const uint8_t *)&v, 1);
}

static void in_64(const char *form, uint32_t size, uint64_t (*f)(uint64_t, uint64_t)) {
  uint64_t before = 0x8877665544332211, v = f(port, before);
  // SDM volume 1, 3.4.1.1: a 32-bit result clears the upper half, smaller ones keep all other bits.
  uint64_t kept = size == 4 ? 0 : before >> size * 8 << size * 8;
  if ((size == 4 ? v >> 32 << 32 : v >> size * 8 << size * 8) != kept) fail("%s changed other bits: 0x%lx", form, v);
  say("", form, "in", size, (const uint8_t *)&v, 1);
}

static void string_64(const char *form, bool out, bool down, uint32_t size, uint32_t count,
                      struct ends (*f)(uint64_t, void *, uint64_t)) {
  uint8_t memory[64], in_order[64];
  bool repeated = form[0] == 'r';
  for (uint32_t i = 0; i < 16; i++) {
    uint32_t v = out ? next_value() : 0x5a5a5a5a;
    memcpy(memory + 4 * i, &v, 4);
  }
  uint8_t *start = memory + 24 + (down ? (count - 1) * size : 0);
  struct ends ends = f(port, start, repeated ? count : 0x1234567890);
  int64_t moved = (int64_t)(count * size) * (down ? -1 : 1);
  if (ends.pointer != (uint64_t)start + (uint64_t)moved) fail("%s left its pointer at %ld", form, (int64_t)(ends.pointer - (uint64_t)start));
  if (ends.count != (repeated ? 0 : 0x1234567890)) fail("%s left RCX at 0x%lx", form, ends.count);
  for (uint32_t i = 0; i < count; i++) memcpy(in_order + i * size, memory + 24 + (down ? count - 1 - i : i) * size, size);
  for (uint32_t i = 0; !out && i < 64; i++)
    if ((i < 24 || i >= 24 + count * size) && memory[i] != 0x5a) fail("%s wrote outside its buffer", form);
  say(down ? "down " : "", form, out ? "out" : "in", size, in_order, count);
}

static void run_64(void) {
  bool short_port = port < 0x100;
#define PATCH(name, size) name##_port[0] = (uint8_t)port;
#define RUN_OUT(name, size) out_64(#name, size, name);
#define RUN_IN(name, size) in_64(#name, size, name);
#define RUN_OUT_STRING(name, size, count) \
  string_64(#name, true, false, size, count, name##_up);  \
  string_64(#name, true, true, size, count, name##_down);
#define RUN_IN_STRING(name, size, count)                  \
  string_64(#name, false, false, size, count, name##_up); \
  string_64(#name, false, true, size, count, name##_down);
  SIMPLE(RUN_OUT)
  IN_DX(RUN_IN)
  if (short_port) {
    IMMEDIATE(PATCH)
    IN_IMMEDIATE(PATCH)
    IMMEDIATE(RUN_OUT)
    IN_IMMEDIATE(RUN_IN)
  }
  OUT_STRINGS(RUN_OUT_STRING)
  IN_STRINGS(RUN_IN_STRING)
}

// ---- the sequence of pio.S in other modes ----
struct step {
  const char *form;
  bool out, from_buffer;
  uint32_t size, count;
  uint32_t offset; // in the buffer
  uint32_t value;
};
static const struct step sequence[] = {
    {"out dx", true, false, 1, 1, 0, 0xd1},
    {"out dx", true, false, 2, 1, 0, 0xd2d3},
    {"out dx", true, false, 4, 1, 0, 0xd4d5d6d7},
    {"out imm", true, false, 1, 1, 0, 0xc1},
    {"out imm", true, false, 2, 1, 0, 0xc2c3},
    {"out imm", true, false, 4, 1, 0, 0xc4c5c6c7},
    {"outs", true, true, 1, 1, 0, 0},
    {"outs", true, true, 2, 1, 1, 0},
    {"outs", true, true, 4, 1, 3, 0},
    {"rep outs", true, true, 1, 4, 0, 0},
    {"rep outs", true, true, 2, 3, 4, 0},
    {"rep outs", true, true, 4, 2, 10, 0},
    {"rep outs down", true, true, 1, 4, 32, 0},
    {"in dx", false, true, 1, 1, 0, 0},
    {"in dx", false, true, 2, 1, 1, 0},
    {"in dx", false, true, 4, 1, 3, 0},
    {"rep ins", false, true, 1, 3, 7, 0},
    {"rep ins", false, true, 2, 2, 10, 0},
    {"ins", false, true, 4, 1, 14, 0},
};

static volatile uint32_t *done(void) { return (uint32_t *)(PIO_DATA + 0x10); }

static void prepare(uint64_t at, const uint8_t *code, const uint8_t *end, const uint16_t *patches) {
  memcpy((void *)at, code, (size_t)(end - code));
  for (; *patches != 0xffff; patches++) ((uint8_t *)at)[*patches] = (uint8_t)port;
  memcpy((void *)PIO_DATA, &port, 2);
  uint8_t *out = (uint8_t *)PIO_DATA + 0x100;
  for (uint32_t i = 0; i < 32; i++) out[i] = (uint8_t)(0x21 + 7 * i);
  for (uint32_t i = 0; i < 4; i++) out[32 + i] = out[3 - i]; // as the sequence sends them with DF set
  memset((void *)(PIO_DATA + 0x200), 0, 32);
  *done() = 0;
}

static void report(const char *mode) {
  for (uint32_t i = 0; i < COUNT_OF(sequence); i++) {
    const struct step *s = &sequence[i];
    const uint8_t *buffer = (const uint8_t *)(PIO_DATA + (s->out ? 0x100 : 0x200)) + s->offset;
    say(mode, s->form, s->out ? "out" : "in", s->size, s->from_buffer ? buffer : (const uint8_t *)&s->value, s->count);
  }
}

extern const uint8_t pio_code16[], pio_code16_end[], pio_code32[], pio_code32_end[], pio_ap[], pio_ap_end[];
extern const uint16_t pio_code16_patches[], pio_code32_patches[], pio_ap_patches[];
uint64_t pio_far(uint64_t pointer, uint64_t, uint64_t);

static void run_compatibility(const char *mode, uint16_t selector) {
  const struct PACKED {
    uint32_t offset;
    uint16_t selector;
  } far = {CODE_BASE, selector};
  svc((uint64_t)pio_far, (uint64_t)&far, 0, 0);
  if (*done() != 1) fail("the %ssequence did not end", mode);
  report(mode);
}

static void wait_done(uint32_t value, const char *mode) {
  uint64_t end = rdtsc() + 20000000 * tsc_khz() / 1000;
  while (*done() != value)
    if (rdtsc() > end) fail("the %ssequence did not end", mode);
}

static void run_ap(void) {
  const struct acpi_madt_summary *madt = acpi_madt();
  if (madt->cpus < 2) fail("modes=ap needs a second CPU");
  lapic_init();
  tsc_khz();
  prepare(AP_BASE, pio_ap, pio_ap_end, pio_ap_patches);
  uint32_t other = madt->apic_ids[madt->apic_ids[0] == lapic_id()];
  lapic_send(other, 0x4500);
  delay_us(200);
  lapic_send(other, 0x4600 | AP_BASE >> 12);
  wait_done(1, "real mode ");
  report("real ");
  *done() = 2;
  wait_done(3, "protected mode ");
  report("protected ");
  lapic_send(other, 0x4500);
}

static bool has_mode(const char *modes, const char *name) {
  for (size_t n = strlen(name); *modes; modes++) {
    if (memcmp(modes, name, n) == 0 && (modes[n] == ',' || !modes[n])) return true;
    while (modes[1] && *modes != ',') modes++;
  }
  return false;
}

int main(void) {
  extern uint64_t gdt[];
  const char *modes = option("modes", "64,32,16");
  port = (uint16_t)option_number("port", 0xe9);
  if (has_mode(modes, "64")) run_64();
  if (port >= 0x100 && strcmp(modes, "64")) fail("modes other than 64 need a port below 0x100");
  if (has_mode(modes, "32")) {
    prepare(CODE_BASE, pio_code32, pio_code32_end, pio_code32_patches);
    run_compatibility("32 ", SEL_CODE32);
  }
  if (has_mode(modes, "16")) {
    uint32_t slot = SEL_TSS0 + 16 * (CPUS_MAX - 1); // a TSS slot that no CPU uses here
    gdt[slot / 8] = 0x00009b000000ffff;             // code, ring 0, 16-bit, 64 KiB from 0
    prepare(CODE_BASE, pio_code16, pio_code16_end, pio_code16_patches);
    run_compatibility("16 ", (uint16_t)slot);
  }
  if (has_mode(modes, "ap")) run_ap();
  print("pio: end\n");
  return 0;
}
