/** What a machine is made of, as plain data: everything that two hosts must agree on to run the same guest. */

/** A file's content with the name to use in messages. */
export interface Image {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** What runs first. */
export type BootSource =
  | {
      readonly kind: 'kernel';
      readonly kernel: Image;
      readonly initrd: Image | undefined;
      readonly commandLine: string;
    }
  | { readonly kind: 'firmware'; readonly image: Image; readonly order: readonly BootDevice[] };

/** Firmware boot choices, tried in order. */
export type BootDevice = 'disk' | 'net';

/** A guest as its operator describes it. */
export interface MachineConfig {
  /** For messages, sockets and the peer. */
  readonly name: string;
  /** A whole number of MiB. */
  readonly memoryBytes: number;
  /** 1 to 64. */
  readonly cpus: number;
  /** `host` or `baseline`, then any of `,+flag` and `,-flag`. */
  readonly cpu: string;
  readonly boot: BootSource;
}

/** Most vCPUs of one machine. */
export const CPUS_MAX = 64;
