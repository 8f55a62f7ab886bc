package debian

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/internal/probe"
	"github.com/palisade/palisade/test/rig"
)

// flows are packets through the machine, both ways.
type flows struct {
	t     *testing.T
	probe *probe.Probe
	port  int
}

func (f *flows) start(guest, outside string) []*probe.Flow {
	f.t.Helper()
	g := probe.End{Netns: guestNS, Addr: netip.MustParseAddr(guest)}
	o := probe.End{Netns: outsideNS, Addr: netip.MustParseAddr(outside)}
	var out []*probe.Flow
	for _, ends := range [][2]probe.End{{g, o}, {o, g}} {
		f.port++
		fl, err := f.probe.UDP(f.t.Context(), fmt.Sprintf("%s>%s", ends[0].Addr, ends[1].Addr), ends[0], ends[1], f.port, 100)
		if err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(fl.Close)
		out = append(out, fl)
	}
	return out
}

func report(t *testing.T, fl *probe.Flow) probe.Report {
	t.Helper()
	r, err := fl.Report()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// silent wants nothing to have arrived since then, of what was sent.
func silent(t *testing.T, when string, list []*probe.Flow, since time.Time) {
	t.Helper()
	for _, fl := range list {
		r := report(t, fl)
		if n := r.After(since); n != 0 {
			t.Errorf("%s: %s: %d packets passed, the last %v after it was blocked", when, fl.Name, n, time.Unix(0, r.Received[len(r.Received)-1].At).Sub(since))
		}
		if r.Sent == uint64(len(r.Received)) {
			t.Errorf("%s: %s: nothing was sent that could have passed", when, fl.Name)
		}
	}
}

// passing waits until every flow brings packets.
func (m *machine) passing(list []*probe.Flow) {
	m.t.Helper()
	from := time.Now()
	for _, fl := range list {
		m.eventually(fl.Name+" passes", func() error {
			if r := report(m.t, fl); r.After(from) < 5 {
				return fmt.Errorf("%d of %d packets arrived", r.After(from), r.Sent)
			}
			return nil
		})
	}
}

// lossless stops flows and wants all of their packets to have arrived.
func lossless(t *testing.T, when string, list []*probe.Flow) {
	t.Helper()
	for _, fl := range list {
		r, err := fl.Stop(3 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if lost := r.Lost(); len(lost) != 0 || r.Sent < 20 {
			t.Errorf("%s: %s: lost %d of %d packets", when, fl.Name, len(lost), r.Sent)
		}
	}
}

// pack builds a package of a version and returns its path in the machine.
func (m *machine) pack(binary, version string) string {
	m.t.Helper()
	dist := filepath.Join(m.dir, "dist")
	script, err := filepath.Abs("../../deploy/debian/build.sh")
	if err != nil {
		m.t.Fatal(err)
	}
	must(m.t, "env", "BINARY="+binary, "VERSION="+version, "DIST="+dist, script, "amd64")
	name := "palisade_" + version + "_amd64.deb"
	must(m.t, "cp", filepath.Join(dist, name), filepath.Join(m.root, "var", name))
	return "/var/" + name
}

// configured is the config of the package with what an admin fills in.
func (m *machine) configure() {
	m.t.Helper()
	path := filepath.Join(m.root, "etc/palisade/palisade.toml")
	b, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	for was, is := range map[string]string{
		`(?m)^id = "".*$`:          `id = "n1"`,
		`(?m)^listen = "".*$`:      `listen = "127.0.0.1:7420"`,
		`(?m)^gossip = "".*$`:      `gossip = "127.0.0.1:7421"`,
		`(?m)^driver = "libvirt"$`: `driver = "none"`,
	} {
		re := regexp.MustCompile(was)
		if len(re.FindAll(b, -1)) != 1 {
			m.t.Fatalf("%q is not once in the config", was)
		}
		b = re.ReplaceAll(b, []byte(is))
	}
	if err := os.WriteFile(path, b, 0o640); err != nil { // keeps owner and mode
		m.t.Fatal(err)
	}
}

// form makes a fleet of this one node.
func (m *machine) form() {
	m.t.Helper()
	m.must("palisade", "init")
}

// TestPackage is the life of an installation.
func TestPackage(t *testing.T) {
	built, err := rig.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(built.Dir) })
	m := newMachine(t)
	first, second := m.pack(built.Palisade, "1.2.3"), m.pack(built.Palisade, "1.2.4")
	m.start()

	said := m.must("dpkg", "-i", first)
	if !strings.Contains(said, "set node.id") {
		t.Errorf("the installation does not say how to go on:\n%s", said)
	}
	m.files()
	m.units()
	if s := m.property("palisade.service", "ActiveState"); s != "inactive" {
		t.Errorf("without a config, the agent is %s", s)
	}
	m.configure()
	m.form()
	m.must("systemctl", "start", "palisade.service")
	m.sandbox()
	m.openvz()
	m.userspace()

	f := &flows{t: t, probe: &probe.Probe{Binary: built.Probe, Stderr: os.Stderr}, port: 21000}
	victims := f.start("10.99.1.2", "10.99.2.2")
	m.passing(victims)
	m.eventually("a block", func() error {
		out, err := m.try("palisade", "block", "add", "10.99.1.2", "--wait")
		if err != nil && strings.Contains(err.Error(), "too_many") {
			t.Fatal(err)
		}
		return errors.Join(err, wants(out, "in force on n1"))
	})
	since := time.Now()
	innocents := f.start("10.99.1.3", "10.99.2.3")
	m.passing(innocents)
	blocked := m.rules()

	t.Run("watchdog", func(t *testing.T) { m.watchdog(t, victims, since) })
	t.Run("stop", func(t *testing.T) {
		m.must("systemctl", "stop", "palisade.service")
		if m.rules() != blocked {
			t.Errorf("the rules changed:\n%s", m.rules())
		}
		m.must("systemctl", "start", "palisade.service")
		silent(t, "stopped and started", victims, since)
	})
	t.Run("upgrade", func(t *testing.T) {
		was := m.property("palisade.service", "MainPID")
		said := m.must("dpkg", "-i", second)
		if strings.Contains(said, "conffile") || !strings.Contains(m.must("cat", "/etc/palisade/palisade.toml"), `id = "n1"`) {
			t.Errorf("the config of the admin is not kept:\n%s", said)
		}
		if is := m.property("palisade.service", "MainPID"); is == was || is == "0" {
			t.Errorf("the agent was process %s and is %s: the new build does not run", was, is)
		}
		if m.rules() != blocked {
			t.Errorf("the rules changed:\n%s", m.rules())
		}
		silent(t, "upgraded", victims, since)
	})
	lossless(t, "watchdog, stop and upgrade", innocents)
	t.Run("boot", func(t *testing.T) { m.reboot(t, f, victims, since) })
	t.Run("remove", func(t *testing.T) {
		innocents := f.start("10.99.1.3", "10.99.2.3")
		m.passing(innocents)
		blocked := m.rules()
		said := m.must("dpkg", "-r", "palisade")
		if !strings.Contains(said, "goes on enforcing") {
			t.Errorf("the removal does not say what stays:\n%s", said)
		}
		if _, err := m.try("pgrep", "palisade"); err == nil {
			t.Error("the agent runs on")
		}
		m.must("test", "-e", "/etc/palisade/palisade.toml", "-a", "-d", "/var/lib/palisade/raft")
		if m.rules() != blocked {
			t.Errorf("removed: the rules changed:\n%s", m.rules())
		}
		m.must("dpkg", "-P", "palisade")
		if out := m.must("sh", "-c", "find / -xdev -path /proc -prune -o -iname '*palisade*' -print | grep -v '^/var/palisade_\\|/var/lib/dpkg\\|/var/log\\|/sys/' || true"); out != "" {
			t.Errorf("purged: these files are left:\n%s", out)
		}
		if m.rules() != blocked {
			t.Errorf("purged: the rules changed:\n%s", m.rules())
		}
		silent(t, "purged", victims, since)
		lossless(t, "removed and purged", innocents)
	})
}

