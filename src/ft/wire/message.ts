/**
 * The messages of the replication protocol as typed plain objects. Bulk payloads (CONTINUE, SYNC) stay bytes:
 * whoever receives such a message borrows them until its handler returns.
 */
import type { ARBITER, END_REASON, ON_PEER_LOSS, ROLE } from './spec.ts';

type ValueOf<T> = T[keyof T];

/** What an end can take; each end announces its own, the smaller one holds for both. */
export interface Limits {
  /** Largest payload of a CONTINUE or SYNC frame, bytes. */
  readonly frameBytesMax: number;
  /** Largest transaction, bytes of payload; guest memory plus device state fits by default. */
  readonly transactionBytesMax: number;
  /** Most transactions whose ACK is outstanding. */
  readonly epochsInFlightMax: number;
  /** Most bytes of held outputs in the event-tap's log. */
  readonly tapBytesMax: number;
}

/** The opening message of either end. */
export interface Hello {
  readonly protocolMin: number;
  readonly protocolMax: number;
  readonly role: ValueOf<typeof ROLE>;
  readonly onPeerLoss: ValueOf<typeof ON_PEER_LOSS>;
  readonly arbiter: ValueOf<typeof ARBITER>;
  /** 16 bytes in hexadecimal: which guest. */
  readonly vm: string;
  /** 8 bytes in hexadecimal: which process; drawn anew at every start. */
  readonly instance: string;
  /** The generation of the guest this end knows (0: none). It rises by one at every takeover. */
  readonly generation: number;
  /** Last committed transaction of that generation. Only with `complete`. */
  readonly committedId: number;
  /** Whether a first COMMIT has made the state held here complete. */
  readonly complete: boolean;
  /** Whether END was received for that generation. */
  readonly ended: boolean;
  /** 32 bytes in hexadecimal: the machine description. */
  readonly machineDigest: string;
  /** 32 bytes in hexadecimal: CPUID and MSR baseline. */
  readonly cpuDigest: string;
  readonly pageBytes: number;
  readonly tscKhz: number;
  /** Mask of COMPRESSION bits. */
  readonly compression: number;
  readonly limits: Limits;
  /** For people only. */
  readonly host: string;
}

/** What a transaction consists of, counted by its sender; the receiver counts too and compares before its ACK. */
export interface Manifest {
  /** CONTINUE frames. */
  readonly frames: number;
  readonly sections: number;
  /** Payload bytes of all CONTINUE frames. */
  readonly bytes: number;
  readonly pages: number;
  /** CRC-32C over the payloads of all CONTINUE frames, in order. */
  readonly crc: number;
}

/** What every message has. */
export interface Envelope {
  readonly generation: number;
  /** Transaction id; 0 where the message belongs to none. */
  readonly id: number;
  /** Position inside the transaction or the synchronisation. */
  readonly seq: number;
}

/** HELLO: who, which versions, which limits, which state. First frame of either end. */
export interface HelloMessage extends Envelope {
  readonly cmd: 'HELLO';
  readonly hello: Hello;
}
/** INIT: how the stream starts. `full` makes the receiver forget its state; `resume` builds on `id`. */
export interface InitMessage extends Envelope {
  readonly cmd: 'INIT';
  readonly mode: 'full' | 'resume';
}
/** SYNC: part of the first copy, applied at once; only between INIT(full) and the first COMMIT. */
export interface SyncMessage extends Envelope {
  readonly cmd: 'SYNC';
  readonly payload: Uint8Array;
}
/** BEGIN: opens transaction `id`, which builds on `baseId`; `seq` counts the CANCELs before it on this connection. */
export interface BeginMessage extends Envelope {
  readonly cmd: 'BEGIN';
  readonly baseId: number;
  /** SYNC frames sent since INIT: the first copy is whole only if all of them arrived. */
  readonly syncFrames: number;
}
/** CONTINUE: the next part of the open transaction, whole sections. */
export interface ContinueMessage extends Envelope {
  readonly cmd: 'CONTINUE';
  readonly payload: Uint8Array;
}
/** COMMIT or ATOMIC: closes the transaction. After ATOMIC the guest stands still until the ACK. */
export interface CommitMessage extends Envelope {
  readonly cmd: 'COMMIT' | 'ATOMIC';
  readonly manifest: Manifest;
}
/** CANCEL: the sender gives up its open transaction, or confirms a NACK; `id` may be used again. */
export interface CancelMessage extends Envelope {
  readonly cmd: 'CANCEL';
  readonly code: number;
}
/** ACK: `id` is held, complete and validated. */
export interface AckMessage extends Envelope {
  readonly cmd: 'ACK';
  readonly of: 'init' | 'commit' | 'handover' | 'end';
  /** The standby keeps writes in memory that its disk refused. */
  readonly degraded: boolean;
}
/** NACK: `id` and what follows it is refused; the last committed state stands. Id 0: the connection is refused. */
export interface NackMessage extends Envelope {
  readonly cmd: 'NACK';
  readonly code: number;
  readonly sentence: string;
}
/** HANDOVER: the sender stands still for good and passes the guest on as `newGeneration`. */
export interface HandoverMessage extends Envelope {
  readonly cmd: 'HANDOVER';
  readonly newGeneration: number;
}
/** END: nothing follows; a standby that has it never takes over. */
export interface EndMessage extends Envelope {
  readonly cmd: 'END';
  readonly reason: ValueOf<typeof END_REASON>;
}
/** HEARTBEAT: alive. The standby adds how far it has applied. */
export interface HeartbeatMessage extends Envelope {
  readonly cmd: 'HEARTBEAT';
  readonly appliedId: number;
  readonly degraded: boolean;
}

/** Any message. */
export type Message =
  | HelloMessage
  | InitMessage
  | SyncMessage
  | BeginMessage
  | ContinueMessage
  | CommitMessage
  | CancelMessage
  | AckMessage
  | NackMessage
  | HandoverMessage
  | EndMessage
  | HeartbeatMessage;

/** One line about a message, for golden transcripts and logs. */
export function describeMessage(m: Message): string {
  const head = `${m.cmd} generation=${m.generation} id=${m.id} seq=${m.seq}`;
  switch (m.cmd) {
    case 'HELLO': {
      const h = m.hello;
      const role = h.role === 0 ? 'primary' : 'standby';
      const state = h.complete ? `committed=${h.committedId}` : 'empty';
      return `${head} ${role} protocol=${h.protocolMin}-${h.protocolMax} vm=${h.vm.slice(0, 8)} ${state}${h.ended ? ' ended' : ''}`;
    }
    case 'INIT':
      return `${head} ${m.mode}`;
    case 'SYNC':
    case 'CONTINUE':
      return `${head} ${m.payload.length} bytes`;
    case 'BEGIN':
      return `${head} base=${m.baseId} sync=${m.syncFrames}`;
    case 'COMMIT':
    case 'ATOMIC':
      return `${head} frames=${m.manifest.frames} sections=${m.manifest.sections} bytes=${m.manifest.bytes} pages=${m.manifest.pages} crc=${m.manifest.crc.toString(16)}`;
    case 'CANCEL':
      return `${head} code=${m.code}`;
    case 'ACK':
      return `${head} of=${m.of}${m.degraded ? ' degraded' : ''}`;
    case 'NACK':
      return `${head} code=${m.code} "${m.sentence}"`;
    case 'HANDOVER':
      return `${head} to=${m.newGeneration}`;
    case 'END':
      return `${head} reason=${m.reason}`;
    case 'HEARTBEAT':
      return `${head} applied=${m.appliedId}${m.degraded ? ' degraded' : ''}`;
  }
}
