/** `tsvmm check`: what this host can do, in words with a remedy for each lack. Exit status 1 when no guest can run. */
import pc from 'picocolors';
import { openKvmHost } from '../kvm/host.ts';
import { blockEngineProbe, loadNativeIo } from '../kvm/native-io.ts';
import { checkHost, type Finding, type Verdict } from '../machine/host-check.ts';

const MARKS: Readonly<Record<Verdict, string>> = {
  ok: pc.green('ok     '),
  limited: pc.yellow('limited'),
  missing: pc.yellow('missing'),
  fatal: pc.red('fatal  '),
};

function print(finding: Finding): void {
  process.stdout.write(`${MARKS[finding.verdict]} ${finding.text}\n`);
  if (finding.remedy !== undefined) process.stdout.write(`        -> ${finding.remedy}\n`);
}

/** Prints the findings; returns the exit status. */
export async function check(json: boolean): Promise<number> {
  const io = loadNativeIo();
  const findings = checkHost(openKvmHost(), {
    blockEngine: () => blockEngineProbe(io),
    cpuCount: () => io.cpuCount(),
  });
  const canRun = findings.every((finding) => finding.verdict !== 'fatal');
  if (json) {
    process.stdout.write(`${JSON.stringify({ canRun, findings })}\n`);
  } else {
    for (const finding of findings) print(finding);
    process.stdout.write(
      canRun ? '\nThis host can run guests.\n' : '\nThis host cannot run guests.\n',
    );
  }
  return canRun ? 0 : 1;
}
