// What a standby makes of silence.
import { describe, expect, it } from 'vitest';
import { hello } from '../../../test/support/protocol-ends.ts';
import { ROLE } from '../wire/spec.ts';
import { Standby } from './standby.ts';

function make(): Standby {
  const standby = new Standby({
    hello: hello({ role: ROLE.standby, generation: 0, instance: '77'.repeat(8) }),
    authority: { arbiter: false, onPeerLoss: 'wait', retryNs: 1e9 },
    liveness: { intervalNs: 100, deadlineNs: 1000 },
    suspectNs: 1000,
  });
  standby.connected(0);
  return standby;
}

/** Ticks from `from` to `to`. @returns how often it closed the connection */
function pass(standby: Standby, from: number, to: number, reading: boolean): number {
  let closed = 0;
  for (let now = from; now < to; now += 50) {
    standby.tick(now, reading);
    for (let e = standby.out.shift(); e !== undefined; e = standby.out.shift()) {
      if (e.type === 'close') closed++;
    }
  }
  return closed;
}

describe('a standby', () => {
  it('calls nobody silent to whom it does not listen', () => {
    const standby = make();
    expect(pass(standby, 0, 5000, false)).toBe(0);
    // The deadline begins when it listens again.
    expect(pass(standby, 5000, 5900, true)).toBe(0);
    expect(pass(standby, 5900, 6100, true)).toBe(1);
  });

  it('calls a primary silent that says nothing while it listens', () => {
    expect(pass(make(), 0, 2000, true)).toBe(1);
  });
});
