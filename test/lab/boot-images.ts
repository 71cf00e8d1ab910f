// What firmware boots in the lab: a disk with GRUB, a kernel and an initial RAM file system on ext4, and a program of
// 1 MiB that iPXE loads and that prints its own CRC-32. Built into the lab's cache, or inside the lab's own memory.
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { image } from './images.ts';
import { hash } from './initramfs.ts';
import { cacheDirectory, findProgram, LabError, run, tool } from './tools.ts';

const grubFiles = '/usr/lib/grub/i386-pc';
const sector = 512;
const partitionStart = 2048;
const diskMebibytes = 48;
/** Of the program for iPXE. */
export const programBytes = 2 ** 20;

/** Builds (or finds) a file of the cache. */
function cached(name: string, key: unknown, build: (work: string) => string): string {
  const directory = join(cacheDirectory(), 'images');
  const target = join(directory, `${name}-${hash([name, key])}`);
  if (existsSync(target)) return target;
  mkdirSync(directory, { recursive: true });
  const work = mkdtempSync(join(directory, '.new-'));
  try {
    renameSync(build(work), target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return target;
}

/** A raw disk: GRUB before the first partition, which is ext4 and holds the guest. Throws a LabError without GRUB. */
export function grubDisk(): string {
  const guest = image('shell');
  const append = 'console=ttyS0 panic=-1 quiet';
  const makeImage = findProgram('grub-mkimage');
  if (makeImage === undefined || !existsSync(join(grubFiles, 'boot.img'))) {
    throw new LabError('GRUB is missing: apt-get install -y --no-install-recommends grub-pc-bin');
  }
  return cached('grub', [1, guest.kernel, guest.initrd, append], (work) => {
    const tree = join(work, 'tree');
    const place = (from: string, to: string): void => {
      mkdirSync(dirname(join(tree, to)), { recursive: true });
      copyFileSync(from, join(tree, to));
    };
    place(guest.kernel, 'boot/vmlinuz');
    place(guest.initrd, 'boot/initrd');
    const disk = join(work, 'disk');
    const kibibytes = diskMebibytes * 1024 - partitionStart / 2;
    writeFileSync(disk, Buffer.alloc(diskMebibytes * 2 ** 20));
    const layout = ['-q', '-F', '-d', tree, '-E', `offset=${partitionStart * sector}`];
    run(tool('mkfs.ext4'), [...layout, disk, `${kibibytes}k`]);
    const config = join(work, 'grub.cfg');
    writeFileSync(
      config,
      `serial --unit=0\nterminal_output serial\necho GRUB runs\nset root=(hd0,msdos1)\n` +
        `linux /boot/vmlinuz ${append}\ninitrd /boot/initrd\nboot\n`,
    );
    const core = join(work, 'core.img');
    const modules = ['biosdisk', 'part_msdos', 'ext2', 'linux', 'normal', 'serial', 'echo', 'boot'];
    const options = ['-O', 'i386-pc', '-p', '(hd0,msdos1)/boot/grub', '-c', config, '-o', core];
    run(makeImage, [...options, ...modules]);
    const content = readFileSync(disk);
    // GRUB's boot sector looks for the rest in the sectors behind it unless it is told otherwise.
    readFileSync(join(grubFiles, 'boot.img')).copy(content, 0, 0, 440);
    const rest = readFileSync(core);
    if (rest.length > (partitionStart - 1) * sector) throw new LabError('GRUB is too large');
    rest.copy(content, sector);
    const entry = Buffer.alloc(16);
    entry[0] = 0x80;
    entry[4] = 0x83;
    entry.writeUInt32LE(partitionStart, 8);
    entry.writeUInt32LE(kibibytes * 2, 12);
    entry.copy(content, 446);
    content.writeUInt16LE(0xaa55, 510);
    writeFileSync(disk, content);
    return disk;
  });
}

/** 32-bit code by the Multiboot specification, 3.1: its CRC-32 on COM1, then the debug-exit port with 6. */
const source = `
.globl _start
_start:
  .long 0x1badb002, 0x10000, -(0x1badb002 + 0x10000)
  .long _start, _start, _start + ${programBytes}, 0, enter
enter:
  mov $_start, %esi
  mov $${programBytes}, %ecx
  mov $-1, %eax
byte:
  xorb (%esi), %al
  mov $8, %ebx
bit:
  shr $1, %eax
  jnc even
  xor $0xedb88320, %eax
even:
  dec %ebx
  jnz bit
  inc %esi
  dec %ecx
  jnz byte
  not %eax
  mov %eax, %ebp
  mov $text, %esi
  call say
  mov $8, %ecx
digit:
  rol $4, %ebp
  mov %ebp, %eax
  and $15, %eax
  movb digits(%eax), %al
  call put
  dec %ecx
  jnz digit
  mov $end, %esi
  call say
  mov $0xf4, %dx
  mov $6, %al
  out %al, %dx
stop:
  jmp stop
say:
  lodsb
  test %al, %al
  jz said
  call put
  jmp say
said:
  ret
put:
  mov %al, %bl
  mov $0x3fd, %dx
busy:
  in %dx, %al
  test $0x20, %al
  jz busy
  mov %bl, %al
  mov $0x3f8, %dx
  out %al, %dx
  ret
digits: .ascii "0123456789abcdef"
text: .asciz "\\r\\nprogram crc32="
end: .asciz " end\\r\\n"
`;

/** The program for iPXE. Throws a LabError without gcc. */
export function networkProgram(): string {
  for (const program of ['gcc', 'ld', 'objcopy']) {
    if (findProgram(program) === undefined)
      throw new LabError(`${program} is missing: apt-get install gcc`);
  }
  return cached('program', [1, source], (work) => {
    const at = (name: string): string => join(work, name);
    writeFileSync(at('p.s'), source);
    run('gcc', ['-m32', '-c', at('p.s'), '-o', at('p.o')]);
    run('ld', ['-m', 'elf_i386', '-Ttext=0x100000', '-e', '_start', at('p.o'), '-o', at('p.elf')]);
    run('objcopy', ['-O', 'binary', '-j', '.text', at('p.elf'), at('p.bin')]);
    const code = readFileSync(at('p.bin'));
    const content = Buffer.alloc(programBytes);
    let x = 1;
    for (let i = 0; i < programBytes; i++) {
      x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
      content[i] = x >>> 24;
    }
    code.copy(content);
    writeFileSync(at('program'), content);
    return at('program');
  });
}
