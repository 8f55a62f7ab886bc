package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/boot"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

func element(s string) enforce.Element { return enforce.Element{Prefix: netip.MustParsePrefix(s)} }

// savedBench is a bootSaver over a kernel that always obeys.
type savedBench struct {
	t        *testing.T
	saver    *bootSaver
	kernel   savedKernel
	dir      string
	caughtUp chan struct{}
	stop     func()
}

func newSavedBench(t *testing.T, dir string, held ...string) *savedBench {
	t.Helper()
	elements := map[enforce.Element]struct{}{}
	for _, s := range held {
		elements[element(s)] = struct{}{}
	}
	b := &savedBench{t: t, dir: dir, caughtUp: make(chan struct{})}
	b.saver = newBootSaver(slog.New(slog.DiscardHandler), dir, nft.Held{Index: 5, Elements: elements}, b.caughtUp)
	b.saver.timing = bootTiming{pause: time.Millisecond, share: 1, again: 5 * time.Millisecond}
	b.kernel = savedKernel{&fakeKernel{held: maps.Clone(elements)}, b.saver}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.saver.Run(ctx) }()
	stopped := false
	b.stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(b.stop)
	return b
}

func (b *savedBench) apply(index uint64, add, remove []string) {
	b.t.Helper()
	d := enforce.Delta{Index: index}
	for _, s := range add {
		d.Add = append(d.Add, element(s))
	}
	for _, s := range remove {
		d.Remove = append(d.Remove, element(s))
	}
	if err := b.kernel.Apply(b.t.Context(), d); err != nil {
		b.t.Fatal(err)
	}
}

func (b *savedBench) eventually(what string, ok func() error) {
	b.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// reads waits until what is on disk is this.
func (b *savedBench) reads(index uint64, want ...string) {
	b.t.Helper()
	b.eventually("what is on disk", func() error {
		f, err := boot.ReadBlocks(b.dir)
		if err != nil {
			return err
		}
		var got []string
		for e := range f.Elements {
			got = append(got, e.String())
		}
		if slices.Sort(got); f.Index != index || !slices.Equal(got, want) {
			return fmt.Errorf("index %d with %v, want %d with %v", f.Index, got, index, want)
		}
		return nil
	})
}

// What a kernel holds before its agent has caught up is not worth more than what is on disk: it may have lost
// everything.
func TestNothingIsSavedBeforeCatchingUp(t *testing.T) {
	dir := t.TempDir()
	w := boot.NewBlocksWriter(dir)
	if err := errors.Join(w.Begin(boot.Blocks{Index: 4, Elements: map[enforce.Element]struct{}{element("10.0.0.9/32"): {}}}), w.Close()); err != nil {
		t.Fatal(err)
	}
	b := newSavedBench(t, dir)
	b.apply(6, []string{"10.0.0.1/32"}, nil)
	b.stop()
	b.reads(4, "10.0.0.9")

	b = newSavedBench(t, dir)
	b.apply(6, []string{"10.0.0.1/32"}, nil)
	close(b.caughtUp)
	b.reads(6, "10.0.0.1")
}

func TestChangesAreSaved(t *testing.T) {
	b := newSavedBench(t, t.TempDir(), "10.0.0.1/32", "10.0.0.2/32")
	close(b.caughtUp)
	b.reads(5, "10.0.0.1", "10.0.0.2")
	b.apply(8, []string{"10.0.0.3/32"}, []string{"10.0.0.1/32"})
	b.reads(8, "10.0.0.2", "10.0.0.3")
	b.apply(9, []string{"10.0.0.1/32"}, nil)
	b.apply(10, nil, []string{"10.0.0.1/32", "10.0.0.2/32"})
	b.reads(10, "10.0.0.3")
	// A log index alone is written at the end, and not before.
	b.apply(17, nil, nil)
	b.stop()
	b.reads(17, "10.0.0.3")
}

// A change that failed in the kernel is not saved.
func TestAFailedChangeIsNotSaved(t *testing.T) {
	b := newSavedBench(t, t.TempDir(), "10.0.0.1/32")
	close(b.caughtUp)
	b.reads(5, "10.0.0.1")
	b.kernel.kernel.(*fakeKernel).setFail(errors.New("no"))
	if err := b.kernel.Apply(t.Context(), enforce.Delta{Index: 6, Remove: []enforce.Element{element("10.0.0.1/32")}}); err == nil {
		t.Error("no error")
	}
	b.stop()
	b.reads(5, "10.0.0.1")
}

// A disk that can't be written to is told of, changes nothing else, and is tried again.
func TestAFailingDiskIsToldAndTriedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "boot")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // in the way of the directory
		t.Fatal(err)
	}
	b := newSavedBench(t, dir, "10.0.0.1/32")
	close(b.caughtUp)
	b.eventually("the warning", func() error {
		if w := b.saver.Warning(); !strings.Contains(w, "next boot") {
			return fmt.Errorf("it is %q", w)
		}
		return nil
	})
	b.apply(7, []string{"10.0.0.2/32"}, nil)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	b.reads(7, "10.0.0.1", "10.0.0.2")
	b.eventually("the end of the warning", func() error {
		if w := b.saver.Warning(); w != "" {
			return errors.New(w)
		}
		return nil
	})
}

