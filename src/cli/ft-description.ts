/**
 * The description of a machine that a primary sends to its standby: plain JSON, checked on arrival. Both ends hash it, so
 * that they are sure to mean the same machine.
 */
import { createHash } from 'node:crypto';
import { createRequire } from 'node:module';
import type { InferOutput } from 'valibot';
import { crc32c } from '../base/crc32c.ts';
import { VmmError } from '../base/error.ts';
import type { BaseIdentity } from '../ft/disk/base-image.ts';
import { STORAGE_CHOICES, type StorageChoice, type StorageIdentity } from '../ft/disk/storage.ts';
import type { ImageTicket } from '../ft/shell/introduction.ts';
import { type BootSource, CPUS_MAX, type Image, type MachineConfig } from '../machine/config.ts';
import { MEMORY_MAX_BYTES, MEMORY_MIN_BYTES } from '../machine/layout.ts';
import type { DiskPart, NetPart } from '../machine/pci-devices.ts';

type Valibot = typeof import('valibot');

// The validator is loaded when a description is checked: a run without a standby needs neither.
const load = createRequire(import.meta.url);

function schemaOf(v: Valibot) {
  const short = v.pipe(v.string(), v.maxLength(256));
  const count = v.pipe(v.number(), v.integer(), v.minValue(0));
  const id = v.pipe(v.string(), v.regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,30}$/));

  return v.strictObject({
    /** As which generation the guest runs there. */
    generation: v.pipe(count, v.minValue(1)),
    /** What a survivor took the guest over from: the run before, and the last transaction of it that it had. */
    origin: v.optional(v.strictObject({ generation: v.pipe(count, v.minValue(1)), id: count })),
    vm: v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/)),
    name: v.pipe(v.string(), v.regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/)),
    memoryBytes: v.pipe(
      count,
      v.minValue(MEMORY_MIN_BYTES),
      v.maxValue(MEMORY_MAX_BYTES),
      v.multipleOf(2 ** 20),
    ),
    cpus: v.pipe(count, v.minValue(1), v.maxValue(CPUS_MAX)),
    cpu: short,
    boot: v.variant('kind', [
      v.strictObject({
        kind: v.literal('kernel'),
        commandLine: v.pipe(v.string(), v.maxLength(32768)),
        hasInitrd: v.boolean(),
      }),
      v.strictObject({
        kind: v.literal('firmware'),
        order: v.pipe(v.array(v.picklist(['disk', 'net'])), v.maxLength(2)),
      }),
    ]),
    images: v.pipe(
      v.array(v.strictObject({ role: short, name: short, bytes: count, crc: count })),
      v.minLength(1),
      v.maxLength(2),
    ),
    serial: v.pipe(count, v.maxValue(4)),
    disks: v.pipe(
      v.array(
        v.strictObject({
          id,
          serial: v.optional(v.pipe(v.string(), v.maxLength(20))),
          readonly: v.boolean(),
          ft: v.picklist(STORAGE_CHOICES),
          storage: v.strictObject({
            kind: v.picklist(['file', 'device', 'network']),
            host: short,
            where: v.pipe(v.string(), v.maxLength(1024)),
            local: v.boolean(),
          }),
          base: v.optional(
            v.strictObject({
              digest: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)),
              bytes: count,
            }),
          ),
          sizeBytes: count,
          blockSizeBytes: count,
        }),
      ),
      v.maxLength(30),
    ),
    nets: v.pipe(
      v.array(
        v.strictObject({
          id,
          model: v.picklist(['virtio', 'e1000']),
          mac: v.pipe(v.string(), v.regex(/^[0-9a-f]{12}$/)),
          hasRom: v.boolean(),
        }),
      ),
      v.maxLength(30),
    ),
  });
}

let descriptionSchema: ReturnType<typeof schemaOf> | undefined;

/** A machine as its primary describes it. */
export type Description = InferOutput<ReturnType<typeof schemaOf>>;
/** What of it does not change with the host that runs the guest's next generation. */
export type MachineDescription = Omit<Description, 'generation' | 'origin'>;

function ticket(role: string, image: Image): ImageTicket {
  const { name, bytes } = image;
  return { role, name: name.slice(-200), bytes: bytes.length, crc: crc32c(bytes) };
}

/** The boot images of a machine, in the order in which the description names them. */
export function bootImages(boot: BootSource): Image[] {
  if (boot.kind === 'firmware') return [boot.image];
  return boot.initrd === undefined ? [boot.kernel] : [boot.kernel, boot.initrd];
}

/** What a description says of the storage behind a disk. */
export interface DescribedStorage {
  readonly ft: StorageChoice;
  readonly storage: StorageIdentity;
  readonly base?: BaseIdentity;
}

/** Describes a machine; `storages` in the order of the disks. */
export function describeMachine(
  vm: string,
  config: MachineConfig,
  serial: number,
  disks: readonly DiskPart[],
  nets: readonly NetPart[],
  storages: readonly DescribedStorage[],
): MachineDescription {
  const { boot, name, memoryBytes, cpus, cpu } = config;
  const roles = boot.kind === 'firmware' ? ['firmware'] : ['kernel', 'initrd'];
  return {
    vm,
    name,
    memoryBytes,
    cpus,
    cpu,
    boot:
      boot.kind === 'firmware'
        ? { kind: 'firmware', order: [...boot.order] }
        : { kind: 'kernel', commandLine: boot.commandLine, hasInitrd: boot.initrd !== undefined },
    images: bootImages(boot).map((image, i) => ticket(roles[i]!, image)),
    serial,
    disks: disks.map(({ id: diskId, serial: text, backend }, i) => ({
      id: diskId,
      ...storages[i]!,
      ...(text !== undefined && { serial: text }),
      readonly: backend.info.readonly,
      sizeBytes: backend.info.sizeBytes,
      blockSizeBytes: backend.info.blockSizeBytes,
    })),
    nets: nets.map(({ id: netId, model, mac, rom }) => ({
      id: netId,
      model,
      mac: Buffer.from(mac).toString('hex'),
      hasRom: rom !== undefined,
    })),
  };
}

/** Checks what a primary sent. @throws VmmError `FT_DESCRIPTION` */
export function parseDescription(received: unknown): Description {
  const v = load('valibot') as Valibot;
  descriptionSchema ??= schemaOf(v);
  const parsed = v.safeParse(descriptionSchema, received);
  if (!parsed.success) {
    const issue = parsed.issues[0];
    const where = issue.path?.map((item) => String(item.key)).join('.') ?? '';
    throw new VmmError(
      'FT_DESCRIPTION',
      `the primary's description of the machine is wrong at '${where}': ${issue.message}`,
      {
        hint: 'Both hosts must run the same version of tsvmm.',
      },
    );
  }
  return parsed.output;
}

/** The machine that a description and its images make. */
export function configOf(description: Description, images: readonly Uint8Array[]): MachineConfig {
  const { name, memoryBytes, cpus, cpu, boot } = description;
  const image = (i: number): Image => ({ name: description.images[i]!.name, bytes: images[i]! });
  const source: BootSource =
    boot.kind === 'firmware'
      ? { kind: 'firmware', image: image(0), order: boot.order }
      : {
          kind: 'kernel',
          kernel: image(0),
          initrd: boot.hasInitrd ? image(1) : undefined,
          commandLine: boot.commandLine,
        };
  return { name, memoryBytes, cpus, cpu, boot: source };
}

/** SHA-256 of a description, in hexadecimal. */
export function descriptionDigest(description: Description): string {
  return createHash('sha256').update(JSON.stringify(description)).digest('hex');
}
