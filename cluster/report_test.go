package cluster

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

func TestReportsSurviveTheWire(t *testing.T) {
	want := fsm.Report{
		Node: "n1", At: time.Unix(1_700_000_000, 5), Applied: 7, Enforced: 6, Hash: "ab", Version: "v1", Problem: "p", Warning: "w",
		Blocks: map[string]fsm.BlockReport{"b1": {Enforced: true, Index: 6, At: time.Unix(1_700_000_001, 0), Packets: 3, Bytes: 400}},
		Audit:  [][]byte{[]byte(`{"seq":1}`), []byte(`{"seq":2}`)},
	}
	data, err := proto.Marshal(encodeReport(want))
	if err != nil {
		t.Fatal(err)
	}
	var m peerpb.AskResponse
	if err := proto.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, decodeReport(&m)); diff != "" {
		t.Error(diff)
	}
}
