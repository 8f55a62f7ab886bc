package static

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// bed runs a driver on a directory and keeps what it reports and logs.
type bed struct {
	t       *testing.T
	dir     string
	reports chan inventory.Report
	mu      sync.Mutex
	logged  strings.Builder
}

func (b *bed) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logged.Write(p)
}

func (b *bed) log() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logged.String()
}

func start(t *testing.T, dir string) *bed {
	t.Helper()
	b := &bed{t: t, dir: dir, reports: make(chan inventory.Report, 100)}
	d, err := New(Options{Dir: b.dir, Rescan: 100 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(b, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- d.Run(ctx, func(r inventory.Report) { b.reports <- r }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		goleak.VerifyNone(t)
	})
	return b
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	tmp := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func (b *bed) put(name, content string) { b.t.Helper(); put(b.t, b.dir, name, content) }

func (b *bed) remove(name string) {
	b.t.Helper()
	if err := os.Remove(filepath.Join(b.dir, name)); err != nil {
		b.t.Fatal(err)
	}
}

// next waits for the next report and compares it, written as "id phase" and "+id" for arrivals.
func (b *bed) next(want ...string) inventory.Report {
	b.t.Helper()
	select {
	case r := <-b.reports:
		var got []string
		for _, v := range r.VMs {
			got = append(got, v.ID+" "+string(v.Phase))
		}
		for _, id := range r.Arrived {
			got = append(got, "+"+id)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			b.t.Fatalf("report (-want +got):\n%s", diff)
		}
		return r
	case <-time.After(10 * time.Second):
		b.t.Fatalf("no report, want %v; log:\n%s", want, b.log())
		return inventory.Report{}
	}
}

func (b *bed) awaitLog(text string) {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(b.log(), text); {
		if time.Now().After(deadline) {
			b.t.Fatalf("the log never said %q:\n%s", text, b.log())
		}
		<-time.After(5 * time.Millisecond)
	}
}

func vm(id, phase string) string {
	return fmt.Sprintf(`{"id":%q,"name":"n-%s","kind":"netns","phase":%q,"nics":[{"mac":"52:54:00:5a:00:01","tap":"tap101i0","addresses":["10.90.1.1","fd90::1:1"]}]}`, id, id, phase)
}

func TestFollowsADirectory(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.json", vm("a", "running"))
	put(t, dir, "README", "not a VM")
	b := start(t, dir)
	r := b.next("a running", "+a")
	want := inventory.VM{ID: "a", Name: "n-a", Kind: "netns", Phase: fsm.PhaseRunning, NICs: []fsm.NIC{{
		MAC: fsm.MAC{0x52, 0x54, 0, 0x5a, 0, 1}, Tap: "tap101i0", Addresses: r.VMs[0].NICs[0].Addresses,
	}}}
	if diff := cmp.Diff(want, r.VMs[0], cmpopts.EquateComparable(want.NICs[0].Addresses[0])); diff != "" {
		t.Error(diff)
	}
	if got := fmt.Sprint(r.VMs[0].NICs[0].Addresses); got != "[10.90.1.1 fd90::1:1]" {
		t.Errorf("addresses %s", got)
	}

	b.put("b.json", vm("b", "incoming"))
	b.next("a running", "b incoming", "+b")
	b.put("b.json", vm("b", "running"))
	b.next("a running", "b running", "+b")
	b.put("a.json", vm("a", "stopped"))
	if r := b.next("a stopped", "b running"); r.VMs[0].NICs[0].Tap != "" {
		t.Errorf("a stopped VM has tap %q", r.VMs[0].NICs[0].Tap)
	}
	b.remove("a.json")
	b.next("b running")
	b.put("a.json", vm("a", "running"))
	b.next("a running", "b running", "+a")
}

func TestFirstReportOfAnEmptyDirectory(t *testing.T) {
	start(t, t.TempDir()).next()
}

func TestBadFileKeepsItsLastGoodContent(t *testing.T) {
	b := start(t, t.TempDir())
	b.next()
	b.put("a.json", vm("a", "running"))
	b.next("a running", "+a")
	b.put("a.json", strings.Replace(vm("a", "stopped"), "tap101i0", "tap/0", 1))
	b.awaitLog(`nics[0].tap: \"tap/0\"`)
	b.put("b.json", vm("b", "running"))
	b.next("a running", "b running", "+b")
	b.put("c.json", vm("c", "running")) // several looks later
	b.next("a running", "b running", "c running", "+c")
	if n := strings.Count(b.log(), "a.json"); n != 1 {
		t.Errorf("the bad file was logged %d times:\n%s", n, b.log())
	}
	b.put("a.json", vm("a", "stopped"))
	b.next("a stopped", "b running", "c running")
}

func TestDirectoryThatComesAndGoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vms.d")
	b := start(t, dir)
	b.awaitLog("cannot be read")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b.next()
	b.put("a.json", vm("a", "running"))
	b.next("a running", "+a")

	// Moved away as a whole: no evidence that the VMs are gone.
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); strings.Count(b.log(), "cannot be read") < 2; {
		if time.Now().After(deadline) {
			t.Fatal("the loss of the directory was not logged")
		}
		<-time.After(5 * time.Millisecond)
	}
	if err := os.Rename(dir+".old", dir); err != nil {
		t.Fatal(err)
	}
	b.put("b.json", vm("b", "running"))
	b.next("a running", "b running", "+b")
}

func TestTwoFilesWithOneID(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.json", vm("x", "running"))
	put(t, dir, "b.json", vm("x", "stopped"))
	b := start(t, dir)
	b.next("x running", "+x")
	b.put("c.json", vm("y", "running")) // several looks later
	b.next("x running", "y running", "+y")
	if n := strings.Count(b.log(), "other=a.json"); n != 1 {
		t.Errorf("the double was logged %d times:\n%s", n, b.log())
	}
	b.remove("a.json")
	b.next("x stopped", "y running")
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.json")
	if err := os.WriteFile(large, make([]byte, MaxFileBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(large, stamp{}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("error %v", err)
	}
	if _, _, err := read(dir, stamp{}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("error %v", err)
	}
}

func TestTooManyFiles(t *testing.T) {
	dir := t.TempDir()
	for i := range MaxFiles + 2 {
		name := filepath.Join(dir, fmt.Sprintf("%05d.json", i))
		if err := os.WriteFile(name, []byte(fmt.Sprintf(`{"id":"%05d","phase":"running"}`, i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := start(t, dir)
	r := <-b.reports
	if len(r.VMs) != MaxFiles || r.VMs[MaxFiles-1].ID != "09999" {
		t.Errorf("%d VMs, the last is %s", len(r.VMs), r.VMs[len(r.VMs)-1].ID)
	}
	b.awaitLog("too many files")
	b.remove("00000.json")
	if r := <-b.reports; len(r.VMs) < MaxFiles-1 {
		t.Errorf("%d VMs after one file was removed", len(r.VMs))
	}
}
