/** The part of the native addon that the pseudo-terminal console uses; the board injects it. */
export interface ConsoleNative {
  FdPoller: new (
    fd: number,
    callback: (events: number) => void,
  ) => {
    start(events: number): void;
    stop(): void;
    close(): void;
  };
  openPty(): { master: number; slave: number; path: string };
  /** Bytes read, or -errno. */
  readFd(fd: number, bytes: Uint8Array, offset: number, length: number): number;
  /** Bytes written, or -errno. */
  writeFd(fd: number, bytes: Uint8Array, offset: number, length: number): number;
  closeFd(fd: number): void;
}
