#!/bin/sh
# /init of the lab. The launcher (machine.ts) gives two 9p shares: `host`, the host's whole file system,
# read-only, and `lab`, a directory with lab.conf and run.sh; and one virtio-serial port for each of:
# 1 control, 2 standard output, 3 standard error, 4 standard input of the command, 5 the heart. The ends of 2 and 3
# are marked by $LAB_TAG, so that nothing is lost when the machine is ended.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

give_up() {
  echo "lab: $*" >/dev/kmsg
  [ -e /dev/vport0p1 ] && echo "failed $*" >/dev/vport0p1
  poweroff -f
}

while read -r module; do
  insmod "/modules/$module" || give_up "cannot load $module"
done </modules.list
# The ports appear a moment after their driver.
for _ in 1 2 3 4 5 6 7 8 9 10; do
  [ -e /dev/vport0p5 ] && break
  sleep 0.1
done

ninep=trans=virtio,version=9p2000.L,msize=512000
mkdir -p /host /lab /over /new
mount -t 9p -o "$ninep,cache=loose,ro" host /host || give_up "cannot mount the host's file system"
mount -t 9p -o "$ninep,cache=none,ro" lab /lab || give_up "cannot mount the launcher's directory"
. /lab/lab.conf
mount -t tmpfs -o size=75% tmpfs /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /new ||
  give_up "cannot lay a writable layer over the host's file system"
mount -t proc proc /new/proc
mount -t sysfs sys /new/sys
mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/pts /new/dev/shm /new/scratch "/new/lib/modules/$LAB_RELEASE"
mount -t devpts devpts /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t tmpfs tmpfs /new/run
mount -t debugfs debugfs /new/sys/kernel/debug 2>/dev/null
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup 2>/dev/null
mount --bind "/new$LAB_MODULE_TREE" "/new/lib/modules/$LAB_RELEASE"
chroot /new modprobe -a $LAB_MODULES || give_up "cannot load one of: $LAB_MODULES"
mount -t ext4 /dev/vda /new/scratch || give_up "cannot mount the scratch disk"
if [ -n "$LAB_OUT" ]; then
  mkdir -p "/new$LAB_OUT"
  mount -t 9p -o "$ninep,cache=none,rw" out "/new$LAB_OUT" || give_up "cannot mount $LAB_OUT"
fi
# QEMU's SVM code can give a guest an interrupt a second time (helper_vmrun leaves it behind as the CPU's exception, which
# any kick of the CPU before the next exit raises). Guests do not survive that reliably. It shows in the exit's event
# information: an exception with a vector above those that exceptions have.
tracing=/new/sys/kernel/tracing
if mount -t tracefs tracefs $tracing 2>/dev/null; then
  echo 'intr_info >= 0x320 && intr_info < 0x400' >$tracing/events/kvm/kvm_exit/filter
  echo 1 >$tracing/events/kvm/kvm_exit/enable
fi
hostname lab
ip link set lo up
[ -e /new/dev/kvm ] || give_up "kvm-amd made no /dev/kvm"
# Why: see the script. It says one line when it holds what it is to hold.
mkfifo /kept
setsid chroot /new perl "$LAB_DIRECTORY/keeper.pl" >/kept </dev/null 2>/dev/kmsg &
read -r kept </kept || give_up "the lab's keeper of /dev/kvm did not start (it needs perl)"
# The kernel has started with one CPU (maxcpus=1), because it changes its own code most while it starts and loads modules.
for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
  [ ! -e "$cpu/online" ] || echo 1 >"$cpu/online" || give_up "cannot start ${cpu##*/}"
done

# A byte comes every second, goes through a process on each CPU, and back. Labs were seen to sleep for ever. The likely cause:
# QEMU's SVM code clears a bit in a word that another thread may be setting another bit of, so that a CPU loses that its APIC has an
# interrupt for it. The next interrupt, which the byte is for each of them, delivers the lost one as well.
beat() {
  if [ "$1" -lt "$(nproc)" ]; then taskset -c "$1" cat | beat $(($1 + 1)); else cat; fi
}
(beat 0 <&5 >&5) 5<>/dev/vport0p5 &

mkfifo /out /err
(cat /out >/dev/vport0p2; : >/out.done) &
(cat /err >/dev/vport0p3; : >/err.done) &
if [ -n "$LAB_STDIN" ]; then input=/dev/vport0p4; else input=/dev/null; fi
echo ready >/dev/vport0p1
setsid chroot /new /bin/sh "$LAB_DIRECTORY/run.sh" <"$input" >/out 2>/err
status=$?

# Background processes of the command may still hold the pipes: they get two seconds to finish.
tries=0
while [ ! -e /out.done ] || [ ! -e /err.done ]; do
  [ $tries -ge 20 ] && break
  tries=$((tries + 1))
  sleep 0.1
done
twice=$(grep -c kvm_exit $tracing/trace)
[ "${twice:-0}" -eq 0 ] || echo "note the software CPU delivered $twice interrupts twice" >/dev/vport0p1
kill -9 -1
wait
printf %s "$LAB_TAG" >/dev/vport0p2
printf %s "$LAB_TAG" >/dev/vport0p3
echo "exit $status" >/dev/vport0p1
sync
poweroff -f
