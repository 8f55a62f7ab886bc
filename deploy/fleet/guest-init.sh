#!/bin/busybox sh
# The first process of a QEMU guest: network from the kernel's command line, then the services that
# every guest of a fleet has (echo on UDP and TCP port 7, HTTP on port 80), over IPv4 and IPv6.
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in @MODULES@; do insmod /mod/$m.ko; done
for a in $(cat /proc/cmdline); do case $a in vm*=*) eval "${a%%=*}=${a#*=}";; esac; done
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
ip link set lo up; ip link set eth0 up
ip addr add "$vmip4" dev eth0; ip -6 addr add "$vmip6" dev eth0
ip route add default via "$vmgw4"; ip -6 route add default via "$vmgw6"
palisade demo guest --name "$vmname" > /dev/ttyS0 2>&1 &
echo "GUEST READY $vmname"
exec sh </dev/ttyS0 >/dev/ttyS0 2>&1
