/**
 * What can be wrong with a stream: numbered for the peer, worded for a person. Codes 1-7 have the numbers and
 * meanings of the transaction protocol this one descends from; the rest name what that one let pass.
 */

/** Codes carried by NACK and CANCEL, and reported by the decoder and the state machines. */
export const FAULT = {
  UNKNOWN: 1,
  SEND_HEADER: 2,
  RECV_HEADER: 3,
  SEND_PAYLOAD: 4,
  RECV_PAYLOAD: 5,
  FLUSH: 6,
  STATE_INVALID: 7,
  BAD_MAGIC: 8,
  BAD_VERSION: 9,
  HEADER_CHECKSUM: 10,
  PAYLOAD_CHECKSUM: 11,
  PAYLOAD_TOO_LARGE: 12,
  TRANSACTION_TOO_LARGE: 13,
  ID_STALE: 14,
  ID_GAP: 15,
  SEQ_WRONG: 16,
  COMMAND_UNKNOWN: 17,
  MALFORMED: 18,
  SECTION_UNKNOWN: 19,
  SECTION_MISSING: 20,
  SECTION_MALFORMED: 21,
  MANIFEST_MISMATCH: 22,
  PAGE_CHECKSUM: 23,
  BASE_UNKNOWN: 24,
  GENERATION_WRONG: 25,
  OTHER_VM: 26,
  OTHER_MACHINE: 27,
  OTHER_CPU: 28,
  PAGE_SIZE: 29,
  PROTOCOL_VERSION: 30,
  ROLE_CONFLICT: 31,
  POLICY_CONFLICT: 32,
  RESOURCE_MISSING: 33,
  CANCELLED: 34,
  PEER_SILENT: 35,
  ENDED: 36,
  TAKEN_OVER: 37,
  SUPERSEDED: 38,
  LIMITS: 39,
  STANDBY_DEGRADED: 40,
  STANDBY_CHANGED: 41,
} as const;

/** One of {@link FAULT}, or 0 for "no fault" where a function's result says so. */
export type FaultCode = (typeof FAULT)[keyof typeof FAULT];

const SENTENCES: Readonly<Record<FaultCode, string>> = {
  1: 'Something failed that has no code of its own.',
  2: 'A frame header could not be sent.',
  3: 'The stream ended or failed inside a frame header.',
  4: 'A frame payload could not be sent.',
  5: 'The stream ended or failed inside a frame payload.',
  6: 'Buffered frames could not be written out.',
  7: 'The frame is not allowed in this state of the stream.',
  8: 'This is not a tsvmm replication stream.',
  9: 'The peer frames its messages in a version that is not known here.',
  10: 'A frame header was damaged on the way.',
  11: 'A frame payload was damaged on the way.',
  12: 'A frame is larger than the limit both sides agreed on.',
  13: 'A transaction is larger than the limit both sides agreed on.',
  14: 'A transaction carries an id that was used before.',
  15: 'A transaction id is missing.',
  16: 'A part of a transaction is missing, repeated or out of order.',
  17: 'The peer sent a command that is not known here.',
  18: 'A frame is shorter or longer than its command requires, or holds an impossible value.',
  19: 'A transaction holds a section that is not known here.',
  20: 'A transaction lacks a section that a complete state needs.',
  21: 'A section of a transaction cannot be read.',
  22: 'A transaction does not add up to what its sender counted.',
  23: 'A guest page is not what its sender had after decoding.',
  24: 'A transaction builds on a state that is not held here.',
  25: 'The frame belongs to another generation of the guest.',
  26: 'The peer runs another guest.',
  27: 'The peer has another machine description.',
  28: 'The peer offers the guest another CPU.',
  29: 'The peer uses another page size.',
  30: 'The two versions of tsvmm have no protocol version in common.',
  31: 'Both ends claim the same role.',
  32: 'Going on alone on one side and taking over on the other, without an arbiter, would run the guest twice.',
  33: 'A disk, network or KVM that the guest needs is missing on the standby.',
  34: 'The transaction was given up.',
  35: 'Nothing was heard from the peer for too long.',
  36: 'The guest has ended; there is nothing left to protect.',
  37: 'The standby has taken over; this side must not go on.',
  38: 'A newer connection has taken the place of this one.',
  39: 'The two ends cannot agree on limits.',
  40: 'The standby could not write to its disk and keeps those writes in memory.',
  41: 'Another standby process answers; the one that was in sync may have taken over, so an operator has to decide.',
};

/** The sentence for `code`; an unknown code gets one too, so that a newer peer's NACK can still be shown. */
export function faultSentence(code: number): string {
  return SENTENCES[code as FaultCode] ?? `The peer reported code ${code}, which is not known here.`;
}

/** Something wrong with a stream, as plain data. */
export interface Fault {
  readonly code: FaultCode;
  /** One sentence for a person: {@link faultSentence} plus what is special about this case. */
  readonly sentence: string;
}

/** Makes a {@link Fault}; `detail` is appended to the code's sentence. */
export function fault(code: FaultCode, detail = ''): Fault {
  const sentence = faultSentence(code);
  return { code, sentence: detail === '' ? sentence : `${sentence} (${detail})` };
}
