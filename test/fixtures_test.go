package test

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/palisade/palisade/audit"
	"github.com/palisade/palisade/cluster"
	"github.com/palisade/palisade/enforce/boot"
)

// TestDataOfEveryRelease opens the data directory of a node of every release (see fixtures/make.sh; until there is one, of the first format): the log gives the
// state that the release had, to the bit, the audit is whole and belongs to it, and the ruleset for the next boot is read.
func TestDataOfEveryRelease(t *testing.T) {
	wants, err := filepath.Glob("fixtures/*/want.json")
	if err != nil || len(wants) == 0 {
		t.Fatalf("there are no fixtures: %v", err)
	}
	for _, file := range wants {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want struct {
				Index uint64 `json:"index"`
				Hash  string `json:"state_hash"`
			}
			if err := json.Unmarshal(b, &want); err != nil {
				t.Fatal(err)
			}
			data := t.TempDir()
			if err := os.CopyFS(data, os.DirFS(filepath.Join(filepath.Dir(file), "data"))); err != nil {
				t.Fatal(err)
			}
			log := slog.New(slog.DiscardHandler)
			store, err := cluster.ReadOffline(filepath.Join(data, "raft"), log)
			if err != nil {
				t.Fatal(err)
			}
			view := store.State.View()
			if view.Index() != want.Index || view.Hash() != want.Hash {
				t.Errorf("the state is %s at %d, the release had %s at %d", view.Hash(), view.Index(), want.Hash, want.Index)
			}
			if view.CountActive() == 0 || view.CountVMs() == 0 || view.CountLists() == 0 {
				t.Error("there is hardly anything in it")
			}

			disk, err := audit.Open(audit.Options{Dir: filepath.Join(data, "audit"), Logger: log})
			if err != nil {
				t.Fatal(err)
			}
			sum, err := disk.Verify(t.Context())
			if err := errors.Join(err, disk.Close()); err != nil {
				t.Errorf("the audit: %v", err)
			}
			if head := view.AuditHead(); disk.Head() != head || sum.Records == 0 {
				t.Errorf("the audit ends with %+v (%+v), the state has %+v", disk.Head(), sum, head)
			}

			blocks, err := boot.ReadBlocks(filepath.Join(data, "boot"))
			if err != nil || blocks.Damaged != nil || blocks.Unknown != 0 || len(blocks.Elements) == 0 || blocks.Index != want.Index {
				t.Errorf("the ruleset at index %d with %d elements: %v, %v", blocks.Index, len(blocks.Elements), err, blocks.Damaged)
			}
			if lists, err := boot.ReadLists(filepath.Join(data, "boot"), nil); err != nil || lists.Damaged != nil || lists.Lists.Empty() {
				t.Errorf("the lists: %v", err)
			}
		})
	}
}
