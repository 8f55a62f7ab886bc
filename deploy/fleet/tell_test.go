package fleet

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/palisade/palisade/inventory"
	"github.com/palisade/palisade/inventory/static"
)

// TestToldUnnoticed tells a node of a guest so that only a rescan finds it.
func TestToldUnnoticed(t *testing.T) {
	dir := t.TempDir()
	n := Node{Name: "node-1", Dir: filepath.Join(dir, "node-1")}
	g := Guest{VM: "vm1", Name: "guest1", Node: n.Name, Netns: "none", Tap: "tap1", MAC: "52:54:00:00:00:01", Addresses: []string{"10.0.0.1"}}
	f := &Fleet{dir: dir, state: state{Nodes: []Node{n}, VMs: []Guest{g}}}
	if err := f.files(f.state); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		rescan  time.Duration
		tell    func(vm, node, phase string) error
		noticed bool
	}{
		{"noticed", time.Hour, f.Tell, true},
		{"unnoticed", time.Hour, f.TellUnnoticed, false},
		{"found by a rescan", 100 * time.Millisecond, f.TellUnnoticed, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := f.Tell(g.VM, n.Name, "incoming"); err != nil {
				t.Fatal(err)
			}
			d, err := static.New(static.Options{Dir: filepath.Join(n.Dir, vmsName), Rescan: c.rescan})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			reports := make(chan inventory.Report, 10)
			go func() { ended <- d.Run(ctx, func(r inventory.Report) { reports <- r }) }()
			defer func() {
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			if r := <-reports; len(r.VMs) != 1 || r.VMs[0].Phase != "incoming" {
				t.Fatalf("the first report is %+v", r)
			}
			if err := c.tell(g.VM, n.Name, "running"); err != nil {
				t.Fatal(err)
			}
			limit := 10 * time.Second
			if !c.noticed {
				limit = time.Second
			}
			select {
			case r := <-reports:
				if !c.noticed || len(r.VMs) != 1 || r.VMs[0].Phase != "running" {
					t.Errorf("reported %+v", r)
				}
			case <-time.After(limit):
				if c.noticed {
					t.Error("nothing was reported")
				}
			}
		})
	}
}
