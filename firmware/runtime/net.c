// RFC 826 (ARP), 791 (IPv4, no fragments, no options sent), 792 (ICMP echo), 768 (UDP).
#include "net.h"

#include "guest.h"
#include "tcp.h"

struct PACKED ethernet {
  uint8_t to[6], from[6];
  uint16_t type;
};
struct PACKED arp {
  uint16_t hardware, protocol;
  uint8_t hardware_bytes, protocol_bytes;
  uint16_t operation;
  uint8_t sender_mac[6];
  uint32_t sender_ip;
  uint8_t target_mac[6];
  uint32_t target_ip;
};
struct PACKED ipv4 {
  uint8_t version_length, service;
  uint16_t bytes, id, fragment;
  uint8_t ttl, protocol;
  uint16_t checksum;
  uint32_t source, destination;
};
struct PACKED udp {
  uint16_t source, destination, bytes, checksum;
};
#define TYPE_IPV4 0x0800
#define TYPE_ARP 0x0806

static uint16_t swap16(uint16_t v) { return (uint16_t)(v << 8 | v >> 8); }
static uint32_t swap32(uint32_t v) { return __builtin_bswap32(v); }

static uint32_t sum16(uint32_t sum, const void *data, uint32_t bytes) {
  const uint8_t *p = data;
  for (; bytes > 1; bytes -= 2, p += 2) sum += (uint32_t)p[0] << 8 | p[1];
  return bytes ? sum + ((uint32_t)p[0] << 8) : sum;
}

static uint16_t folded(uint32_t sum) {
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return swap16((uint16_t)~sum);
}

uint32_t parse_ip(const char *s) {
  uint32_t ip = 0;
  for (int part = 0; part < 4; part++) {
    uint32_t v = 0;
    const char *start = s;
    while (*s >= '0' && *s <= '9') v = v * 10 + (uint32_t)(*s++ - '0');
    if (s == start || v > 255 || (part < 3 && *s++ != '.')) return 0;
    ip = ip << 8 | v;
  }
  return ip;
}

static void send_arp(struct net *net, uint16_t operation, const uint8_t to[6], uint32_t target_ip) {
  uint8_t frame[60] = {0};
  struct ethernet *e = (struct ethernet *)frame;
  struct arp *a = (struct arp *)(e + 1);
  static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
  memcpy(e->to, to ? to : broadcast, 6);
  memcpy(e->from, net->nic->mac, 6);
  e->type = swap16(TYPE_ARP);
  *a = (struct arp){.hardware = swap16(1), .protocol = swap16(TYPE_IPV4), .hardware_bytes = 6, .protocol_bytes = 4};
  a->operation = swap16(operation);
  memcpy(a->sender_mac, net->nic->mac, 6);
  a->sender_ip = swap32(net->ip);
  if (to) memcpy(a->target_mac, to, 6);
  a->target_ip = swap32(target_ip);
  nic_send(net->nic, frame, sizeof frame);
}

void net_announce(struct net *net) { send_arp(net, 1, 0, net->ip); }

static void fill_ip(struct net *net, uint8_t *frame, const struct net_peer *to, uint8_t protocol, uint32_t payload) {
  struct ethernet *e = (struct ethernet *)frame;
  struct ipv4 *ip = (struct ipv4 *)(e + 1);
  memcpy(e->to, to->mac, 6);
  memcpy(e->from, net->nic->mac, 6);
  e->type = swap16(TYPE_IPV4);
  *ip = (struct ipv4){.version_length = 0x45, .ttl = 64, .protocol = protocol};
  ip->bytes = swap16((uint16_t)(sizeof *ip + payload));
  ip->id = swap16(net->next_id++);
  ip->source = swap32(net->ip);
  ip->destination = swap32(to->ip);
  ip->checksum = folded(sum16(0, ip, sizeof *ip));
}

bool net_send_ip(struct net *net, const struct net_peer *to, uint8_t protocol, const void *payload, uint32_t bytes, uint32_t checksum_at) {
  uint8_t frame[JUMBO_MAX] __attribute__((aligned(8)));
  const uint32_t head = sizeof(struct ethernet) + sizeof(struct ipv4);
  if (bytes > net->nic->frame_max - head) return false;
  fill_ip(net, frame, to, protocol, bytes);
  const struct ipv4 *ip = (const struct ipv4 *)(frame + sizeof(struct ethernet));
  memcpy(frame + head, payload, bytes);
  uint32_t sum = sum16((uint32_t)protocol + bytes, &ip->source, 8);
  uint16_t checksum = folded(sum16(sum, frame + head, bytes));
  if (!checksum) checksum = 0xffff; // RFC 768: zero means none
  memcpy(frame + head + checksum_at, &checksum, 2);
  uint32_t total = head + bytes;
  if (total < 60) memset(frame + total, 0, 60 - total), total = 60;
  return net->nic->queue(net->nic, frame, total);
}

