package cluster

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// TestALogBehindASnapshotIsWhole: raft leaves the old entries of a follower that it gave a snapshot; what is
// between them and the next is in the snapshot, so nothing is missing.
func TestALogBehindASnapshotIsWhole(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3, func(_ string, o *Options) {
		o.seams.raft = func(c *raft.Config) { c.TrailingLogs = 10 }
	}).start().ready()
	away := f.follower()
	away.propose(declare("vm", "one"))
	away.crash()
	for i := range 40 {
		f.leader().propose(declare(fmt.Sprintf("vm%d", i), "two"))
	}
	if err := f.leader().c.running.Load().raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	away.start()
	last := f.ready().leader().propose(declare("vm", "three")).Index
	f.agree(last)
	away.crash()
	path := filepath.Join(away.dir(), logFile)
	if first, end, dead, err := checkLog(path); err != nil || dead == 0 || first <= dead || end < first {
		t.Errorf("its log from %d to %d, and before to %d: %v", first, end, dead, err)
	}
	away.start()
	f.ready().agree(last)
	away.crash()
	if first, end, dead, err := checkLog(path); err != nil || dead != 0 || end < first {
		t.Errorf("after a start its log from %d to %d, and before to %d: %v", first, end, dead, err)
	}
	away.start()
	f.ready().agree(last)
	if a := away.c.aside.Load(); a != nil && len(*a) > 0 {
		t.Errorf("its store was set aside: %+v", *a)
	}
}
