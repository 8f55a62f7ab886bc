#!/bin/sh
# Installs the Debian packages that a fleet on this machine needs; does nothing if they are there.
#
#   install-deps.sh netns   light guests (the demo)
#   install-deps.sh qemu    also QEMU guests under libvirt
#   install-deps.sh test    what the whole test suite needs
#   install-deps.sh bench   light guests, etcd to compare with, and a browser
set -eu

netns="iproute2 nftables iputils-ping util-linux mount hostname procps"
qemu="$netns qemu-system-x86 libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients dnsmasq-base busybox-static linux-image-cloud-amd64 cpio gzip"
tests="$qemu curl netcat-openbsd conntrack ca-certificates git protobuf-compiler gcc libc6-dev debootstrap systemd-container systemd man-db openvswitch-switch prometheus chromium fonts-dejavu-core iptables firewalld dbus"
# Any node from 18 on builds the page; that of the machine is as good as Debian's.
command -v npm > /dev/null || tests="$tests nodejs npm"
bench="$netns etcd-server etcd-client chromium fonts-dejavu-core"

case ${1:-} in
  netns) want=$netns ;;
  qemu) want=$qemu ;;
  test) want=$tests ;;
  bench) want=$bench ;;
  *) sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
esac

missing=
for p in $want; do
  case $(dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null || true) in
    ii*) ;;
    *) missing="$missing $p" ;;
  esac
done
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "install-deps: run as root to install:$missing" >&2; exit 1; }

echo "installing:$missing"
log=$(mktemp)
policy=
trap 'rm -f "$log" ${policy:+"$policy"}' EXIT
# Tests start a switch, a firewalld and a bus of their own: those of the packages need not run.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  policy=/usr/sbin/policy-rc.d
  printf '#!/bin/sh\ncase $1 in openvswitch*|ovs*|firewalld|dbus) exit 101 ;; esac\nexit 0\n' > "$policy"
  chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
# A lock that another apt holds is waited for.
apt="apt-get -q -y -o DPkg::Lock::Timeout=300"
# A test runs firewalld in a node of its own: here it must run neither now nor after the next boot.
case $missing in *firewalld*)
  if [ -d /run/systemd/system ]; then systemctl -q mask firewalld.service; fi ;;
esac
# shellcheck disable=SC2086 # lists of words
{ $apt update && $apt install --no-install-recommends $missing; } > "$log" 2>&1 || {
  tail -n 20 "$log" >&2
  echo "install-deps: could not install:$missing" >&2
  exit 1
}
