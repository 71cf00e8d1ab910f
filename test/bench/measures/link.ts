/** Measure 10: the delay that protection adds to an output when the hosts are far apart, by policy and round trip of their link. */

import { DelayProxy, linkTrip } from '../delay-proxy.ts';
import { commandText, tsvmmCommand } from '../guest-run.ts';
import { kvmMissing } from '../machine-facts.ts';
import type { BenchContext, Experiment, Measure, Side } from '../measure.ts';
import { POLICIES, type Policy, policyText, withPair } from '../protected-pair.ts';
import { plug, trips } from './failover.ts';

const ROUND_TRIPS_MS = [0.1, 1, 10] as const;

function experiment({ quick }: BenchContext, roundTripMs: number): Experiment {
  const append = 'period=100';
  const words = commandText(tsvmmCommand({ guest: 'demo', append, memory: '64M' }));
  const side = (policy: Policy): Side => ({
    name: policy,
    command: `${words} --disk DISK --net stream=SWITCH${policyText(policy)}, PORT being a proxy that delays`,
    run: async () => {
      let link: DelayProxy | undefined;
      try {
        const sample = await withPair(
          policy,
          { append },
          (pair) => trips(plug(pair), quick ? 30 : 50),
          async (pair) => {
            const port = Number(/standing by on 127\.0\.0\.1:(\d+)/.exec(pair.standby.log)![1]);
            link = await DelayProxy.start(port, roundTripMs);
            pair.proxy.port = link.port;
          },
        );
        return { ...sample, link: await linkTrip(roundTripMs) };
      } finally {
        link?.close();
      }
    },
  });
  return {
    name: `UDP echo round trip at rest, link between the hosts ${roundTripMs} ms there and back (ratio: kemari / the others)`,
    metrics: [
      { name: 'p50', unit: 'ms' },
      { name: 'p99', unit: 'ms' },
      { name: 'link', unit: 'ms' },
    ],
    sides: POLICIES.map(side),
    plot: { name: 'delay-by-link', x: roundTripMs },
    seconds: 22,
    warmUp: false,
  };
}

/** See the module's head. */
export const link: Measure = {
  name: 'link',
  title: '10. Output delay by the round trip between the hosts',
  missing: kvmMissing,
  async experiments(context: BenchContext): Promise<Experiment[]> {
    return ROUND_TRIPS_MS.map((ms) => experiment(context, ms));
  },
};