func wants(text, want string) error {
	if !strings.Contains(text, want) {
		return fmt.Errorf("%q does not say %q", text, want)
	}
	return nil
}

// files compares what was installed: mode, owner, group, path.
func (m *machine) files() {
	m.t.Helper()
	for path, want := range map[string]string{
		"/usr/bin/palisade":                                  "755 root:root",
		"/usr/lib/palisade/libvirt-hook":                     "755 root:root",
		"/lib/systemd/system/palisade.service":               "644 root:root",
		"/lib/systemd/system/palisade-boot.service":          "644 root:root",
		"/lib/systemd/system/palisade-openvz.socket":         "644 root:root",
		"/lib/systemd/system/palisade-openvz@.service":       "644 root:root",
		"/usr/lib/sysusers.d/palisade.conf":                  "644 root:root",
		"/etc/palisade":                                      "750 root:palisade",
		"/etc/palisade/palisade.toml":                        "640 root:palisade",
		"/etc/libvirt/hooks/qemu.d/palisade":                 "755 root:root",
		"/var/lib/palisade":                                  "700 palisade:palisade",
		"/usr/share/bash-completion/completions/palisade":    "644 root:root",
		"/usr/share/zsh/vendor-completions/_palisade":        "644 root:root",
		"/usr/share/fish/vendor_completions.d/palisade.fish": "644 root:root",
		"/usr/share/doc/palisade/copyright":                  "644 root:root",
		"/usr/share/doc/palisade/sbom.cdx.json":              "644 root:root",
		userspaceDropIn:                                      "644 root:root",
	} {
		if got := strings.TrimSpace(m.must("stat", "-c", "%a %U:%G", path)); got != want {
			m.t.Errorf("%s has %s, want %s", path, got, want)
		}
	}
	for _, unit := range []string{"palisade.service", "palisade-boot.service"} {
		if got := m.property(unit, "UnitFileState"); got != "enabled" {
			m.t.Errorf("%s is %s", unit, got)
		}
	}
	if out := m.must("dpkg-query", "-W", "-f", "${Conffiles}", "palisade"); strings.Count(out, "/") != 8 || !strings.Contains(out, " /etc/palisade/palisade.toml ") || !strings.Contains(out, " /etc/libvirt/hooks/qemu.d/palisade ") {
		m.t.Errorf("the config files are %q", out)
	}
	if out := m.must("getent", "passwd", "palisade"); !strings.Contains(out, "nologin") {
		m.t.Errorf("the user is %q", out)
	}
	page := must(m.t, "sh", "-c", "zcat "+filepath.Join(m.root, "usr/share/man/man1/palisade.1.gz"))
	if err := wants(page, `.SS "block add"`); err != nil {
		m.t.Error(err)
	}
}

