/** A network card without a cable: the link is down, what is sent is lost, nothing comes. */
import type { FrameBatch, NetBackend, NetInfo } from './backend.ts';

export class NoNetwork implements NetBackend {
  readonly info: NetInfo = { name: 'none', sendOffloads: 0, receiveOffloads: 0, mtu: undefined };
  readonly linkUp = false;

  setHandler(): void {}
  send(batch: FrameBatch, from: number): number {
    return batch.count - from;
  }
  receive(): number {
    return 0;
  }
  setReceiveEnabled(): void {}
  setReceiveOffloads(): void {}
  async close(): Promise<void> {}
}
