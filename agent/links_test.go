package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
)

// newLinkBed makes a namespace, and returns a function that runs "ip" in it.
func newLinkBed(t testing.TB) (ns string, in func(line string)) {
	t.Helper()
	ns = fmt.Sprintf("pallinks-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}
	run("netns", "add", ns)
	t.Cleanup(func() { run("netns", "del", ns) })
	return ns, func(line string) { t.Helper(); run(append([]string{"-n", ns}, strings.Fields(line)...)...) }
}

// start runs the monitor in a namespace until the test ends.
func (m *linkMonitor) start(t testing.TB, ns string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- within(ns, func() error { return m.Run(ctx) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (m *linkMonitor) named(name string) (link, bool) {
	for _, l := range m.All() {
		if l.Name == name {
			return l, true
		}
	}
	return link{}, false
}

func TestInterfacesAreFollowed(t *testing.T) {
	ns, in := newLinkBed(t)
	in("link add br0 address 02:00:00:00:00:f0 type bridge")
	in("link add tap0 address 02:00:00:00:00:01 type veth peer name guest0")
	in("link set tap0 master br0")

	m := newLinkMonitor(slog.New(slog.DiscardHandler))
	m.relist = time.Hour // what follows comes by news alone
	news := make(chan linkChange, 256)
	m.Subscribe(func(changes []linkChange) {
		for _, c := range changes {
			news <- c
		}
	})
	m.start(t, ns)
	next := func(what string, ok func(linkChange) bool) linkChange {
		t.Helper()
		late := time.After(10 * time.Second)
		for {
			select {
			case c := <-news:
				if ok(c) {
					return c
				}
			case <-late:
				t.Fatalf("after 10 s: no news that %s", what)
			}
		}
	}
	<-m.Listed()
	next("tap0 was there before", func(c linkChange) bool {
		return c.Before == link{} && c.Now.Name == "tap0" && c.Now.MAC == fsm.MAC{2, 0, 0, 0, 0, 1} && c.Now.Kind == "veth" && c.Now.MasterKind == "bridge"
	})
	in("tuntap add tap1 mode tap")
	next("tap1 appeared", func(c linkChange) bool {
		return c.Before.Index == 0 && c.Now.Name == "tap1" && c.Now.Kind == "tun" && c.Now.Master == 0
	})
	in("link set tap1 address fe:00:00:00:00:07")
	next("tap1 has another address", func(c linkChange) bool {
		return c.Before.Name == "tap1" && c.Now.MAC == fsm.MAC{0xfe, 0, 0, 0, 0, 7}
	})
	in("link set tap1 up")
	next("tap1 is up", func(c linkChange) bool { return c.Now.Name == "tap1" && c.Now.Flags&unix.IFF_UP != 0 })
	in("link set tap1 master br0")
	next("tap1 is a port", func(c linkChange) bool {
		return c.Now.Name == "tap1" && c.Before.MasterKind == "" && c.Now.MasterKind == "bridge"
	})
	// The bridge now says that it "deletes" its port, in the group of the same socket.
	in("link set tap1 nomaster")
	next("tap1 is no port", func(c linkChange) bool {
		if c.Now.Index == 0 && c.Before.Name == "tap1" {
			t.Error("an interface that left its bridge counts as gone")
		}
		return c.Now.Name == "tap1" && c.Before.MasterKind == "bridge" && c.Now.MasterKind == ""
	})
	in("link set tap1 name tap2")
	next("tap1 is called tap2", func(c linkChange) bool { return c.Before.Name == "tap1" && c.Now.Name == "tap2" })

	late := make(chan int, 1)
	m.Subscribe(func(changes []linkChange) {
		select {
		case late <- len(changes):
		default:
		}
	})
	if n := <-late; n < 5 { // lo, br0, tap0, guest0, tap2
		t.Errorf("who subscribes later is told of %d interfaces", n)
	}
	in("link del tap2")
	next("tap2 is gone", func(c linkChange) bool { return c.Now == link{} && c.Before.Name == "tap2" })
	if l, ok := m.named("tap2"); ok {
		t.Errorf("gone, but listed: %+v", l)
	}
}

// TestLostNewsOfInterfacesIsMadeUp has too little room for what happens while nobody reads.
func TestLostNewsOfInterfacesIsMadeUp(t *testing.T) {
	ns, in := newLinkBed(t)
	m := newLinkMonitor(slog.New(slog.DiscardHandler))
	m.relist, m.buffer = time.Hour, 4096
	m.start(t, ns)
	<-m.Listed()
	in("link add old type bridge")
	await(t, m, "old", true)

	m.mu.Lock() // as a subscriber that is slow
	in("link del old")
	for i := range 40 {
		in(fmt.Sprintf("link add new%d type bridge", i))
	}
	m.mu.Unlock()
	await(t, m, "new39", true)
	await(t, m, "old", false)
}

// TestInterfacesAreListedAgain has the monitor forget one.
func TestInterfacesAreListedAgain(t *testing.T) {
	ns, in := newLinkBed(t)
	in("link add quiet type bridge")
	m := newLinkMonitor(slog.New(slog.DiscardHandler))
	m.relist = 50 * time.Millisecond
	m.start(t, ns)
	<-m.Listed()
	l, ok := m.named("quiet")
	if !ok {
		t.Fatal("not in the first list")
	}
	m.mu.Lock()
	delete(m.links, l.Index)
	m.mu.Unlock()
	await(t, m, "quiet", true)
}

func await(t *testing.T, m *linkMonitor, name string, present bool) {
	t.Helper()
	for late := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, ok := m.named(name); ok == present {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("after 10 s: %s is there: %v", name, !present)
		}
	}
}