// units has systemd read the units, and rate how much they let a program do: 0 is best, 10 is a plain service.
func (m *machine) units() {
	m.t.Helper()
	if out, err := m.try("systemd-analyze", "verify", "--man=no", "palisade.service", "palisade-boot.service", "palisade-openvz.socket"); err != nil || strings.Contains(out, "palisade") {
		m.t.Errorf("systemd-analyze verify: %s %v", out, err)
	}
	for unit, most := range map[string]float64{"palisade.service": 2.0, "palisade-boot.service": 1.6} {
		out := m.must("systemd-analyze", "security", "--no-pager", unit)
		found := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
		if found == nil {
			m.t.Fatalf("no exposure level:\n%s", out)
		}
		level, err := strconv.ParseFloat(found[1], 64)
		if err != nil || level > most {
			m.t.Errorf("%s: exposure level %s, want at most %.1f:\n%s", unit, found[1], most, out)
		}
		m.t.Logf("%s: exposure level %s", unit, found[1])
	}
}

// sandbox looks at the agent that systemd started.
func (m *machine) sandbox() {
	m.t.Helper()
	status := m.agentStatus()
	const netAdminAndRaw = "0000000000003000"
	uid := strings.TrimSpace(m.must("id", "-u", "palisade"))
	for key, want := range map[string]string{"CapEff": netAdminAndRaw, "CapPrm": netAdminAndRaw, "CapBnd": netAdminAndRaw, "CapAmb": netAdminAndRaw,
		"NoNewPrivs": "1", "Seccomp": "2", "Uid": strings.Join([]string{uid, uid, uid, uid}, "\t")} {
		if !strings.Contains(status, "\n"+key+":\t"+want+"\n") {
			m.t.Errorf("%s of the agent is not %s:\n%s", key, want, status)
		}
	}
	// Whether it may be lowered is up to the machine that the tests run on.
	if got := m.property("palisade.service", "OOMScoreAdjust"); got != "-900" {
		m.t.Errorf("OOMScoreAdjust is %s", got)
	}
	if got := strings.TrimSpace(m.must("stat", "-c", "%a %U", "/run/palisade/palisade.sock")); got != "600 palisade" {
		m.t.Errorf("the socket has %s", got)
	}
	if out, err := m.try("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "palisade", "status", "--retry-for", "0s"); err == nil {
		m.t.Errorf("anybody may ask the agent:\n%s", out)
	}
	if out := m.must("sh", "-c", "find /var/lib/palisade ! -user palisade"); out != "" {
		m.t.Errorf("the agent can't write these files:\n%s", out)
	}
	m.eventually("the canary proves that blocked packets are dropped", m.proven)
	m.eventually("the status line", func() error { return wants(m.property("palisade.service", "StatusText"), "log index") })
	if out := m.must("journalctl", "-b", "--no-pager", "-u", "palisade"); strings.Contains(out, "operation not permitted") {
		m.t.Errorf("something was not permitted:\n%s", out)
	}
	m.must("palisade", "debug", "bundle", "--out", "/root/bundle.tar.gz")
	if err := wants(m.must("tar", "-xzOf", "/root/bundle.tar.gz", "palisade-debug/ruleset-blocks.txt"), "chain prerouting, filter, hook 0, priority -500"); err != nil {
		m.t.Errorf("the bundle: %v", err)
	}
	// The journal knows how urgent a line is, and has its own time.
	line := m.must("journalctl", "-b", "--no-pager", "-u", "palisade", "-o", "json", "-n", "1", "--grep", "agent runs")
	if err := errors.Join(wants(line, `"PRIORITY":"6"`), wants(line, `"MESSAGE":"level=INFO msg=`)); err != nil {
		m.t.Error(err)
	}
}

