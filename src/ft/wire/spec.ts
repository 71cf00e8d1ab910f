/**
 * The replication protocol's constants: commands, header layout, section types, limits. Written down for
 * people in docs/replication.md ("On the wire"); nothing here computes anything.
 *
 * Every number on the wire is little-endian. 64-bit numbers travel as two u32 (low first) and are Numbers
 * below 2^53 in memory. Used by the codec, the state machines of ft/core, and ft/shell.
 */

/** First four bytes of every frame: `TSFT`. */
export const WIRE_MAGIC = 0x54465354;
/** Version of the framing itself. What HELLO negotiates is {@link PROTOCOL}. */
export const WIRE_VERSION = 1;
/** Bytes of a frame's header. */
export const HEADER_BYTES = 40;

/** Byte offsets inside the header. */
export const HEADER = {
  magic: 0,
  version: 4,
  flags: 5,
  cmd: 6,
  id: 8,
  seq: 16,
  payloadBytes: 20,
  generation: 24,
  payloadCrc: 28,
  reserved: 32,
  headerCrc: 36,
} as const;

/** Versions of the message vocabulary that this code speaks. */
export const PROTOCOL = { min: 1, max: 1 } as const;

/**
 * Commands. The first eight are the vocabulary of the transaction protocol this one descends from, with
 * their numbers (NACK was -1); the others close what it left open.
 */
export const CMD = {
  INIT: 0,
  BEGIN: 1,
  CONTINUE: 2,
  COMMIT: 3,
  CANCEL: 4,
  ATOMIC: 5,
  ACK: 6,
  HELLO: 16,
  SYNC: 17,
  HANDOVER: 18,
  END: 19,
  HEARTBEAT: 20,
  NACK: 0xffff,
} as const;

/** The name of a command. */
export type CmdName = keyof typeof CMD;

/** Names by number, for decoding and for people. */
export const CMD_NAME: ReadonlyMap<number, CmdName> = new Map(
  (Object.entries(CMD) as [CmdName, number][]).map(([name, value]) => [value, name]),
);

/** What a payload's sections hold. */
export const SECTION = {
  /** Guest memory pages: a page stream (page-stream.ts). */
  pages: 1,
  /** One vCPU's state; instance = vCPU index. */
  vcpu: 2,
  /** What belongs to the machine as a whole: interrupt controllers, timer chip, clock. */
  vm: 3,
  /** One device's state; instance = position in the machine description. */
  device: 4,
  /** The event-tap's log. */
  tapLog: 5,
  /** Writes to a replicated disk, in order; instance = disk. */
  diskWrites: 6,
  /** Kernel, initrd, command line, firmware; instance = which. */
  bootImage: 7,
  /** A piece of a disk's initial copy; instance = disk. */
  diskCopy: 8,
} as const;

/** One of {@link SECTION}. */
export type SectionType = (typeof SECTION)[keyof typeof SECTION];

/** Bytes of a section's header: type u16, version u16, instance u32, length u32. */
export const SECTION_HEADER_BYTES = 12;

/** Why a stream ends; END carries one of these. */
export const END_REASON = {
  /** The guest switched itself off. */
  guestShutdown: 1,
  /** The operator ended the guest. */
  operator: 2,
  /** The operator ended protection; the guest runs on at the sender. */
  unprotect: 3,
} as const;

/** Who sends a HELLO. */
export const ROLE = { primary: 0, standby: 1 } as const;

/** What an end does when it loses the other and no arbiter is there to ask. */
export const ON_PEER_LOSS = {
  /** Primary: outputs wait. Standby: waits. Both: until an operator speaks or the peer is back. */
  wait: 0,
  /** Primary only: goes on without protection. */
  goOn: 1,
  /** Standby only: takes over. Never together with `goOn` at the other end. */
  takeover: 2,
} as const;

/** Where authority comes from. */
export const ARBITER = { none: 0, lock: 1, lease: 2 } as const;

/** Compression methods, as bits of a mask. */
export const COMPRESSION = { zero: 1, delta: 2, lz4: 4, zstd: 8 } as const;

/** Largest payload of a frame that is neither CONTINUE nor SYNC; HELLO is the longest. */
export const CONTROL_PAYLOAD_MAX = 1024;
/** Longest sentence in a NACK, bytes of UTF-8. */
export const SENTENCE_MAX_BYTES = 300;
/** Longest host name in a HELLO, bytes of UTF-8. */
export const HOST_NAME_MAX_BYTES = 128;
