package fleet

import (
	"bytes"
	"context"
	"debug/elf"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// guestInit is the first process of a QEMU guest.
//
//go:embed guest-init.sh
var guestInit []byte

// guestModules are what the guest's network needs, in the order of loading: the Debian cloud kernel
// has them as modules, and modprobe is not in the image.
const guestModules = "virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net"

// cloudKernel is the newest kernel of the package linux-image-cloud-amd64, "" if there is none.
func cloudKernel() string {
	all, _ := filepath.Glob("/boot/vmlinuz-*cloud*")
	if len(all) == 0 {
		return ""
	}
	return slices.MaxFunc(all, unixVersion)
}

// unixVersion compares file names by the numbers in them ("6.1.0-9" before "6.1.0-56").
func unixVersion(a, b string) int {
	number := func(s string) []int {
		var out []int
		n, digit := 0, false
		for _, r := range s + "." {
			if r >= '0' && r <= '9' {
				n, digit = n*10+int(r-'0'), true
			} else if digit {
				out, n, digit = append(out, n), 0, false
			}
		}
		return out
	}
	return slices.Compare(number(a), number(b))
}

// libvirtFiles gives a node a libvirt of its own; the lines are run in its mount namespace.
func libvirtFiles(n Node, o Options) ([]string, error) {
	etc := filepath.Join(n.Dir, "etc-libvirt")
	if err := os.CopyFS(etc, os.DirFS("/etc/libvirt")); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("copy /etc/libvirt: %w", err)
	}
	// The machine's own virtual networks are not this node's.
	for _, sub := range []string{"qemu/networks/autostart", "qemu/autostart", "storage/autostart", "secrets", "hooks"} {
		if err := os.RemoveAll(filepath.Join(etc, sub)); err != nil {
			return nil, err
		}
	}
	i := strings.TrimPrefix(n.Name, "node-")
	files := map[string]string{
		// Without authentication: the port is in the fleet's own network, which nothing else is joined to.
		"etc-libvirt/libvirtd.conf": fmt.Sprintf("listen_tls = 0\nlisten_tcp = 1\nlisten_addr = %q\ntcp_port = \"16509\"\nauth_tcp = \"none\"\nauth_unix_rw = \"none\"\nunix_sock_rw_perms = \"0700\"\nhost_uuid = \"%08s-1111-2222-3333-444444444444\"\n", n.Addresses[0], i),
		"etc-libvirt/qemu.conf":     fmt.Sprintf("user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\nmigration_host = %q\n", n.Addresses[0]),
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	text := bytes.NewBuffer(append(hosts, '\n'))
	for j := 1; j <= o.Nodes; j++ {
		fmt.Fprintf(text, "%s %s\n", nodeAddrs(j)[0], nodeName(j))
	}
	files["hosts"] = text.String()
	for name, content := range files {
		if err := writeFile(filepath.Join(n.Dir, name), []byte(content)); err != nil {
			return nil, err
		}
	}
	// As the package has it, for this node's agent.
	hook := fmt.Sprintf("#!/bin/sh\nexec %s hook libvirt --config %s \"$@\"\n", o.Binary, n.configFile())
	hooks := filepath.Join(etc, "hooks", "qemu.d")
	if err := os.MkdirAll(hooks, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(hooks, "palisade"), []byte(hook), 0o755); err != nil {
		return nil, err
	}
	lines := []string{"mkdir -p /run/libvirt", "mount --bind " + etc + " /etc/libvirt", "mount --bind " + filepath.Join(n.Dir, "hosts") + " /etc/hosts"}
	for _, d := range []string{"lib", "log", "cache"} {
		own := filepath.Join(n.Dir, d+"-libvirt")
		if err := os.MkdirAll(own, 0o755); err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("mkdir -p /var/%s/libvirt", d), fmt.Sprintf("mount --bind %s /var/%s/libvirt", own, d))
	}
	return lines, nil
}

