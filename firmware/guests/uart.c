// Checks a 16550A at COM1 from the driver's side: registers, FIFOs, loopback, modem lines, interrupts through IRQ 4.
// Each result is kept until the loopback is off again, because the console is the device under test.
//
// Options: rx=N (0): at the end prints "uart: send N bytes", takes N bytes by interrupt and echoes them in a line.
// deltas=off: without the MSR's delta bits in loopback, which QEMU does not model.
#include "apic.h"
#include "check.h"
#include "guest.h"
#include "timer.h"

// PC16550D data sheet, 8.0: registers relative to the base.
#define RBR COM1
#define IER (COM1 + 1)
#define IIR (COM1 + 2)
#define FCR (COM1 + 2)
#define LCR (COM1 + 3)
#define MCR (COM1 + 4)
#define LSR (COM1 + 5)
#define MSR (COM1 + 6)
#define SCR (COM1 + 7)
#define MCR_NORMAL 0x0b // DTR, RTS, OUT2
#define MCR_LOOP 0x10
#define VECTOR_UART VECTOR_IRQ

static volatile uint32_t interrupts, received;
static volatile uint8_t reasons[64], received_bytes[1024];

static void on_interrupt(uint64_t vector) {
  (void)vector;
  uint8_t reason;
  while (!((reason = inb(IIR)) & 1)) {
    reasons[interrupts++ % 64] = reason;
    if ((reason & 0x0e) == 2) break; // transmitter empty: reading IIR answered it
    while (inb(LSR) & 1) received_bytes[received++ % sizeof received_bytes] = inb(RBR);
    if ((reason & 0x0e) == 0) inb(MSR);
  }
  lapic_eoi();
}

struct result {
  const char *name;
  uint32_t found, expected;
};
static struct result results[96];
static uint32_t result_count;

static void expect(const char *name, uint32_t found, uint32_t expected) {
  if (result_count < COUNT_OF(results)) results[result_count++] = (struct result){name, found, expected};
}

static bool wait_bits(uint16_t port, uint8_t mask, uint8_t value) {
  uint64_t end = rdtsc() + tsc_khz() * 1000;
  do {
    if ((inb(port) & mask) == value) return true;
  } while (rdtsc() < end);
  return false;
}

static void send(uint8_t byte) {
  wait_bits(LSR, 0x20, 0x20);
  outb(RBR, byte);
}

static void drain(void) {
  while (inb(LSR) & 1) inb(RBR);
}

static void registers(void) {
  static const uint8_t patterns[] = {0x00, 0x55, 0xaa, 0xff};
  for (uint32_t i = 0; i < sizeof patterns; i++) {
    outb(SCR, patterns[i]);
    expect("scratch register", inb(SCR), patterns[i]);
  }
  outb(LCR, 0x80);
  outb(RBR, 0x34);
  outb(IER, 0x12);
  expect("divisor low", inb(RBR), 0x34);
  expect("divisor high", inb(IER), 0x12);
  outb(RBR, 1);
  outb(IER, 0);
  outb(LCR, 0x03);
  expect("line control", inb(LCR), 0x03);
  expect("interrupt enable is apart from the divisor", inb(IER), 0);
  outb(IER, 0xff);
  expect("interrupt enable has four bits", inb(IER), 0x0f);
  outb(IER, 0);
  outb(FCR, 0);
  expect("IIR without FIFOs", inb(IIR) & 0xc1, 0x01);
  outb(FCR, 1);
  expect("IIR with FIFOs", inb(IIR) & 0xc1, 0xc1);
  expect("LSR when idle: THRE and TEMT", wait_bits(LSR, 0x60, 0x60), 1);
}

static void modem_lines(bool with_deltas) {
  uint8_t mask = with_deltas ? 0xff : 0xf0;
  static const struct {
    const char *name;
    uint8_t mcr, msr;
  } lines[] = {{"RTS drives CTS", 0x02, 0x10}, {"DTR drives DSR", 0x01, 0x20}, {"OUT1 drives RI", 0x04, 0x40}, {"OUT2 drives DCD", 0x08, 0x80}};
  for (uint32_t i = 0; i < COUNT_OF(lines); i++) {
    outb(MCR, MCR_LOOP);
    inb(MSR);
    expect("loopback: lines low", inb(MSR), 0);
    outb(MCR, MCR_LOOP | lines[i].mcr);
    // RI's delta bit (TERI) marks the trailing edge only.
    uint8_t delta = lines[i].msr == 0x40 ? 0 : lines[i].msr >> 4;
    expect(lines[i].name, inb(MSR) & mask, lines[i].msr | (delta & mask));
    expect("deltas are cleared by the read", inb(MSR), lines[i].msr);
    if (!with_deltas) continue;
    outb(MCR, MCR_LOOP);
    expect("the falling edge sets the delta", inb(MSR), lines[i].msr >> 4);
  }
}

