#include "nic.h"

bool nic_open(struct nic *nic, uint32_t index, uint8_t vector, bool offloads) {
  return virtio_net_open(nic, index, vector, offloads) || e1000_open(nic, index, vector, offloads);
}
