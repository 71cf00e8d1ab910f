// After a takeover the network hears where the guest is now: on /dev/kvm, two processes on loopback, and a station on their switch.
import { expect, it } from 'vitest';
import { Pair, SETTLE_TIMEOUT_MS, until } from '../failover/pair.ts';

const MAC = '525400123456';
const STATION = '020000000007';
const BROADCAST = 'f'.repeat(12);
const GUEST_IP = '0a00020f';

it.each(['virtio', 'e1000'] as const)(
  'a survivor is announced on the switch (%s)',
  { timeout: 120_000 },
  async (model) => {
    const pair = new Pair({ model });
    try {
      const seen: { readonly atMs: number; readonly frame: string }[] = [];
      await pair.startStandby();
      pair.startPrimary();
      const send = pair.net.plug('station', (frame) =>
        seen.push({ atMs: performance.now(), frame: Buffer.from(frame).toString('hex') }),
      );
      await pair.protected();
      // Somebody asks, so the guest says which address is its own.
      const question = `${BROADCAST}${STATION}080600010800060400 01${STATION}0a000207${'0'.repeat(12)}${GUEST_IP}`;
      const ask = (): void =>
        send(Buffer.from(question.replaceAll(' ', '').padEnd(120, '0'), 'hex'));
      const answered = (): boolean =>
        seen.some(({ frame }) => frame.startsWith(`${STATION}${MAC}08060001080006040002`));
      await until('the guest answers', SETTLE_TIMEOUT_MS, () => {
        ask();
        return answered();
      });
      seen.length = 0;
      pair.primary.signal('SIGKILL');
      await until('the standby has taken over', SETTLE_TIMEOUT_MS, () => pair.tookOver());
      const rarps = (): number[] =>
        seen
          .filter(({ frame }) => frame.startsWith(`${BROADCAST}${MAC}80350001080006040003${MAC}`))
          .map(({ atMs }) => atMs);
      const arps = (): number =>
        seen.filter(({ frame }) =>
          frame.startsWith(
            `${BROADCAST}${MAC}0806000108000604 0001${MAC}${GUEST_IP}${'0'.repeat(12)}${GUEST_IP}`.replace(
              ' ',
              '',
            ),
          ),
        ).length;
      await until('it has been announced', SETTLE_TIMEOUT_MS, () => arps() >= 6);
      expect(rarps()).toHaveLength(6);
      // Neither driver of the demo guest can announce itself.
      expect(arps()).toBe(6);
      const [first, , , , , last] = rarps();
      expect(last! - first!).toBeGreaterThan(1500);
    } finally {
      await pair.end();
      pair.close();
    }
  },
);