// openvz has the agent, which may do nothing, learn what a tool lists that only root may run.
func (m *machine) openvz() {
	m.t.Helper()
	m.write("/usr/sbin/vzlist", "#!/bin/sh\n[ \"$(id -u) $*\" = '0 -a -j -o ctid,name,ip,status' ] || exit 1\necho '[{\"ctid\":101,\"name\":\"web\",\"ip\":[\"192.0.2.101\"],\"status\":\"running\"}]'\n")
	m.must("chmod", "755", "/usr/sbin/vzlist")
	m.must("systemctl", "enable", "-q", "--now", "palisade-openvz.socket")
	if got := strings.TrimSpace(m.must("stat", "-c", "%a %U:%G", "/run/palisade-inventory/openvz.sock")); got != "660 root:palisade" {
		m.t.Errorf("the socket of the list has %s", got)
	}
	restore := m.inventory("openvz")
	m.eventually("the container is known", func() error {
		out, err := m.try("palisade", "vm", "show", "ct-101")
		return errors.Join(err, wants(out, "192.0.2.101"), wants(out, "running"))
	})
	restore()
	m.must("systemctl", "disable", "-q", "--now", "palisade-openvz.socket")
	m.must("rm", "/usr/sbin/vzlist")
}

// watchdog stops the agent in its tracks: systemd ends and starts it again.
func (m *machine) watchdog(t *testing.T, victims []*probe.Flow, since time.Time) {
	m.must("mkdir", "-p", "/etc/systemd/system/palisade.service.d")
	m.write("/etc/systemd/system/palisade.service.d/test.conf", "[Service]\nWatchdogSec=3\n")
	m.must("systemctl", "daemon-reload")
	m.must("systemctl", "restart", "palisade.service")
	restarts := m.property("palisade.service", "NRestarts")
	m.must("sleep", "5") // longer than the limit: an agent that is alive is let be
	if is := m.property("palisade.service", "NRestarts"); is != restarts {
		t.Errorf("an agent that is alive was started again: %s, then %s", restarts, is)
	}
	m.must("systemctl", "kill", "-s", "STOP", "--kill-whom=main", "palisade.service")
	m.eventually("the agent is started again", func() error {
		if is := m.property("palisade.service", "NRestarts"); is == restarts {
			return fmt.Errorf("restarts: %s", is)
		}
		if s := m.property("palisade.service", "ActiveState"); s != "active" {
			return errors.New(s)
		}
		return nil
	})
	silent(t, "hung and started again", victims, since)
	m.must("rm", "-r", "/etc/systemd/system/palisade.service.d")
	m.must("systemctl", "daemon-reload")
	m.must("systemctl", "restart", "palisade.service")
}