// What is loaded at boot leaves out taps, what the config guards, and what the kernel lacks becomes a drop.
func TestBootable(t *testing.T) {
	held := map[enforce.Element]struct{}{
		{Tap: "vnet3"}: {},
		{Tap: "vnet3", Treatment: "bridge_020000000001"}:                                   {},
		{MAC: fsm.MAC{2, 0, 0, 0, 0, 1}}:                                                   {},
		element("10.0.0.0/30"):                                                             {},
		element("192.0.2.7/32"):                                                            {},
		{Prefix: netip.MustParsePrefix("10.1.0.1/32"), Treatment: "reject_out"}:            {},
		{Prefix: netip.MustParsePrefix("10.1.0.2/32"), Treatment: "limit_in_b17_8000bits"}: {},
		{Treatment: "limit_in_b17_8000bits"}:                                               {},
		{Prefix: netip.MustParsePrefix("10.1.0.3/32"), Treatment: "page_8079"}:             {},
		{Prefix: netip.MustParsePrefix("10.1.0.3/32"), Treatment: "redirect_in"}:           {},
		{Prefix: netip.MustParsePrefix("10.1.0.4/32"), Treatment: "ports_out_b2_6.25"}:     {},
		{Treatment: "ports_out_b2_6.25"}:                                                   {},
		{Prefix: netip.MustParsePrefix("2001:db8::/64"), Treatment: "ports_out_b2_6.25"}:   {},
	}
	guards := []netip.Prefix{netip.MustParsePrefix("2001:db8::1/128"), netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.1/32")}
	texts := func(missing ...fsm.Kind) string {
		var out []string
		for _, e := range bootable(held, guards, func(k fsm.Kind) bool { return slices.Contains(missing, k) }) {
			if e.Prefix.Addr().Is4() || !e.Prefix.IsValid() {
				out = append(out, e.String())
			}
		}
		return strings.Join(out, ", ")
	}
	if got, want := texts(), "limit_in_b17_8000bits, ports_out_b2_6.25, 02:00:00:00:00:01, 10.0.0.0, 10.0.0.3, 10.1.0.1 reject_out, "+
		"10.1.0.2 limit_in_b17_8000bits, 10.1.0.3 page_8079, 10.1.0.3 redirect_in, 10.1.0.4 ports_out_b2_6.25"; got != want {
		t.Errorf("it loads %s\nwant %s", got, want)
	}
	if got, want := texts(fsm.Limit, fsm.Redirect), "ports_out_b2_6.25, 02:00:00:00:00:01, 10.0.0.0, 10.0.0.3, 10.1.0.1 reject_out, "+
		"10.1.0.2 in, 10.1.0.3 in, 10.1.0.4 ports_out_b2_6.25"; got != want {
		t.Errorf("without limits and redirects it loads %s\nwant %s", got, want)
	}
	v6 := 0
	for _, e := range bootable(held, guards, func(fsm.Kind) bool { return false }) {
		if e.Prefix.IsValid() && e.Prefix.Addr().Is6() {
			v6++
			if e.Prefix.Contains(netip.MustParseAddr("2001:db8::1")) || e.Treatment != "ports_out_b2_6.25" {
				t.Errorf("it loads %v", e)
			}
		}
	}
	if v6 != 64 {
		t.Errorf("%d prefixes are around the guard, want 64", v6)
	}
}

// A config file that the agent would refuse still says where the ruleset is.
func TestBootConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "palisade.toml")
	for content, want := range map[string]string{
		"data_dir = \"/srv/p\"\nwrong = 1\n[node]\nguards = [\"192.0.2.0/24\"]\n": "/srv/p [192.0.2.0/24]",
		"data_dir = \"/srv/p\"\n[node\n":                                          "/srv/p []", // what could be read
		"":                                                                        "/var/lib/palisade []",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := BootConfig(file)
		if got := fmt.Sprint(cfg.DataDir, " ", cfg.Node.Guards); got != want || err == nil || cfg.Log.Level == "" {
			t.Errorf("%q: %s, %v; want %s and what is wrong", content, got, err, want)
		}
	}
}
