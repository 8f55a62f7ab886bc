package fsm

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

// Every op is written in the lowest format that can apply it, and in none that this build can't.
func TestFormatOfEveryOp(t *testing.T) {
	for _, op := range sampleOps() {
		b, err := MarshalCommand(Command{Op: op})
		if err != nil {
			t.Errorf("%T: %v", op, err)
			continue
		}
		var m fsmpb.Command
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		if m.Version != FormatOf(op) || m.Version < 1 || m.Version > Format {
			t.Errorf("%T is written in format %d, its format is %d, this build's %d", op, m.Version, FormatOf(op), Format)
		}
	}
}

func sampleOps() []Op {
	return []Op{AddBlock{Target: Target{VM: "v"}}, LiftBlock{ID: "b1"}, PutSettings{Settings: Settings{MaxVMs: 3}}, PutNode{Node{ID: "n1"}},
		Batch{Ops: []Op{LiftBlock{ID: "b1"}, LiftBlock{ID: "b2"}}}}
}

// What the log has needed is kept, also in a snapshot: a build that reads less must not go on from either.
func TestFormatOfTheLog(t *testing.T) {
	s := sample(t)
	if f := s.View().Format(); f != 1 {
		t.Fatalf("the format is %d", f)
	}
	v := *s.View()
	v.format = Format + 1
	var image bytes.Buffer
	if err := v.WriteSnapshot(&image); err != nil {
		t.Fatal(err)
	}
	var unsupported *UnsupportedError
	if err := NewStore().Restore(&image); !errors.As(err, &unsupported) || unsupported.Version != Format+1 {
		t.Errorf("a snapshot with what newer commands made: %v", err)
	}
}

// Nodes that do not read an op are named, and those that never told count as old.
func TestReadableNamesWhoIsBehind(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, PutNode{Node{ID: "old", Version: "v0.9", Format: 1}})
	log.ok(t, PutNode{Node{ID: "mute"}})
	log.ok(t, PutNode{Node{ID: "new", Format: 7}})
	v := s.View()
	if refused := v.Readable(LiftBlock{ID: "b1"}); refused != nil {
		t.Errorf("what all read: %v", refused)
	}
	refused := v.readable(7)
	if refused == nil || refused.Code != CodeUpgrade {
		t.Fatalf("refused with %v", refused)
	}
	for _, want := range []string{"format 7", "old (reads 1, version v0.9)", "mute (reads 1)"} {
		if !strings.Contains(refused.Detail, want) {
			t.Errorf("%q does not say %q", refused.Detail, want)
		}
	}
	if strings.Contains(refused.Detail, "new") {
		t.Errorf("%q names a node that reads it", refused.Detail)
	}
	log.ok(t, PutNode{Node{ID: "old", Version: "v1", Format: 7}})
	log.ok(t, PutNode{Node{ID: "mute", Format: 8}})
	if refused := s.View().readable(7); refused != nil {
		t.Errorf("all are upgraded: %v", refused)
	}
	nodes := slices.Collect(s.View().Nodes())
	if nodes[2].Format != 7 {
		t.Errorf("the last node is %+v", nodes[2])
	}
}
