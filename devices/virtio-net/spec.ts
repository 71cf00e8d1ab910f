/** Numbers of the network device (VIRTIO 1.2, 5.1). */

/** Feature bits (5.1.3). */
export const NET_FEATURE = {
  csum: 0,
  guestCsum: 1,
  ctrlGuestOffloads: 2,
  mtu: 3,
  mac: 5,
  guestTso4: 7,
  guestTso6: 8,
  guestEcn: 9,
  hostTso4: 11,
  hostTso6: 12,
  hostEcn: 13,
  mergeable: 15,
  status: 16,
  ctrlVq: 17,
  ctrlRx: 18,
  ctrlVlan: 19,
  ctrlRxExtra: 20,
  guestAnnounce: 21,
  ctrlMacAddr: 23,
} as const;

/** Features that need another one (5.1.3.1): [feature, one of these is needed]. */
export const NET_FEATURE_NEEDS: readonly (readonly [number, readonly number[]])[] = [
  [NET_FEATURE.guestTso4, [NET_FEATURE.guestCsum]],
  [NET_FEATURE.guestTso6, [NET_FEATURE.guestCsum]],
  [NET_FEATURE.guestEcn, [NET_FEATURE.guestTso4, NET_FEATURE.guestTso6]],
  [NET_FEATURE.hostTso4, [NET_FEATURE.csum]],
  [NET_FEATURE.hostTso6, [NET_FEATURE.csum]],
  [NET_FEATURE.hostEcn, [NET_FEATURE.hostTso4, NET_FEATURE.hostTso6]],
  [NET_FEATURE.ctrlGuestOffloads, [NET_FEATURE.ctrlVq]],
  [NET_FEATURE.ctrlRx, [NET_FEATURE.ctrlVq]],
  [NET_FEATURE.ctrlRxExtra, [NET_FEATURE.ctrlVq]],
  [NET_FEATURE.ctrlVlan, [NET_FEATURE.ctrlVq]],
  [NET_FEATURE.guestAnnounce, [NET_FEATURE.ctrlVq]],
  [NET_FEATURE.ctrlMacAddr, [NET_FEATURE.ctrlVq]],
];

/** Offsets in the device configuration (5.1.4). */
export const NET_CONFIG = { mac: 0, status: 6, maxQueuePairs: 8, mtu: 10, bytes: 12 } as const;

/** Bits of the status field (5.1.4). */
export const NET_STATUS = { linkUp: 1, announce: 2 } as const;

/** Queue numbers (5.1.2). */
export const NET_QUEUE = { receive: 0, transmit: 1, control: 2 } as const;

/** `virtio_net_hdr_v1` (5.1.6): offsets, flags and segmentation types. */
export const NET_HEADER = {
  flags: 0,
  gsoType: 1,
  gsoSize: 4,
  csumStart: 6,
  csumOffset: 8,
  numBuffers: 10,
} as const;
export const HEADER_FLAG = { needsCsum: 1, dataValid: 2 } as const;
export const GSO = { none: 0, tcp4: 1, udp: 3, tcp6: 4, ecn: 0x80 } as const;

/** Control classes and commands (5.1.6.5). */
export const CONTROL = { rx: 0, mac: 1, vlan: 2, announce: 3, guestOffloads: 5 } as const;
export const CONTROL_RX = {
  promisc: 0,
  allMulti: 1,
  allUni: 2,
  noMulti: 3,
  noUni: 4,
  noBroadcast: 5,
} as const;
export const CONTROL_MAC = { tableSet: 0, addrSet: 1 } as const;
export const CONTROL_VLAN = { add: 0, remove: 1 } as const;
export const CONTROL_OK = 0;
export const CONTROL_ERROR = 1;
