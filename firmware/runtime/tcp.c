#include "tcp.h"

#include "guest.h"
#include "timer.h"

#define FIN 1
#define SYN 2
#define RST 4
#define ACK 16
#define PORT_SINK 9
#define PORT_SOURCE 19

#define CONNECTIONS 4
#define MSS_MAX 1460
#define WINDOW_SHIFT 2 // the window that is offered is always 65535 << 2: everything is consumed at once
#define IN_FLIGHT_MAX (256u << 10)
#define RESEND_NS 200000000

struct PACKED tcp_header {
  uint16_t source, destination;
  uint32_t sequence, acknowledgement;
  uint8_t offset, flags;
  uint16_t window, checksum, urgent;
};

// Positions count bytes of a stream from 0; sequence number = initial + 1 + position. A FIN stands at `limit`.
struct connection {
  bool open, established, peer_closed, ack_due;
  struct net_peer peer;
  uint16_t port, mss;
  uint8_t peer_shift, duplicate_acks;
  uint32_t initial, peer_initial;
  uint64_t acknowledged, next, highest, limit, received, wrong; // highest: sent at any time, the FIN included
  uint64_t window;
  uint64_t progress_tsc; // of the last acknowledgement, or of the first byte in flight
};

struct tcp_totals tcp_totals;
static struct connection connections[CONNECTIONS];

static void send(struct net *net, struct connection *c, uint8_t flags, uint64_t at, uint32_t bytes) {
  uint8_t segment[sizeof(struct tcp_header) + 8 + MSS_MAX] __attribute__((aligned(8)));
  struct tcp_header *h = (struct tcp_header *)segment;
  uint32_t options = flags & SYN ? 8 : 0;
  *h = (struct tcp_header){.source = __builtin_bswap16(c->port), .destination = __builtin_bswap16(c->peer.port), .flags = flags};
  h->sequence = __builtin_bswap32(c->initial + (flags & SYN ? 0 : 1 + (uint32_t)at));
  h->acknowledgement = __builtin_bswap32(c->peer_initial + 1 + (uint32_t)c->received + c->peer_closed);
  h->offset = (uint8_t)((sizeof *h + options) / 4 << 4);
  h->window = 0xffff;
  uint8_t *p = segment + sizeof *h;
  if (options) { // maximum segment size, no-operation, window scale
    static const uint8_t text[8] = {2, 4, MSS_MAX >> 8, MSS_MAX & 0xff, 1, 3, 3, WINDOW_SHIFT};
    memcpy(p, text, 8);
    p += 8;
  }
  if (c->port == PORT_SOURCE) {
    for (uint32_t i = 0; i < bytes; i++) p[i] = tcp_pattern(at + i);
  } else {
    uint64_t result[2] = {c->received, c->wrong};
    memcpy(p, (uint8_t *)result + at, bytes);
  }
  net_send_ip(net, &c->peer, 6, segment, (uint32_t)sizeof *h + options + bytes, 16);
  c->ack_due = false;
}

static void refuse(struct net *net, const struct net_peer *from, const struct tcp_header *h, uint16_t port) {
  struct connection c = {.peer = *from, .port = port};
  c.initial = __builtin_bswap32(h->acknowledgement) - 1;
  c.peer_initial = __builtin_bswap32(h->sequence) - !(h->flags & SYN);
  send(net, &c, RST | ACK, 0, 0);
}

static void read_options(struct connection *c, const uint8_t *p, const uint8_t *end) {
  c->mss = 536;
  c->peer_shift = 0;
  while (p < end && *p != 0) {
    if (*p == 1) {
      p++;
      continue;
    }
    if (p + 2 > end || p[1] < 2 || p + p[1] > end) return;
    if (p[0] == 2 && p[1] == 4) c->mss = (uint16_t)(p[2] << 8 | p[3]);
    if (p[0] == 3 && p[1] == 3) c->peer_shift = p[2] > 14 ? 14 : p[2];
    p += p[1];
  }
  if (c->mss > MSS_MAX || c->mss < 64) c->mss = MSS_MAX;
}

static void take_data(struct connection *c, const uint8_t *data, uint32_t skip, uint32_t bytes) {
  uint64_t wrong = 0;
  for (uint32_t i = skip; i < bytes; i++) wrong += data[i] != tcp_pattern(c->received + i - skip);
  c->wrong += wrong;
  c->received += bytes - skip;
  tcp_totals.wrong += wrong;
  tcp_totals.received += bytes - skip;
}

static void go_back(struct connection *c) {
  c->next = c->acknowledged;
  c->progress_tsc = rdtsc();
  c->duplicate_acks = 0;
  tcp_totals.retransmits++;
}

