// Package openvswitch starts a switch for tests: Debian's Open vSwitch, with a database of its own, in a network namespace.
package openvswitch

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Switch is a running switch.
type Switch struct {
	t     testing.TB
	dir   string
	netNS string
}

// Start starts a switch in the network namespace that a path names, and returns when it can be told something. It
// runs until the test ends.
func Start(t testing.TB, netNS string) Switch {
	t.Helper()
	s := Switch{t, t.TempDir(), netNS}
	at := func(name string) string { return filepath.Join(s.dir, name) }
	if out, err := exec.CommandContext(t.Context(), "ovsdb-tool", "create", at("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.start("ovsdb-server", at("conf.db"), "--remote=punix:"+at("db.sock"), "--unixctl="+at("db.ctl"))
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(at("db.sock")); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("after 30 s the switch has no database")
		}
	}
	s.Run("--no-wait", "init")
	s.start("ovs-vswitchd", "unix:"+at("db.sock"), "--unixctl="+at("sw.ctl"))
	return s
}

// start runs a daemon in the foreground until the test ends.
func (s Switch) start(name string, args ...string) {
	s.t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=" + s.netNS, name}, args...)...) //nolint:noctx // it is stopped after the context has ended
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+s.dir, "OVS_LOGDIR="+s.dir, "OVS_DBDIR="+s.dir)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// Run has ovs-vsctl tell the switch something, and waits until that is so.
func (s Switch) Run(args ...string) {
	s.t.Helper()
	args = append([]string{"--db=unix:" + filepath.Join(s.dir, "db.sock"), "--timeout=30"}, args...)
	if out, err := exec.CommandContext(s.t.Context(), "ovs-vsctl", args...).CombinedOutput(); err != nil {
		s.t.Fatalf("ovs-vsctl %v: %v\n%s", args, err, out)
	}
}
