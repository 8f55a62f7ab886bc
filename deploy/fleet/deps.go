package fleet

import (
	"os/exec"
	"slices"
)

// Missing names the Debian packages that a fleet with this kind of guests needs and that are not
// installed.
func Missing(guests string) []string {
	programs := map[string]string{
		"ip": "iproute2", "nft": "nftables", "ping": "iputils-ping", "nsenter": "util-linux",
		"unshare": "util-linux", "mount": "mount", "hostname": "hostname",
	}
	var missing []string
	if guests == GuestsQEMU {
		for program, pkg := range map[string]string{
			"libvirtd": "libvirt-daemon", "virtlogd": "libvirt-daemon", "virsh": "libvirt-clients",
			"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio", "gzip": "gzip",
		} {
			programs[program] = pkg
		}
		if cloudKernel() == "" {
			missing = append(missing, "linux-image-cloud-amd64")
		}
	}
	for program, pkg := range programs {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}