bool net_reply(struct net *net, const struct net_peer *to, uint16_t from_port, const void *data, uint32_t bytes) {
  uint8_t datagram[JUMBO_MAX] __attribute__((aligned(8)));
  struct udp *u = (struct udp *)datagram;
  if (bytes > net->nic->frame_max - sizeof *u) return false;
  *u = (struct udp){swap16(from_port), swap16(to->port), swap16((uint16_t)(sizeof *u + bytes)), 0};
  memcpy(u + 1, data, bytes);
  bool queued = net_send_ip(net, to, 17, datagram, (uint32_t)sizeof *u + bytes, 6);
  net->nic->flush(net->nic);
  return queued;
}

static void on_ping(struct net *net, const struct net_peer *from, const uint8_t *icmp, uint32_t bytes) {
  uint8_t frame[JUMBO_MAX] __attribute__((aligned(8)));
  const uint32_t head = sizeof(struct ethernet) + sizeof(struct ipv4);
  if (bytes < 8 || icmp[0] != 8 || bytes > net->nic->frame_max - head) return;
  fill_ip(net, frame, from, 1, bytes);
  uint8_t *reply = frame + head;
  memcpy(reply, icmp, bytes);
  memset(reply, 0, 4);
  uint16_t checksum = folded(sum16(0, reply, bytes));
  memcpy(reply + 2, &checksum, 2);
  nic_send(net->nic, frame, head + bytes < 60 ? 60 : head + bytes);
}

static void on_ip(struct net *net, const uint8_t *frame, uint32_t bytes) {
  const struct ethernet *e = (const struct ethernet *)frame;
  const struct ipv4 *ip = (const struct ipv4 *)(e + 1);
  if (bytes < sizeof *e + sizeof *ip) return;
  uint32_t head = (ip->version_length & 15) * 4u, total = swap16(ip->bytes);
  if (ip->version_length >> 4 != 4 || head < 20 || total < head || total > bytes - sizeof *e) return;
  if (swap32(ip->destination) != net->ip || (swap16(ip->fragment) & 0x3fff) || folded(sum16(0, ip, head))) return;
  struct net_peer from = {.ip = swap32(ip->source)};
  memcpy(from.mac, e->from, 6);
  const uint8_t *data = (const uint8_t *)ip + head;
  bytes = total - head;
  if (ip->protocol == 1) return on_ping(net, &from, data, bytes);
  if (ip->protocol == 6 && net->tcp) return tcp_segment(net, &from, data, bytes);
  const struct udp *u = (const struct udp *)data;
  if (ip->protocol != 17 || bytes < sizeof *u || swap16(u->bytes) < sizeof *u || swap16(u->bytes) > bytes) return;
  from.port = swap16(u->source);
  uint32_t payload = swap16(u->bytes) - (uint32_t)sizeof *u;
  if (swap16(u->destination) == 7) net_reply(net, &from, 7, u + 1, payload);
  else if (net->on_datagram) net->on_datagram(net, &from, swap16(u->destination), (const uint8_t *)(u + 1), payload);
}

uint32_t net_poll(struct net *net, uint32_t limit) {
  uint32_t handled = 0, bytes;
  uint8_t *frame;
  for (; handled < limit && (frame = net->nic->receive(net->nic, &bytes)); handled++) {
    const struct ethernet *e = (const struct ethernet *)frame;
    const struct arp *a = (const struct arp *)(e + 1);
    if (bytes >= sizeof *e + sizeof *a && swap16(e->type) == TYPE_ARP) {
      if (swap16(a->operation) == 1 && swap32(a->target_ip) == net->ip && swap32(a->sender_ip) != net->ip)
        send_arp(net, 2, a->sender_mac, swap32(a->sender_ip));
    } else if (bytes >= sizeof *e && swap16(e->type) == TYPE_IPV4) {
      on_ip(net, frame, bytes);
    }
    net->nic->release(net->nic);
  }
  return handled;
}