// startQEMU starts a libvirtd on every node, and the guests.
func (f *Fleet) startQEMU(ctx context.Context, plan state) error {
	f.progress("making the guests' image from the cloud kernel and busybox")
	if err := f.image(ctx); err != nil {
		return fmt.Errorf("guest image: %w", err)
	}
	f.progress("starting a libvirtd on every node")
	for _, n := range f.Nodes() {
		if _, err := tool(ctx, "", n.enter("virtlogd", "-d")...); err != nil {
			return err
		}
		if err := f.StartLibvirtd(ctx, n.Name); err != nil {
			return err
		}
	}
	f.progress(fmt.Sprintf("booting %d QEMU guests (without hardware acceleration: this takes a while)", len(plan.VMs)))
	for _, g := range plan.VMs {
		if g.Netns == "" {
			if err := f.addQEMU(ctx, g); err != nil {
				return fmt.Errorf("guest %s: %w", g.Name, err)
			}
		}
	}
	for _, g := range plan.VMs {
		if err := f.answers(ctx, g, 3*time.Minute); err != nil {
			return err
		}
		f.progress(g.Name + " answers")
	}
	return nil
}

// KillLibvirtd kills the libvirtd of a node, which has no time to tidy up. Its guests run on.
func (f *Fleet) KillLibvirtd(ctx context.Context, node string) error {
	n, err := f.Node(node)
	if err != nil {
		return err
	}
	if err := n.Libvirtd.signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("libvirtd of %s: %w", node, err)
	}
	return f.await(ctx, n.Libvirtd, 30*time.Second)
}

// StartLibvirtd starts the libvirtd of a node and returns when it answers. It is an error if it runs
// already.
func (f *Fleet) StartLibvirtd(ctx context.Context, node string) error {
	n, err := f.Node(node)
	if err != nil {
		return err
	}
	if n.Libvirtd.Alive() {
		return fmt.Errorf("the libvirtd of %s runs already (process %d)", node, n.Libvirtd.PID)
	}
	logPath := filepath.Join(n.Dir, "libvirtd.log")
	p, err := f.launch(n.enter("libvirtd", "--listen"), nil, logPath)
	if err != nil {
		return err
	}
	if err := f.update(func(s *state) { s.node(node).Libvirtd = p }); err != nil {
		return err
	}
	return until(ctx, 30*time.Second, 50*time.Millisecond, func() error {
		_, err := f.virsh(ctx, n, "list")
		if err != nil && !p.Alive() {
			return permanent{fmt.Errorf("libvirtd of %s ended: %s", node, tail(logPath, 5))}
		}
		return err
	})
}

// virsh runs a command of libvirt's client on a node.
func (f *Fleet) virsh(ctx context.Context, n Node, args ...string) ([]byte, error) {
	return tool(ctx, "", n.enter(append([]string{"virsh", "-q", "-c", "qemu:///system"}, args...)...)...)
}

