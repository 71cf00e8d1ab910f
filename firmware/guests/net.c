// Bench guest: frames per second and bytes per second through a network card, one way at a time.
//
// Options: mode=tx|rx|echo (tx) size=SIZE of a frame with its Ethernet header (1514; tx above 1514 lets the card segment
// TCP) count=N frames (10000) batch=N frames per doorbell at the most (64) nic=N (0) wait=irq|poll (irq, rx and echo)
// offloads (take merged frames in rx) to=MAC (broadcast) ip=A.B.C.D (10.0.2.15) peer=A.B.C.D (10.0.2.2) idle=MS (1000).
//
// tx sends frames of Ethernet type 0x88b5 with a 64-bit sequence number at offset 14. rx prints "net: ready", counts every
// frame until one of type 0x88b5 with the number 2^64-1 comes or none came for `idle` ms after the first, and reports
// numbers that were missing. echo answers ARP, ping, UDP port 7 and TCP ports 9 and 19 (tcp.h) until a datagram comes for port 9.
// The line at the end: "bench: net mode=... model=... size=... frames=... ns=... pps=... mbit_s=... doorbells=...
// interrupts=... missing=... retries=...".
#include "apic.h"
#include "guest.h"
#include "net.h"
#include "tcp.h"
#include "timer.h"

#define NET_VECTOR VECTOR_COUNTED
#define TICK_VECTOR (VECTOR_COUNTED + 1)
#define TYPE 0x88b5
#define LAST (~0ul)

static struct nic nic;
static uint64_t frames, bytes_total, missing, retries, first_tsc, last_tsc;

static uint8_t hex(char c) { return (uint8_t)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10); }

static void frame_head(uint8_t *frame, uint16_t type) {
  const char *to = option("to", "ff:ff:ff:ff:ff:ff");
  for (int i = 0; i < 6 && strlen(to) >= 17; i++) frame[i] = (uint8_t)(hex(to[3 * i]) << 4 | hex(to[3 * i + 1]));
  memcpy(frame + 6, nic.mac, 6);
  frame[12] = (uint8_t)(type >> 8);
  frame[13] = (uint8_t)type;
}

static void put16(uint8_t *p, uint32_t v) {
  p[0] = (uint8_t)(v >> 8);
  p[1] = (uint8_t)v;
}

static uint32_t fold(uint32_t sum) {
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return sum;
}

// A TCP segment to the peer's port 9, far larger than a frame: for cards that segment.
static void big_frame(uint8_t *frame, uint32_t size) {
  uint32_t from = parse_ip(option("ip", "10.0.2.15")), to = parse_ip(option("peer", "10.0.2.2")), tcp_bytes = size - 34;
  uint8_t *ip = frame + 14, *tcp = frame + 34;
  frame_head(frame, 0x0800);
  memset(ip, 0, 40);
  ip[0] = 0x45;
  put16(ip + 2, size - 14);
  ip[8] = 64;
  ip[9] = 6;
  put16(ip + 12, from >> 16), put16(ip + 14, from), put16(ip + 16, to >> 16), put16(ip + 18, to);
  uint32_t addresses = (from >> 16) + (from & 0xffff) + (to >> 16) + (to & 0xffff);
  put16(ip + 10, ~fold(0x4500 + (size - 14) + 0x4006 + addresses));
  put16(tcp, 9), put16(tcp + 2, 9);
  tcp[12] = 0x50;
  tcp[13] = 0x10; // ACK
  put16(tcp + 14, 0xffff);
  put16(tcp + 16, fold(addresses + 6 + (nic.pseudo_without_length ? 0 : tcp_bytes)));
  for (uint32_t i = 54; i < size; i++) frame[i] = (uint8_t)(i * 7);
}

