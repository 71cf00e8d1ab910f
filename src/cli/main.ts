/**
 * The `tsvmm` command: wires the sub-commands, nothing else. Each command is a module of its own, imported only when
 * it runs, so that `tsvmm run` starts as fast as Node does.
 */
import { Command, CommanderError } from 'commander';
import { VmmError } from '../base/error.ts';
import type { ControlOptions, ProtectOptions } from './control.ts';
import { outliveReaders, printError } from './report.ts';
import { packageVersion } from './version.ts';

function collect(value: string, previous: readonly string[]): readonly string[] {
  return [...previous, value];
}

const program = new Command('tsvmm')
  .description('KVM-backed virtual machine monitor with replication built in')
  .version(packageVersion())
  .showHelpAfterError('(tsvmm --help shows what there is)')
  .exitOverride();

program
  .command('run')
  .description('run a guest')
  .option('--kernel <file>', 'boot this kernel: a Linux bzImage, or an ELF file with a PVH note')
  .option('--initrd <file>', 'initial RAM disk for the kernel')
  .option('--append <string>', 'kernel command line')
  .option(
    '--firmware <file>',
    'boot this PC BIOS image (default without --kernel: the installed SeaBIOS)',
  )
  .option('--demo', "boot the project's own demo guest")
  .option('--name <name>', 'name of the guest, for messages and the control socket')
  .option('--config <file>', 'read options from this TOML file; the command line wins')
  .option('--memory <size>', 'guest memory (default 256M)')
  .option('--cpus <n>', 'number of vCPUs (default 1)')
  .option('--cpu <model>', 'host or baseline, then ,+flag and ,-flag (default host)')
  .option('--serial <where>', 'stdio, file:PATH, unix:PATH, pty or null (default stdio)')
  .option(
    '--disk <spec>',
    'a disk: PATH or nbd URL[,id=..][,readonly][,cache=none|writeback][,serial=..][,on-enospc=report|pause][,ft=auto|shared|replicate][,base=IMAGE] (repeatable)',
    collect,
    [],
  )
  .option(
    '--net <spec>',
    'a network card: tap=IF, stream=SOCKET, user or none[,id=..][,model=virtio|e1000][,mac=..][,pcap=FILE][,ft=unsafe] (repeatable)',
    collect,
    [],
  )
  .option('--boot <order>', 'what firmware boots from: disk, net, or both in order (disk,net)')
  .option('--no-reboot', 'end instead of restarting when the guest resets')
  .option('--restore <file>', 'continue from a state that `tsvmm save` wrote')
  .option(
    '--control <socket>',
    'path of the control socket (default: by name in the runtime directory)',
  )
  .option(
    '--ft-peer <host[:port],..>',
    'keep a standby ready to take the guest over; of several the first that can, in this order',
  )
  .option(
    '--ft-policy <policy>',
    'when checkpoints are taken: adaptive, kemari or periodic (default adaptive)',
  )
  .option('--ft-interval <time>', 'longest time between checkpoints (default 20ms)')
  .option('--ft-max-downtime <time>', 'longest stop at the end of the first copy (default 30ms)')
  .option(
    '--ft-copy-limit <size>',
    "most bytes a second of the disks' first copy (default: no limit)",
  )
  .option('--ft-timeout <time>', 'silence after which the peer counts as lost (default 3s)')
  .option('--ft-key <file>', 'key that both hosts share; without it only loopback is used')
  .option(
    '--ft-arbiter <which>',
    'who decides which host goes on alone: none, lock:PATH or etcd:URL[,URL...][/NAME][?ca=...] (default none)',
  )
  .option(
    '--ft-on-peer-loss <what>',
    'continue or pause (default continue with an arbiter, else pause)',
  )
  .option(
    '--ft-status <how>',
    'show replication on standard error: off, line or json (default off)',
  )
  .option('--log-level <level>', 'error, warn, info or debug (default warn)')
  .option('--log-file <file>', 'write the log as JSON lines to this file')
  .action(async (options: Record<string, unknown>) => {
    const { run } = await import('./run.ts');
    process.exitCode = await run(options);
  });