// image packs the initrd: busybox, the modules and the first process. No disk and no download.
func (f *Fleet) image(ctx context.Context) error {
	kernel := cloudKernel()
	root := filepath.Join(f.dir, guestsDir, "initrd.d")
	for _, d := range []string{"bin", "proc", "sys", "dev", "mod"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	version := strings.TrimPrefix(kernel, "/boot/vmlinuz-")
	binary := f.snapshot().Binary
	from := map[string]string{"/bin/busybox": "bin/busybox", binary: "bin/palisade"}
	libraries, err := libraries(ctx, binary)
	if err != nil {
		return err
	}
	for _, l := range libraries {
		from[l] = l
	}
	modules := map[string]string{}
	err = filepath.WalkDir("/lib/modules/"+version, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			modules[d.Name()] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, m := range strings.Fields(guestModules) {
		path, found := modules[m+".ko"]
		if !found {
			return fmt.Errorf("kernel %s has no module %s", version, m)
		}
		from[path] = "mod/" + m + ".ko"
	}
	for path, name := range from {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, b, 0o755); err != nil {
			return err
		}
	}
	init := strings.ReplaceAll(string(guestInit), "@MODULES@", guestModules)
	if err := os.WriteFile(filepath.Join(root, "init"), []byte(init), 0o755); err != nil {
		return err
	}
	_, err = tool(ctx, "", "sh", "-c", fmt.Sprintf("cd %s && find . | cpio -o -H newc --quiet | gzip -1 > %s", root, f.initrd()))
	return err
}

// libraries are what a program is linked with: nothing for the released palisade, which is static, but
// a test's own binary need not be.
func libraries(ctx context.Context, program string) ([]string, error) {
	file, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if file.Section(".interp") == nil {
		return nil, nil
	}
	out, err := tool(ctx, "", "ldd", program)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(splitFields(out), func(w string) bool { return !strings.HasPrefix(w, "/") }), nil
}

func (f *Fleet) initrd() string { return filepath.Join(f.dir, guestsDir, "initrd.gz") }

func (f *Fleet) addQEMU(ctx context.Context, g Guest) error {
	n, err := f.Node(g.Node)
	if err != nil {
		return err
	}
	o := outsideAddrs()
	xml := fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name><uuid>%s</uuid>
  <memory unit='MiB'>160</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>%s</kernel><initrd>%s</initrd>
    <cmdline>console=ttyS0 quiet vmname=%s vmip4=%s/16 vmip6=%s/64 vmgw4=%s vmgw6=%s</cmdline></os>
  <cpu mode='custom'><model>qemu64</model></cpu><features><acpi/></features>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='bridge'><mac address='%s'/><source bridge='br0'/><model type='virtio'/></interface>
    <serial type='pty'/><memballoon model='none'/></devices>
</domain>
`, g.Name, g.VM, cloudKernel(), f.initrd(), g.Name, g.Addresses[0], g.Addresses[1], o[0], o[1], g.MAC)
	path := filepath.Join(n.Dir, g.Name+".xml")
	if err := writeFile(path, []byte(xml)); err != nil {
		return err
	}
	if _, err := f.virsh(ctx, n, "create", path); err != nil {
		return err
	}
	return f.update(func(s *state) { s.VMs = append(s.VMs, g) })
}

// answers waits until a guest serves on all of its addresses.
func (f *Fleet) answers(ctx context.Context, g Guest, limit time.Duration) error {
	for _, a := range g.Addresses {
		err := until(ctx, limit, 100*time.Millisecond, func() error {
			return inside(f.snapshot().Prefix+"-n0", func() error {
				d := net.Dialer{Timeout: time.Second}
				c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(a, "7"))
				if err == nil {
					_ = c.Close()
				}
				return err
			})
		})
		if err != nil {
			return fmt.Errorf("%s does not answer: %w", g.Name, err)
		}
	}
	return nil
}

// declare tells the fleet the addresses of a QEMU guest, which libvirt does not know.
func (f *Fleet) declare(ctx context.Context, g Guest) error {
	body := map[string]any{"name": g.Name, "addresses": g.Addresses}
	return f.Call(ctx, g.Node, http.MethodPut, "/v1/vms/"+g.VM, body, nil)
}

// migrateQEMU is a live migration by libvirt.
func (f *Fleet) migrateQEMU(ctx context.Context, g Guest, from, to Node, m *Migration) error {
	m.Incoming = time.Now()
	m.Detached = m.Incoming
	_, err := f.virsh(ctx, from, "migrate", "--live", g.VM, "qemu+tcp://"+to.Addresses[0]+"/system", "tcp://"+to.Addresses[0])
	m.Attached = time.Now()
	m.Gone = m.Attached
	if err != nil {
		return err
	}
	return f.update(func(s *state) { s.guest(g.VM).Node = to.Name })
}
