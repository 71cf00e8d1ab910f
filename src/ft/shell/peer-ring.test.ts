import { describe, expect, it } from 'vitest';
import { silentLog } from '../../base/log.ts';
import { PeerRing, peerName } from './peer-ring.ts';

const S = 1e9;

function ring(ports: readonly number[]): { ring: PeerRing; said: string[] } {
  const said: string[] = [];
  const log = { ...silentLog, info: (line: string) => said.push(line) };
  const made = new PeerRing(log);
  made.set(ports.map((port) => ({ host: '127.0.0.1', port, key: undefined, log })));
  return { ring: made, said };
}

describe('the ring of peers', () => {
  it('gives each its turn, in order, and rests longer from round to round, to a bound', () => {
    const { ring: peers } = ring([1, 2, 3]);
    let now = 0;
    const rests: number[] = [];
    for (let round = 0; round < 7; round++) {
      for (const port of [1, 2, 3]) {
        expect(peers.take(now, false)?.port).toBe(port);
        expect(peers.failed('gone', now)).toBe(true);
        expect(peers.roundOver).toBe(port === 3);
      }
      const from = now;
      while (peers.take(now, false) === undefined) now += 0.1 * S;
      rests.push(Math.round((now - from) / 1e8) / 10);
    }
    expect(rests).toEqual([0.2, 0.4, 0.8, 1.6, 2, 2, 2]);
  });

  it('does not rest while outputs wait, and counts a try once', () => {
    const { ring: peers } = ring([1]);
    peers.take(0, false);
    expect(peers.failed('refused', 0, 5 * S)).toBe(true);
    expect(peers.failed('and closed', 0)).toBe(false);
    expect(peers.take(4.9 * S, false)).toBeUndefined();
    expect(peers.take(0, true)?.port).toBe(1);
    expect(peers.take(5 * S, false)?.port).toBe(1);
  });

  it('says each reason once, and again after a success', () => {
    const { ring: peers, said } = ring([1, 2]);
    for (let i = 0; i < 10; i++) {
      peers.take(0, true);
      peers.failed('gone', 0);
    }
    expect(said).toEqual([
      'standby 127.0.0.1:1: gone; next is 127.0.0.1:2',
      'standby 127.0.0.1:2: gone; next is 127.0.0.1:1',
    ]);
    peers.take(0, true);
    peers.succeeded();
    expect(peers.roundOver).toBe(false);
    peers.failed('gone', 0);
    expect(said.length).toBe(3);
  });

  it('keeps the peer that is connected when the list is replaced, and has nobody where none is named', () => {
    const { ring: peers } = ring([1, 2]);
    const { log } = { log: silentLog };
    peers.take(0, false);
    const other = { host: '::1', port: 3, key: undefined, log };
    peers.set([other, peers.current!]);
    expect(peerName(peers.current!)).toBe('127.0.0.1:1');
    peers.failed('lost', 0);
    expect(peerName(peers.current!)).toBe('[::1]:3');
    expect(peers.take(0, false)?.port).toBe(3);
    expect(ring([]).ring.take(0, false)).toBeUndefined();
    expect(ring([]).ring.failed('?', 0)).toBe(false);
  });
});
