/**
 * Constants of the Intel 82540EM: register offsets, bits and descriptor layouts. Sections are those of the "PCI/PCI-X
 * Family of Gigabit Ethernet Controllers Software Developer's Manual" (8254x SDM).
 */

/** PCI identity (8254x SDM, 4.1 and 5.6). */
export const PCI_ID = { vendor: 0x8086, device: 0x100e, classCode: 0x020000, revision: 2 } as const;
/** Bytes of the register window (BAR 0). */
export const MMIO_BYTES = 0x20000;
/** Bytes of the I/O window (BAR 1): IOADDR at 0, IODATA at 4 (8254x SDM, 13.2.2). */
export const IO_BYTES = 64;
/** Registers above this offset (flexible filters, packet buffer memory) do not exist here: they read 0. */
export const REGISTER_SPACE = 0x6000;

/** Register offsets (8254x SDM, table 13-2). */
export const REG = {
  ctrl: 0x0000, // 13.4.1
  status: 0x0008, // 13.4.2
  eecd: 0x0010, // 13.4.3
  eerd: 0x0014, // 13.4.4
  ctrlExt: 0x0018, // 13.4.6
  fla: 0x001c, // 13.4.5
  mdic: 0x0020, // 13.4.7
  fcal: 0x0028,
  fcah: 0x002c,
  fct: 0x0030,
  vet: 0x0038,
  icr: 0x00c0, // 13.4.17
  itr: 0x00c4, // 13.4.18
  ics: 0x00c8, // 13.4.19
  ims: 0x00d0, // 13.4.20
  imc: 0x00d8, // 13.4.21
  rctl: 0x0100, // 13.4.22
  fcttv: 0x0170,
  txcw: 0x0178,
  tctl: 0x0400, // 13.4.33
  tipg: 0x0410,
  aifs: 0x0458,
  ledctl: 0x0e00,
  pba: 0x1000,
  fcrtl: 0x2160,
  fcrth: 0x2168,
  rdfh: 0x2410,
  rdfpc: 0x2430,
  rdbal: 0x2800,
  rdbah: 0x2804,
  rdlen: 0x2808,
  rdh: 0x2810,
  rdt: 0x2818, // 13.4.29
  rdtr: 0x2820, // 13.4.30
  rxdctl: 0x2828,
  radv: 0x282c, // 13.4.31
  rsrpd: 0x2c00, // 13.4.32
  txdmac: 0x3000,
  tdfh: 0x3410,
  tdfpc: 0x3430,
  tdbal: 0x3800,
  tdbah: 0x3804,
  tdlen: 0x3808,
  tdh: 0x3810,
  tdt: 0x3818, // 13.4.40
  tidv: 0x3820, // 13.4.41
  txdctl: 0x3828, // 13.4.43
  tadv: 0x382c, // 13.4.44
  tspmt: 0x3830, // 13.4.45
  rxcsum: 0x5000,
  mta: 0x5200, // 13.5.1, 128 words
  ral: 0x5400, // 13.5.2, 16 pairs RAL, RAH
  rah: 0x5404, // 13.5.3
  vfta: 0x5600, // 13.5.4, 128 words
  wuc: 0x5800,
  wufc: 0x5808,
  wus: 0x5810,
  manc: 0x5820,
  ipav: 0x5838,
} as const;

/** Statistics registers (8254x SDM, 13.7): they clear when read and stick at all ones. */
export const STAT = {
  first: 0x4000,
  last: 0x40fc,
  mpc: 0x4010,
  rlec: 0x4040,
  prc64: 0x405c, // six size classes, 4 bytes apart
  gprc: 0x4074,
  bprc: 0x4078,
  mprc: 0x407c,
  gptc: 0x4080,
  gorcl: 0x4088,
  gotcl: 0x4090,
  rnbc: 0x40a0,
  roc: 0x40ac,
  torl: 0x40c0,
  totl: 0x40c8,
  tpr: 0x40d0,
  tpt: 0x40d4,
  ptc64: 0x40d8, // six size classes, 4 bytes apart
  mptc: 0x40f0,
  bptc: 0x40f4,
  tsctc: 0x40f8,
  tsctfc: 0x40fc,
} as const;

/** Device control (13.4.1). */
export const CTRL = {
  fd: 1 << 0,
  asde: 1 << 5,
  slu: 1 << 6,
  speedShift: 8,
  frcspd: 1 << 11,
  frcdpx: 1 << 12,
  rst: 1 << 26,
  vme: 1 << 30,
  phyRst: 0x80000000,
} as const;

/** Extended device control (13.4.6). */
export const CTRL_EXT = { eeRst: 1 << 13 } as const;

/** Device status (13.4.2). */
export const STATUS = { fd: 1 << 0, lu: 1 << 1, speedShift: 6, asdvShift: 8 } as const;

