// As little TCP (RFC 9293) as a throughput or fail-over test needs: a server for a few connections at a time, in-order
// data only, no congestion control (a fixed bound on what is in flight), retransmission by going back to the first
// unacknowledged byte. The byte at position p of every stream is tcp_pattern(p).
//
// Port 9 (discard): takes a stream until the client's FIN, then answers 16 bytes: how many bytes came (64 bits) and how
// many were not the pattern (64 bits). Port 19 (chargen): sends the pattern until the client closes.
#ifndef TCP_H
#define TCP_H
#include "net.h"

struct tcp_totals {
  uint64_t received, sent, wrong, retransmits, connections;
};
extern struct tcp_totals tcp_totals;

static inline uint8_t tcp_pattern(uint64_t p) { return (uint8_t)(p ^ p >> 8 ^ p >> 16); }

// Handles one segment; net.c calls it for a net with `tcp` set.
void tcp_segment(struct net *net, const struct net_peer *from, const uint8_t *segment, uint32_t bytes);
// Sends what may be sent: data, acknowledgements, what is due again. Call it after net_poll() and now and then.
void tcp_poll(struct net *net);

#endif
