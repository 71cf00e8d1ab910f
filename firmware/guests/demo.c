// The demo guest: counts on its console, answers ARP, ping, TCP (tcp.h) and numbered UDP requests, and keeps a journal of them on its
// disk, so that somebody outside can prove that nothing acknowledged was lost. The formats are in firmware/README.md.
//
// Options: period=MS (100) ticks=N (0: for ever) ip=A.B.C.D (10.0.2.15) port=N (7777) quiet (no line per tick).
#include "apic.h"
#include "guest.h"
#include "net.h"
#include "tcp.h"
#include "timer.h"
#include "virtio-blk.h"

#define TICK_VECTOR VECTOR_COUNTED
#define NET_VECTOR (VECTOR_COUNTED + 1)
#define DISK_VECTOR (VECTOR_COUNTED + 2)
#define SECTOR 512
#define BATCH 32

struct PACKED reply {
  uint32_t magic, status; // status: 0, or 1 if the disk failed
  uint64_t number, count, ticks, sequence;
  uint32_t boot_id, checksum; // CRC-32C of what precedes it
};
#define REPLY_MAGIC 0x7076736d // "msvp"

struct PACKED record {
  uint32_t magic, checksum; // CRC-32C of what follows it
  uint64_t sequence, number, count, ticks;
  uint32_t boot_id, reserved;
  uint8_t filler[SECTOR - 48]; // (sequence + index) & 0xff
};
_Static_assert(sizeof(struct record) == SECTOR, "one record is one sector");
#define RECORD_MAGIC 0x4c4e524a // "JRNL"

static uint64_t ticks, count, sequence;
static uint32_t boot_id;
static struct blk disk;
static bool with_disk;
static struct net net;
static struct nic nic;
static bool with_net;
static uint16_t service_port;

// Requests taken off the ring and not yet answered: their records are flushed together.
static struct pending {
  struct net_peer from;
  struct reply reply;
} pending[BATCH];
static uint32_t pending_count;
static struct record *records;

static uint32_t checksum_of(const struct record *r) { return crc32c(0, (const uint8_t *)r + 8, SECTOR - 8); }

static void on_datagram(struct net *n, const struct net_peer *from, uint16_t port, const uint8_t *data, uint32_t bytes) {
  (void)n;
  if (port != service_port || bytes < 8 || pending_count == BATCH) return;
  struct pending *p = &pending[pending_count];
  p->from = *from;
  p->reply = (struct reply){.magic = REPLY_MAGIC, .ticks = ticks, .count = ++count, .boot_id = boot_id};
  memcpy(&p->reply.number, data, 8);
  if (with_disk) {
    struct record *r = &records[pending_count];
    *r = (struct record){.magic = RECORD_MAGIC, .sequence = ++sequence, .count = count, .ticks = ticks, .boot_id = boot_id};
    r->number = p->reply.number;
    for (uint32_t i = 0; i < sizeof r->filler; i++) r->filler[i] = (uint8_t)(sequence + i);
    r->checksum = checksum_of(r);
    p->reply.sequence = sequence;
  }
  pending_count++;
}

static uint8_t write_records(void) {
  uint8_t failed = 0, status;
  uint16_t slot;
  for (uint32_t i = 0; i < pending_count; i++)
    blk_submit(&disk, (uint16_t)i, BLK_OUT, records[i].sequence % disk.sectors, &records[i], SECTOR);
  virtq_kick(&disk.queue);
  for (uint32_t done = 0; done < pending_count;) {
    if (blk_take(&disk, &slot, &status)) failed |= status, done++;
    else blk_wait(&disk);
  }
  return failed | blk_flush(&disk);
}

// All records, then one flush, then all replies: a reply means that its record is on the disk.
static void answer(void) {
  uint8_t failed = with_disk && pending_count ? write_records() : 0;
  for (uint32_t i = 0; i < pending_count; i++) {
    struct reply *r = &pending[i].reply;
    r->status = failed != 0;
    r->checksum = crc32c(0, r, sizeof *r - 4);
    net_reply(&net, &pending[i].from, service_port, r, sizeof *r);
  }
  pending_count = 0;
}

// Continues after the highest sequence that the disk holds.
static void open_journal(void) {
  static const uint32_t chunk = 64;
  struct record *read = allocate(chunk * SECTOR, 4096);
  records = allocate(BATCH * SECTOR, 4096);
  for (uint64_t at = 0; at < disk.sectors; at += chunk) {
    uint32_t n = disk.sectors - at < chunk ? (uint32_t)(disk.sectors - at) : chunk;
    uint8_t status = blk_do(&disk, BLK_IN, at, read, n * SECTOR);
    if (status) fail("reading the journal at sector %lu: status %u", at, status);
    bool any = at == 0;
    for (uint32_t i = 0; i < n; i++) {
      if (read[i].magic != RECORD_MAGIC || read[i].checksum != checksum_of(&read[i])) continue;
      any = true;
      if (read[i].sequence > sequence) sequence = read[i].sequence;
    }
    if (!any) break; // records are written in order: nothing lies behind an empty stretch
  }
}

int main(void) {
  uint64_t period_ms = option_number("period", 100), last = option_number("ticks", 0);
  bool quiet = option("quiet", 0) != 0;
  service_port = (uint16_t)option_number("port", 7777);
  boot_id = (uint32_t)(rdtsc() >> 8) | 1;
  lapic_init();
  with_net = nic_open(&nic, 0, NET_VECTOR, false);
  with_disk = blk_open(&disk, 0, DISK_VECTOR) && !disk.read_only && disk.sectors >= 64;
  if (with_disk) {
    open_journal();
    print("tsvmm demo: disk of %lu sectors, journal at %lu\n", disk.sectors, sequence);
  }
  if (with_net) {
    const uint8_t *m = nic.mac;
    net = (struct net){.nic = &nic, .ip = parse_ip(option("ip", "10.0.2.15")), .on_datagram = on_datagram, .tcp = true};
    if (!net.ip) fail("ip= is not an IPv4 address");
    print("tsvmm demo: %s %02x:%02x:%02x:%02x:%02x:%02x at %s port %u\n", nic.model, m[0], m[1], m[2], m[3], m[4], m[5],
          option("ip", "10.0.2.15"), service_port);
    net_announce(&net);
  }
  lapic_timer_periodic(period_ms * 1000000, TICK_VECTOR);
  while (!last || ticks < last) {
    while (irq_counts[TICK_VECTOR] != (uint32_t)ticks && (!last || ticks < last)) {
      ticks++;
      if (!quiet) print("tsvmm demo: tick %lu\n", ticks);
    }
    if (with_net) {
      uint32_t taken = net_poll(&net, BATCH);
      answer();
      tcp_poll(&net);
      if (taken || nic.arm(&nic)) continue;
    }
    if (!last || ticks < last) halt();
  }
  lapic_timer_stop();
  print("tsvmm demo: end, %lu requests\n", count);
  return 0;
}