static void loopback(void) {
  outb(FCR, 0);
  outb(MCR, MCR_LOOP);
  drain();
  send(0xa5);
  expect("loopback: data ready", wait_bits(LSR, 1, 1), 1);
  expect("loopback: the byte", inb(RBR), 0xa5);
  expect("loopback: data taken", inb(LSR) & 1, 0);

  outb(FCR, 0x07);
  for (uint8_t i = 0; i < 16; i++) send((uint8_t)(0x40 + i));
  wait_bits(LSR, 0x60, 0x60);
  expect("FIFO: no overrun at 16 bytes", inb(LSR) & 2, 0);
  send(0x77);
  expect("FIFO: overrun at 17 bytes", wait_bits(LSR, 0x42, 0x42), 1);
  expect("FIFO: overrun is cleared by the read", inb(LSR) & 2, 0);
  uint32_t in_order = 0;
  for (uint8_t i = 0; i < 16; i++) in_order += inb(RBR) == 0x40 + i;
  expect("FIFO: bytes in order", in_order, 16);
  expect("FIFO: empty then", inb(LSR) & 1, 0);

  send(1);
  wait_bits(LSR, 1, 1);
  outb(FCR, 0x03);
  expect("FIFO: reset empties it", inb(LSR) & 1, 0);

  outb(FCR, 0xc7); // trigger at 14 bytes
  outb(IER, 1);
  for (uint8_t i = 0; i < 13; i++) send(i);
  expect("FIFO: below the trigger, a time-out interrupt", wait_bits(IIR, 0x0f, 0x0c), 1);
  drain();
  expect("FIFO: none when drained", inb(IIR) & 0x0f, 1);
  for (uint8_t i = 0; i < 14; i++) send(i);
  // On a slow machine the time-out may have come before the last byte.
  expect("FIFO: at the trigger, a data interrupt", wait_bits(IIR, 0x07, 0x04), 1);
  drain();
  expect("FIFO: none when drained again", inb(IIR) & 0x0f, 1);
  outb(IER, 0);
  outb(MCR, MCR_NORMAL);
}

static bool wait_interrupts(uint32_t n) {
  uint64_t end = rdtsc() + tsc_khz() * 1000;
  while (interrupts < n && rdtsc() < end) pause();
  return interrupts >= n;
}

static void transmit_interrupt(void) {
  outb(FCR, 0x07);
  outb(MCR, MCR_NORMAL);
  wait_bits(LSR, 0x60, 0x60);
  interrupts = 0;
  irq_handlers[VECTOR_UART] = on_interrupt;
  isa_irq_route(4, VECTOR_UART);
  irq_on();
  outb(IER, 2);
  expect("IRQ 4: enabling THRE interrupts once", wait_interrupts(1), 1);
  expect("IRQ 4: the reason", reasons[0] & 0x0f, 2);
  expect("IRQ 4: reading IIR clears it", inb(IIR) & 0x0f, 1);
  uint32_t before = interrupts;
  outb(RBR, '\n');
  expect("IRQ 4: a sent byte interrupts again", wait_interrupts(before + 1), 1);
  outb(IER, 0);
  irq_off();
}

static void receive(uint32_t n) {
  print("uart: send %u bytes\n", n);
  received = 0;
  irq_on();
  outb(IER, 1);
  irq_off();
  while (received < n) halt();
  outb(IER, 0);
  print("uart: got ");
  console_write((const char *)received_bytes, n < sizeof received_bytes ? n : sizeof received_bytes);
  print("\n");
}

int main(void) {
  lapic_init();
  tsc_khz();
  wait_bits(LSR, 0x60, 0x60);
  registers();
  modem_lines(!option_is("deltas", "off"));
  loopback();
  transmit_interrupt();
  console_init();
  for (uint32_t i = 0; i < result_count; i++) {
    const struct result *r = &results[i];
    if (r->found == r->expected) check(true, "%s", r->name);
    else check(false, "%s: 0x%x instead of 0x%x", r->name, r->found, r->expected);
  }
  uint32_t rx = (uint32_t)option_number("rx", 0);
  if (rx) receive(rx);
  return check_status();
}
