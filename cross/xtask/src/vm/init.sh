#!/bin/busybox sh
# The first process of the machine: prepares it, runs each part between two marks, and switches it off.
export PATH=/bin:/usr/bin
/bin/busybox mkdir -p /proc /sys /dev /tmp /run/log /var/log /usr/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# debugfs first: otherwise tracefs has no place that every kernel knows.
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
mount -t tmpfs tmp /tmp
ip link set lo up
for applet in unshare touch; do ln -sf /bin/busybox /usr/bin/$applet; done
hostname vm

part() {
    name=$1
    shift
    echo "@@vm begin $name"
    "$@" </dev/null 2>&1
    echo "@@vm end $name $?"
}

echo "@@vm kernel $(uname -r)"
if [ -e /bin/delivery.sh ]; then
    part delivery sh /bin/delivery.sh
    poweroff -f
fi
part doctor /bin/behaveguard doctor
# The simulated attacks want real tools, and the floods more speed than an emulated processor has.
part tests /bin/kernel-tests --skip simulate:: --skip strace:: --skip leftovers:: --skip floods::
part agent sh /bin/agent.sh
poweroff -f
