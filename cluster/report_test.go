package cluster

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

func TestReportsSurviveTheWire(t *testing.T) {
	want := fsm.Report{
		Node: "n1", At: time.Unix(1_700_000_000, 5), Applied: 7, Enforced: 5, EnforcedBlocks: 6, Hash: "ab", Version: "v1", Problem: "p", Warning: "w",
		Blocks: map[string]fsm.BlockReport{"b1": {Enforced: true, Index: 6, At: time.Unix(1_700_000_001, 0), Packets: 3, Bytes: 400, Open: "no"}},
		Explained: &fsm.Explanation{Verdict: fsm.VerdictLimit, Why: "w", Guards: []string{"g"}, Holds: []fsm.ExplainedHold{{
			Block: "b1", Kind: fsm.Limit, Direction: fsm.In, By: "x", Treats: true, Started: true, Since: time.Unix(1_700_000_002, 0), Packets: 1, Bytes: 2,
		}}},
		Problems:    []fsm.Problem{{Code: "c", Severity: fsm.Critical, Since: time.Unix(1_700_000_003, 0), Text: "t"}, {Code: "d", Severity: fsm.Warning}},
		ClockOffset: -3 * time.Second, ClockKnown: true,
		Drops: &fsm.Drops{Step: 10 * time.Second, End: time.Unix(1_700_000_010, 0), Steps: 2, Series: []fsm.DropSeries{
			{Reason: "abuse", Packets: []uint64{0, 3}, Bytes: []uint64{0, 400}}, {Block: "b1", Packets: []uint64{1, 2}, Bytes: []uint64{3, 4}},
		}},
		Sources: map[string]fsm.SourceStatus{"drop": {CheckedAt: time.Unix(1_700_000_003, 0), Error: "404"}},
		Audit:   [][]byte{[]byte(`{"seq":1}`), []byte(`{"seq":2}`)},
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

func TestDropsQueriesSurviveTheWire(t *testing.T) {
	for _, want := range []*fsm.DropsQuery{nil, {}, {Coarse: true}, {Blocks: []string{"b1", "b2"}}} {
		if diff := cmp.Diff(want, decodeDropsQuery(encodeDropsQuery(want))); diff != "" {
			t.Error(diff)
		}
	}
}

func TestPacketsSurviveTheWire(t *testing.T) {
	for _, want := range []*fsm.Packet{
		nil,
		{Dst: netip.MustParseAddr("2001:db8::1"), Protocol: 58},
		{Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2"), Protocol: 6, SrcPort: 65535, DstPort: 80},
	} {
		if got := decodePacket(encodePacket(want)); (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("%+v came as %+v", want, got)
		}
	}
}
