/** How the machines of simulated processes are set up, from what the seed has drawn. */
import type { AuthorityConfig } from '../../src/ft/core/failover.ts';
import type { PrimaryConfig } from '../../src/ft/core/primary-types.ts';
import type { StandbyConfig } from '../../src/ft/core/standby.ts';
import type { Hello } from '../../src/ft/wire/message.ts';
import { ARBITER, ON_PEER_LOSS, ROLE } from '../../src/ft/wire/spec.ts';
import type { Config } from './config.ts';
import { PAGE_BYTES } from './guest.ts';

function hello(config: Config, instance: string, role: 0 | 1, generation: number): Hello {
  return {
    protocolMin: 1,
    protocolMax: 1,
    role,
    onPeerLoss:
      role === ROLE.primary
        ? config.primaryGoesOn
          ? ON_PEER_LOSS.goOn
          : ON_PEER_LOSS.wait
        : config.standbyTakesOver
          ? ON_PEER_LOSS.takeover
          : ON_PEER_LOSS.wait,
    arbiter: config.leases ? ARBITER.lease : config.arbiter ? ARBITER.lock : ARBITER.none,
    vm: '0123456789abcdef0123456789abcdef',
    instance,
    generation,
    committedId: 0,
    complete: false,
    ended: false,
    machineDigest: '11'.repeat(32),
    cpuDigest: '22'.repeat(32),
    pageBytes: PAGE_BYTES,
    tscKhz: 1_000_000,
    compression: 3,
    limits: {
      frameBytesMax: config.frameBytes,
      transactionBytesMax: config.transactionBytes,
      epochsInFlightMax: config.epochsInFlight,
      tapBytesMax: Math.max(256, config.tapBytes),
    },
    host: '',
  };
}

function authority(config: Config, onPeerLoss: AuthorityConfig['onPeerLoss']): AuthorityConfig {
  return { arbiter: config.arbiter, onPeerLoss, retryNs: 400 };
}

/** Of the primary in process `instance`. */
export function primaryConfig(config: Config, instance: string, generation: number): PrimaryConfig {
  return {
    hello: hello(config, instance, ROLE.primary, generation),
    authority: authority(config, config.primaryGoesOn ? 'go-on' : 'wait'),
    policy: config.policy,
    liveness: { intervalNs: 500, deadlineNs: 3000 },
    protect: true,
    reconnectNs: 300,
    graceNs: config.grace,
    ackDeadlineNs: 5000,
  };
}

/** Of the standby in process `instance`. */
export function standbyConfig(config: Config, instance: string): StandbyConfig {
  return {
    hello: hello(config, instance, ROLE.standby, 0),
    authority: authority(config, config.standbyTakesOver ? 'takeover' : 'wait'),
    liveness: { intervalNs: 500, deadlineNs: 3000 },
    suspectNs: config.suspect,
  };
}
