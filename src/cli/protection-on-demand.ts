/**
 * The protection of a guest that may never be asked for it: replication is loaded when it is, at the start by `--ft-peer` or
 * later by `tsvmm protect`. Until then this answers as an unprotected guest does. Used by `tsvmm run`.
 */
import { VmmError } from '../base/error.ts';
import type { PrimaryShell } from '../ft/shell/primary-shell.ts';
import type { Machine } from '../machine/machine.ts';
import type { ProtectionSettings } from './ft-settings.ts';
import type { Authority, Peers, Protection } from './protect.ts';

/** What commands and signals need of a guest's protection. */
export interface GuestProtection {
  /** The primary; undefined as long as no protection was wanted. */
  readonly shell: PrimaryShell | undefined;
  /** What is set, as it holds now. */
  readonly settings: ProtectionSettings;
  /** See protect.ts. @throws VmmError */
  request(
    peers: Peers,
    arbiterName: string | undefined,
    settings: ProtectionSettings,
  ): Promise<{ readonly peer: string }>;
  /** Changes policy, interval and downtime, also while the guest is protected. */
  configure(settings: ProtectionSettings): void;
  /** An operator ends the guest: a standby is told first; the second time it ends at once. */
  endGuest(): void;
  /** The guest is handed over to its standby. @throws VmmError `FT_NOT_PROTECTED` */
  switchover(): void;
}

/** There is nobody who could take the guest over. */
export function notProtected(): VmmError {
  return new VmmError('FT_NOT_PROTECTED', 'there is no standby that could take over now', {
    hint: 'tsvmm status shows the phase; it must be "protected".',
  });
}

/** See the module's head. */
export class ProtectionOnDemand implements GuestProtection {
  readonly #machine: Machine;
  readonly #load: (settings: ProtectionSettings) => Promise<Protection>;
  #settings: ProtectionSettings;
  #loading: Promise<Protection> | undefined;
  #protection: Protection | undefined;
  #running = false;

  /** @param load makes the protection; called until it succeeds, once at a time */
  constructor(
    machine: Machine,
    settings: ProtectionSettings,
    load: (settings: ProtectionSettings) => Promise<Protection>,
  ) {
    this.#machine = machine;
    this.#settings = settings;
    this.#load = load;
  }

  get shell(): PrimaryShell | undefined {
    return this.#protection?.shell;
  }

  get settings(): ProtectionSettings {
    return this.#protection?.settings ?? this.#settings;
  }

  /** The machine runs: what was prepared begins. */
  run(): void {
    this.#running = true;
    this.#protection?.run();
  }

  async #loaded(): Promise<Protection> {
    this.#loading ??= this.#load(this.#settings).catch((error) => {
      this.#loading = undefined;
      throw error;
    });
    const protection = await this.#loading;
    if (this.#protection === undefined) {
      this.#protection = protection;
      // What was changed while it was loaded.
      protection.configure(this.#settings);
      if (this.#running) protection.run();
    }
    return protection;
  }

  /** Protects the guest from its start. @throws VmmError `FT_KEY_NEEDED`, or when the guest cannot be described */
  async start(authority: Authority, arbiterName: string, peers: Peers): Promise<void> {
    (await this.#loaded()).start(authority, arbiterName, peers);
  }

  async request(
    peers: Peers,
    arbiterName: string | undefined,
    settings: ProtectionSettings,
  ): Promise<{ readonly peer: string }> {
    return await (await this.#loaded()).request(peers, arbiterName, settings);
  }

  configure(settings: ProtectionSettings): void {
    this.#settings = settings;
    this.#protection?.configure(settings);
  }

  endGuest(): void {
    if (this.#protection === undefined) this.#machine.stop();
    else this.#protection.endGuest();
  }

  switchover(): void {
    if (this.#protection === undefined) throw notProtected();
    this.#protection.switchover();
  }
}