static void transmit(uint32_t size, uint64_t count, uint32_t batch) {
  bool big = size > nic.frame_max;
  if (big && !nic.can_segment) fail("this %s does not segment, so size is at most %u", nic.model, nic.frame_max);
  uint8_t *frame = allocate(BIG_FRAME_MAX, 4096);
  big ? big_frame(frame, size) : frame_head(frame, TYPE);
  print("net: ready\n");
  first_tsc = rdtsc();
  uint32_t in_batch = 0;
  while (frames < count) {
    if (!big) memcpy(frame + 14, &frames, 8);
    if (!(big ? nic.queue_big(&nic, frame, size, 1460) : nic.queue(&nic, frame, size))) {
      nic.flush(&nic);
      in_batch = 0;
      retries++;
      pause();
      continue;
    }
    frames++;
    bytes_total += size;
    if (++in_batch == batch) nic.flush(&nic), in_batch = 0;
  }
  nic.flush(&nic);
  while (!nic.idle(&nic)) pause();
  last_tsc = rdtsc();
}

static bool take_frames(uint64_t *expected) {
  uint32_t bytes;
  uint8_t *f;
  bool last = false;
  while (!last && (f = nic.receive(&nic, &bytes))) {
    last_tsc = rdtsc();
    if (!frames) first_tsc = last_tsc;
    uint64_t number = 0;
    if (bytes >= 22 && f[12] == TYPE >> 8 && f[13] == (TYPE & 0xff)) {
      memcpy(&number, f + 14, 8);
      last = number == LAST;
      if (!last && number > *expected) missing += number - *expected;
      if (!last && number >= *expected) *expected = number + 1;
    }
    if (!last) frames++, bytes_total += bytes;
    nic.release(&nic);
  }
  return last;
}

static void receive(uint64_t idle_ns) {
  uint64_t expected = 0;
  lapic_timer_periodic(100000000, TICK_VECTOR); // so that the wait for the first frame and the idle time end
  print("net: ready\n");
  while (!take_frames(&expected)) {
    if (frames && tsc_to_ns(rdtsc() - last_tsc) > idle_ns) break;
    if (!nic.arm(&nic)) halt();
  }
  lapic_timer_stop();
}

static bool ended;

static void on_datagram(struct net *net, const struct net_peer *from, uint16_t port, const uint8_t *data, uint32_t bytes) {
  (void)net, (void)from, (void)data, (void)bytes;
  ended = ended || port == 9;
}

static void echo(void) {
  struct net net = {.nic = &nic, .ip = parse_ip(option("ip", "10.0.2.15")), .on_datagram = on_datagram, .tcp = true};
  net_announce(&net);
  lapic_timer_periodic(20000000, TICK_VECTOR); // for what is to be sent again
  print("net: ready\n");
  first_tsc = rdtsc();
  while (!ended) {
    uint32_t handled = net_poll(&net, 64);
    frames += handled;
    tcp_poll(&net);
    if (!handled && !nic.arm(&nic)) halt();
  }
  last_tsc = rdtsc();
  lapic_timer_stop();
  print("net: tcp received %lu sent %lu wrong %lu resent %lu\n", tcp_totals.received, tcp_totals.sent, tcp_totals.wrong,
        tcp_totals.retransmits);
}

int main(void) {
  const char *mode = option("mode", "tx");
  uint32_t size = (uint32_t)option_number("size", FRAME_MAX);
  if (size < 22 || size > BIG_FRAME_MAX) fail("size must be 22 to %u", BIG_FRAME_MAX);
  lapic_init();
  tsc_khz();
  bool offloads = size > FRAME_MAX || option("offloads", 0);
  if (!nic_open(&nic, (uint32_t)option_number("nic", 0), option_is("wait", "poll") ? 0 : NET_VECTOR, offloads)) fail("no network card");
  print("net: frames of up to %u bytes\n", nic.frame_max);
  nic.doorbells = 0;
  if (strcmp(mode, "tx") == 0) transmit(size, option_number("count", 10000), (uint32_t)option_number("batch", 64));
  else if (strcmp(mode, "rx") == 0) receive(option_number("idle", 1000) * 1000000);
  else if (strcmp(mode, "echo") == 0) echo();
  else fail("mode=%s is not known", mode);
  uint64_t ns = tsc_to_ns(last_tsc - first_tsc) + 1;
  print("bench: net mode=%s model=%s size=%u frames=%lu ns=%lu pps=%lu mbit_s=%lu doorbells=%lu interrupts=%u missing=%lu retries=%lu\n",
        mode, nic.model, size, frames, ns, frames * 1000000000 / ns, bytes_total * 8000 / ns, nic.doorbells, irq_counts[NET_VECTOR],
        missing, retries);
  return 0;
}
