/**
 * What the outside of a serial line looks like to a device: bytes both ways with back-pressure both ways. A device
 * (uart16550, virtio-console) talks only to {@link ConsoleBackend}; the event-tap implements it over another one.
 * Pure interface: no I/O here.
 */

/** Receives a console's events. Called from the event loop, never inside a call of the backend. */
export interface ConsoleHandler {
  /** Bytes can be read now where there were none before. */
  readable(): void;
  /** After a `write` that was refused: at least one byte can be taken now. */
  writable(): void;
}

/** The outside of a serial line. */
export interface ConsoleBackend {
  /** For messages: `stdio`, `file /tmp/x`. */
  readonly name: string;
  /** Sets who receives events. Input that came before stays readable; `readable` is called for it. */
  setHandler(handler: ConsoleHandler): void;
  /**
   * Takes one byte (0-255) into a bounded buffer that is written out at the end of the loop's turn at the latest.
   * @returns false, and nothing was taken, when the buffer is full: try again on {@link ConsoleHandler.writable}.
   */
  write(byte: number): boolean;
  /** The next input byte, or -1 when there is none. Bytes that are not read stay in a bounded buffer; then the source waits. */
  read(): number;
  /** Writes out what was taken (as far as the other side takes it within a second) and gives everything back. */
  close(): Promise<void>;
}