program
  .command('standby')
  .description('wait for a guest of another host and take it over when that host is lost')
  .option('--listen <[host:]port>', 'where the primary finds this standby (default 127.0.0.1:4444)')
  .option('--incoming <tcp:host:port,ft_mode>', 'another spelling of --listen')
  .option(
    '--disk <id=path>',
    'where the disk of that id is on this host[,cache=none|writeback][,ft=auto|shared|replicate][,base=IMAGE] (repeatable)',
    collect,
    [],
  )
  .option(
    '--net <id=backend>',
    'what the card of that id is connected to here: tap=IF, stream=SOCKET, none (repeatable)',
    collect,
    [],
  )
  .option('--serial <where>', 'stdio, file:PATH, unix:PATH, pty or null (default stdio)')
  .option('--name <name>', 'name of this standby, for its control socket')
  .option(
    '--control <socket>',
    'path of the control socket (default: by name in the runtime directory)',
  )
  .option('--ft-key <file>', 'key that both hosts share; without it only loopback is used')
  .option(
    '--ft-arbiter <which>',
    'who decides which host goes on alone: none, lock:PATH or etcd:URL[,URL...][/NAME][?ca=...] (default none)',
  )
  .option('--ft-timeout <time>', 'silence after which the other side counts as lost (default 3s)')
  .option(
    '--ft-peer <host[:port],..>',
    'once the guest runs here: who is its standby then, of several the first that can',
  )
  .option('--ft-policy <policy>', 'once the guest runs here: as for run')
  .option('--ft-interval <time>', 'once the guest runs here: as for run')
  .option('--ft-max-downtime <time>', 'once the guest runs here: as for run')
  .option('--ft-on-peer-loss <what>', 'once the guest runs here: as for run')
  .option(
    '--on-peer-loss <what>',
    'wait (for an operator) or takeover, where there is no arbiter (default wait)',
  )
  .option(
    '--ft-status <how>',
    'show replication on standard error: off, line or json (default off)',
  )
  .option('--log-level <level>', 'error, warn, info or debug (default warn)')
  .option('--log-file <file>', 'write the log as JSON lines to this file')
  .action(async (options: Record<string, unknown>) => {
    const { standby } = await import('./standby.ts');
    process.exitCode = await standby(options);
  });

program
  .command('check')
  .description('tell whether this host can run guests, and what it can do')
  .option('--json', 'print the findings as one JSON object')
  .action(async (options: { json?: boolean }) => {
    const { check } = await import('./check.ts');
    process.exitCode = await check(options.json === true);
  });

for (const [name, description, argument] of [
  ['status', 'show the state of a running guest', undefined],
  ['pause', 'stop a running guest in place', undefined],
  ['resume', 'let a paused guest go on', undefined],
  ['powerdown', "press the guest's power button", undefined],
  ['reset', 'restart the guest', undefined],
  ['quit', 'end the guest at once', undefined],
  ['save', 'write the state of a guest to a file and end it', 'file'],
  ['switchover', 'hand a protected guest over to its standby', undefined],
  ['takeover', 'order a standby to take the guest over', undefined],
  ['cancel', 'let a guest whose standby is lost go on without protection', undefined],
] as const) {
  const command = controlled(name, description);
  if (argument !== undefined) command.argument(`<${argument}>`);
  command.action(async (...args: unknown[]) => {
    const { control, fileRequest } = await import('./control.ts');
    const fields = argument === undefined ? {} : fileRequest(String(args[0]));
    const options = args[argument === undefined ? 0 : 1] as ControlOptions;
    process.exitCode = await control(name, fields, options);
  });
}

controlled('protect', 'protect a running guest: it gets a standby while it runs')
  .requiredOption('--peer <host[:port],..>', 'where the standby is; of several the first that can')
  .option('--key <file>', 'key that both hosts share; without it only loopback is used')
  .option('--arbiter <which>', 'as --ft-arbiter of run; a guest that has one keeps it')
  .option('--ft-policy <policy>', 'as for run')
  .option('--ft-interval <time>', 'as for run')
  .option('--ft-max-downtime <time>', 'as for run')
  .option('--ft-timeout <time>', 'as for run; when it is protected for the first time')
  .option('--ft-on-peer-loss <what>', 'as for run; when it is protected for the first time')
  .action(async (options: ProtectOptions) => {
    const { control, protectRequest } = await import('./control.ts');
    process.exitCode = await control('protect', protectRequest(options), options);
  });

controlled('set', 'change how a guest is protected while it is')
  .argument('<name=value...>', 'ft-policy, ft-interval, ft-max-downtime')
  .action(async (words: readonly string[], options: ControlOptions) => {
    const { control, setRequest } = await import('./control.ts');
    process.exitCode = await control('set', setRequest(words), options);
  });

/** A command that is a request to a running guest. */
function controlled(name: string, description: string): Command {
  return program
    .command(name)
    .description(description)
    .option('--name <name>', 'name of the guest')
    .option('--control <socket>', 'path of its control socket')
    .option('--json', 'print the answer as one JSON object');
}

async function main(): Promise<void> {
  outliveReaders();
  try {
    await program.parseAsync();
  } catch (error) {
    if (error instanceof CommanderError) {
      // Commander has already printed its sentence; help and version end with 0.
      process.exitCode = error.exitCode;
    } else {
      printError(error);
      process.exitCode = error instanceof VmmError && error.code === 'OPTION' ? 2 : 1;
    }
  }
}

void main();
