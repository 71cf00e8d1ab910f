#!/bin/sh
# /init of the guests that tests boot: loads the modules of /modules.list, runs /etc/start (if the image
# has one) and the script that the kernel command line gives as tsvmm.run64=BASE64, then offers a shell
# with job control on the console for ever. `poweroff -f` and `reboot -f` end it.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PS1='guest# '
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /var/log /var/run
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
while read -r module; do
  insmod "/modules/$module" || echo "init: cannot load $module"
done </modules.list
ip link set lo up
hostname guest
# The power button works where the image has the modules button and evdev.
[ -e /dev/input/event0 ] && acpid
cd /root
[ -e /etc/start ] && . /etc/start
script=$(sed -n 's/.*tsvmm\.run64=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ -n "$script" ]; then
  echo "$script" | base64 -d >/tmp/run
  sh /tmp/run
fi
while :; do
  setsid cttyhack sh -i
done
