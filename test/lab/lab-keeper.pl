# Holds two virtual machines open for the lab's whole life; started by lab-init.sh.
#
# The lab's kernel rewrites its own code (static keys: an int3 first, then the new instruction) whenever the first
# virtual machine appears or the last one goes, and when the first vCPU with, or without, an APIC in the kernel does.
# QEMU 7.2's multi-threaded software CPU can keep a translation of that passing int3 for ever if another CPU ran
# into it while it was replaced: then both CPUs take breakpoint exceptions without end, and the lab stands still. With one
# machine of each kind always there, nothing is rewritten while tests run.
#
# Perl, since it is on every Debian system and can call ioctl.
use strict;
use warnings;
use Fcntl;

my ($create_vm, $create_irqchip, $create_vcpu) = (0xAE01, 0xAE60, 0xAE41);
my @kept;

sysopen(my $kvm, '/dev/kvm', O_RDWR) or die "lab keeper: /dev/kvm: $!\n";
for my $with_irqchip (1, 0) {
  my $number = ioctl($kvm, $create_vm, 0) or die "lab keeper: KVM_CREATE_VM: $!\n";
  open(my $vm, '+<&=', int $number) or die "lab keeper: $!\n";
  if ($with_irqchip) {
    ioctl($vm, $create_irqchip, 0) or die "lab keeper: KVM_CREATE_IRQCHIP: $!\n";
  }
  my $vcpu = ioctl($vm, $create_vcpu, 0) or die "lab keeper: KVM_CREATE_VCPU: $!\n";
  push @kept, $vm, $vcpu;
}
print "kept\n";
close STDOUT;
sleep;
