// A small IPv4 host on one card: answers ARP and ping, echoes UDP port 7, hands other datagrams to the guest.
#ifndef NET_H
#define NET_H
#include "nic.h"

struct net;
// A datagram for a port other than 7. Answer with net_reply(), now or later with a copied `from`.
struct net_peer {
  uint8_t mac[6];
  uint32_t ip; // host order
  uint16_t port;
};
typedef void net_datagram(struct net *net, const struct net_peer *from, uint16_t port, const uint8_t *data, uint32_t bytes);

struct net {
  struct nic *nic;
  uint32_t ip; // host order
  uint16_t next_id;
  net_datagram *on_datagram;
  bool tcp; // tcp.h's services too
};

uint32_t parse_ip(const char *text); // "10.0.2.15" to host order; 0 if it is none
// Handles up to `limit` received frames; returns how many.
uint32_t net_poll(struct net *net, uint32_t limit);
bool net_reply(struct net *net, const struct net_peer *to, uint16_t from_port, const void *data, uint32_t bytes);
// Queues an IPv4 packet (flush the card afterwards); the checksum over payload and pseudo header goes to `checksum_at`.
bool net_send_ip(struct net *net, const struct net_peer *to, uint8_t protocol, const void *payload, uint32_t bytes, uint32_t checksum_at);
void net_announce(struct net *net); // gratuitous ARP

#endif