static void take_acknowledgement(struct connection *c, const struct tcp_header *h, uint32_t bytes) {
  uint64_t in_flight = c->highest - c->acknowledged;
  uint32_t step = __builtin_bswap32(h->acknowledgement) - (c->initial + 1 + (uint32_t)c->acknowledged);
  uint64_t window = (uint64_t)__builtin_bswap16(h->window) << c->peer_shift;
  if (step && step <= in_flight) {
    c->acknowledged += step;
    if (c->next < c->acknowledged) c->next = c->acknowledged;
    c->progress_tsc = rdtsc();
    c->duplicate_acks = 0;
  } else if (step == 0 && in_flight && bytes == 0 && window == c->window && ++c->duplicate_acks == 3) {
    go_back(c);
  }
  c->window = window;
}

void tcp_segment(struct net *net, const struct net_peer *from, const uint8_t *segment, uint32_t bytes) {
  const struct tcp_header *h = (const struct tcp_header *)segment;
  uint32_t head = bytes >= sizeof *h ? (h->offset >> 4) * 4u : 0;
  if (head < sizeof *h || head > bytes) return;
  uint16_t source = __builtin_bswap16(h->source), port = __builtin_bswap16(h->destination);
  struct connection *c = 0, *unused = 0;
  for (uint32_t i = 0; i < CONNECTIONS; i++) {
    struct connection *k = &connections[i];
    if (k->open && k->peer.ip == from->ip && k->peer.port == source && k->port == port) c = k;
    if (!k->open) unused = k;
  }
  if (h->flags & RST) {
    if (c) c->open = false;
    return;
  }
  if (h->flags & SYN) {
    if (c && c->established) return;
    if (!c) c = unused;
    if (!c || (port != PORT_SINK && port != PORT_SOURCE)) {
      struct net_peer peer = *from;
      peer.port = source;
      return refuse(net, &peer, h, port);
    }
    *c = (struct connection){.open = true, .peer = *from, .port = port};
    c->peer.port = source;
    c->peer_initial = __builtin_bswap32(h->sequence);
    c->initial = (uint32_t)rdtsc() | 1;
    c->limit = port == PORT_SOURCE ? ~0ul >> 1 : 0;
    read_options(c, segment + sizeof *h, segment + head);
    send(net, c, SYN | ACK, 0, 0);
    return;
  }
  if (!c) {
    struct net_peer peer = *from;
    peer.port = source;
    return refuse(net, &peer, h, port);
  }
  if (!(h->flags & ACK)) return;
  if (!c->established) {
    c->established = true;
    tcp_totals.connections++;
  }
  memcpy(c->peer.mac, from->mac, 6);
  uint32_t data = bytes - head;
  take_acknowledgement(c, h, data);
  if (c->acknowledged == c->limit + 1) { // our FIN too
    c->open = false;
    return;
  }
  // In order, or overlapping what is there already; anything else is answered with what is expected.
  uint32_t behind = c->peer_initial + 1 + (uint32_t)c->received - __builtin_bswap32(h->sequence);
  if (data || h->flags & FIN) c->ack_due = true;
  if (c->peer_closed || behind > data) return;
  if (data > behind) take_data(c, segment + head, behind, data);
  if (h->flags & FIN) {
    c->peer_closed = true;
    c->limit = c->port == PORT_SOURCE ? c->highest : sizeof(uint64_t[2]);
  }
}

static void sent_up_to(struct connection *c, uint64_t position) {
  if (c->highest == c->acknowledged) c->progress_tsc = rdtsc();
  c->next = position;
  if (c->highest < position) c->highest = position;
}

static void send_data(struct net *net, struct connection *c) {
  if (c->highest > c->acknowledged && tsc_to_ns(rdtsc() - c->progress_tsc) > RESEND_NS) go_back(c);
  uint64_t most = c->window < IN_FLIGHT_MAX ? c->window : IN_FLIGHT_MAX;
  while (c->next < c->limit && net->nic->room(net->nic)) {
    uint64_t n = c->mss;
    if (n > c->limit - c->next) n = c->limit - c->next;
    if (n > most - (c->next - c->acknowledged)) break; // whole segments only
    send(net, c, ACK, c->next, (uint32_t)n);
    tcp_totals.sent += n;
    sent_up_to(c, c->next + n);
  }
  if (c->peer_closed && c->next == c->limit) {
    send(net, c, FIN | ACK, c->limit, 0);
    sent_up_to(c, c->limit + 1);
  }
}

void tcp_poll(struct net *net) {
  for (uint32_t i = 0; i < CONNECTIONS; i++) {
    struct connection *c = &connections[i];
    if (!c->open || !c->established) continue;
    send_data(net, c);
    if (c->ack_due) send(net, c, ACK, c->next, 0);
  }
  net->nic->flush(net->nic);
}