// reboot starts the machine with an empty kernel, with and then without the agent. Flows run all the time: the first
// packet that could pass does so after the network is up, and that is after the rules stand.
func (m *machine) reboot(t *testing.T, f *flows, victims []*probe.Flow, since time.Time) {
	m.must("systemctl", "mask", "-q", "palisade.service")
	m.must("sync")
	m.off()
	m.start()
	if rules := m.rules(); !strings.Contains(rules, "10.99.1.2") {
		t.Errorf("the block is not in the kernel after the boot:\n%s", rules)
	}
	innocents := f.start("10.99.1.3", "10.99.2.3")
	m.passing(innocents)
	time.Sleep(time.Second)
	silent(t, "booted, no agent", victims, since)
	if s := m.property("palisade-boot.service", "Result"); s != "success" {
		t.Errorf("palisade-boot: %s\n%s", s, m.must("journalctl", "-b", "--no-pager", "-u", "palisade-boot"))
	}
	at := func(unit, what string) uint64 {
		n, err := strconv.ParseUint(m.property(unit, what), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if done, network := at("palisade-boot.service", "ExecMainExitTimestampMonotonic"), at("test-network.service", "ExecMainStartTimestampMonotonic"); done == 0 || done > network {
		t.Errorf("the rules stood at %d us, the network began at %d us", done, network)
	}
	loaded := m.rules()
	m.must("systemctl", "unmask", "-q", "palisade.service")
	m.must("systemctl", "start", "palisade.service")
	m.eventually("the agent enforces", func() error {
		out, err := m.try("palisade", "block", "ls")
		return errors.Join(err, wants(out, "10.99.1.2"))
	})
	if m.rules() != loaded {
		t.Errorf("the agent changed what was loaded:\n%s\nbefore:\n%s", m.rules(), loaded)
	}
	if log := m.must("journalctl", "-b", "--no-pager", "-u", "palisade"); !strings.Contains(log, "intact=true") {
		t.Errorf("the agent did not adopt what was loaded:\n%s", log)
	}
	silent(t, "booted", victims, since)
	lossless(t, "booted", innocents)
}

// TestReproducible builds the same commit in two places for both kinds of machines, the second time without anything that the first left: the
// same bytes come out. What is for arm64 is for arm64, and both list their libraries.
func TestReproducible(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	build := func(where string, env ...string) string {
		dir := filepath.Join(tmp, where)
		must(t, "git", "clone", "-q", root, dir)
		return must(t, append(append([]string{"env", "VERSION=1.2.3"}, env...), filepath.Join(dir, "deploy/debian/build.sh"))...)
	}
	first, second := build("a"), build("longer/b", "GOCACHE="+filepath.Join(tmp, "cache"))
	if first != second {
		t.Errorf("two builds differ:\n%s%s", first, second)
	}
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		name := filepath.Join(tmp, "a/dist/palisade_1.2.3_"+arch)
		if !strings.Contains(first, filepath.Base(name)+".deb") {
			t.Errorf("the build does not say that it made %s.deb:\n%s", filepath.Base(name), first)
		}
		if got := strings.TrimSpace(must(t, "dpkg-deb", "-f", name+".deb", "Architecture")); got != arch {
			t.Errorf("the package for %s is for %s", arch, got)
		}
		files := filepath.Join(tmp, arch)
		must(t, "dpkg-deb", "-x", name+".deb", files)
		program, err := elf.Open(filepath.Join(files, "usr/bin/palisade"))
		if err != nil {
			t.Fatal(err)
		}
		libraries, err := program.ImportedLibraries()
		if program.Machine != machine || err != nil || len(libraries) > 0 {
			t.Errorf("the program for %s is for %s, and needs %v, %v", arch, program.Machine, libraries, err)
		}
		_ = program.Close()
		beside, err := os.ReadFile(name + ".cdx.json")
		if err != nil {
			t.Fatal(err)
		}
		inside, err := os.ReadFile(filepath.Join(files, "usr/share/doc/palisade/sbom.cdx.json"))
		if err != nil || !bytes.Equal(inside, beside) || !bytes.Contains(inside, []byte("pkg:golang/github.com/hashicorp/raft@")) {
			t.Errorf("the list of libraries for %s: %v\n%s", arch, err, inside)
		}
	}
}