/** EEPROM control (13.4.3). */
export const EECD = {
  sk: 1 << 0,
  cs: 1 << 1,
  di: 1 << 2,
  dout: 1 << 3,
  fweMask: 3 << 4,
  req: 1 << 6,
  gnt: 1 << 7,
  present: 1 << 8,
} as const;

/** EEPROM read (13.4.4). */
export const EERD = { start: 1 << 0, done: 1 << 4, addressShift: 8, dataShift: 16 } as const;

/** MDI control (13.4.7). */
export const MDIC = {
  dataMask: 0xffff,
  registerShift: 16,
  phyShift: 21,
  opMask: 3 << 26,
  opWrite: 1 << 26,
  opRead: 2 << 26,
  ready: 1 << 28,
  interrupt: 1 << 29,
  error: 1 << 30,
} as const;

/** Interrupt causes (13.4.17). */
export const ICR = {
  txdw: 1 << 0,
  txqe: 1 << 1,
  lsc: 1 << 2,
  rxdmt0: 1 << 4,
  rxo: 1 << 6,
  rxt0: 1 << 7,
  mdac: 1 << 9,
  txdLow: 1 << 15,
  srpd: 1 << 16,
  all: 0x1ffff,
} as const;

/** Receive control (13.4.22). */
export const RCTL = {
  en: 1 << 1,
  upe: 1 << 3,
  mpe: 1 << 4,
  lpe: 1 << 5,
  lbmMask: 3 << 6,
  rdmtsShift: 8,
  moShift: 12,
  bam: 1 << 15,
  bsizeShift: 16,
  vfe: 1 << 18,
  cfien: 1 << 19,
  cfi: 1 << 20,
  bsex: 1 << 25,
  secrc: 1 << 26,
} as const;

/** Transmit control (13.4.33). */
export const TCTL = { en: 1 << 1, psp: 1 << 3 } as const;

/** Transmit descriptor control (13.4.43). */
export const TXDCTL = { lwthreshShift: 25 } as const;

/** Receive delay timer (13.4.30). */
export const RDTR = { fpd: 0x80000000 } as const;

/** Receive checksum control. */
export const RXCSUM = { pcssMask: 0xff, ipofl: 1 << 8, tuofl: 1 << 9, ipv6ofl: 1 << 10 } as const;

/** Receive address high: address valid, address select (13.5.3). */
export const RAH = { av: 0x80000000, asMask: 3 << 16 } as const;

/** Pairs of receive address registers. */
export const RECEIVE_ADDRESSES = 16;

/** Bytes of any descriptor. */
export const DESCRIPTOR_BYTES = 16;

/** Third dword of a transmit descriptor: command in bits 31:24 (3.3.3.1, 3.3.6.1, 3.3.7.1). */
export const TXD = {
  eop: 1 << 24,
  /** Legacy only: insert checksum. */
  ic: 1 << 26,
  /** Context and data: TCP segmentation. */
  tse: 1 << 26,
  rs: 1 << 27,
  dext: 1 << 29,
  vle: 1 << 30,
  ide: 0x80000000,
  /** Context only: the packet is TCP (else UDP). */
  tucmdTcp: 1 << 24,
  /** Context only: the packet is IPv4 (else IPv6). */
  tucmdIp: 1 << 25,
  dtypMask: 0xf << 20,
  dtypData: 1 << 20,
  lengthMask: 0xfffff,
  /** Status byte, in the fourth dword. */
  dd: 1 << 0,
} as const;

/** Packet options of a data descriptor (3.3.7.3). */
export const POPTS = { ixsm: 1 << 0, txsm: 1 << 1 } as const;

/** Receive descriptor status byte (3.2.3.1). */
export const RXD = {
  dd: 1 << 0,
  eop: 1 << 1,
  ixsm: 1 << 2,
  vp: 1 << 3,
  tcpcs: 1 << 5,
  ipcs: 1 << 6,
  pif: 1 << 7,
} as const;

/** Receive descriptor error byte (3.2.3.2). */
export const RXE = { tcpe: 1 << 5, ipe: 1 << 6 } as const;

/** Frame sizes without FCS. */
export const ETH = {
  header: 14,
  vlanTag: 4,
  fcs: 4,
  /** Shortest frame; shorter ones are padded (13.4.33 PSP). */
  min: 60,
  /** Longest frame with FCS unless RCTL.LPE (13.7.36). */
  maxReceive: 1522,
  /** Longest frame with FCS with RCTL.LPE (13.7.36). */
  maxReceiveLong: 16384,
  /** Longest frame that one (not segmented) transmit packet may have (3.3). */
  maxTransmit: 16288,
} as const;

/** Nanoseconds of one count of RDTR, RADV, TIDV, TADV (13.4.30). */
export const DELAY_UNIT_NS = 1024;
/** Nanoseconds of one count of ITR (13.4.18). */
export const ITR_UNIT_NS = 256;
