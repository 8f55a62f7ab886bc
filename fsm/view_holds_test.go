package fsm

import (
	"net/netip"
	"testing"
)

func TestHoldCountsCountsWhatHoldingSays(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, running("v1", "n1", 1, "203.0.113.5", "203.0.113.6", "2001:db8::5"))
	log.ok(t, DeclareVM{ID: "v2", Owner: "a", Addresses: []netip.Prefix{prefix("198.51.100.0/26")}})
	log.ok(t, DeclareVM{ID: "v3", Owner: "a"})
	log.ok(t, DeclareVM{ID: "v4"})
	log.upload(t, "feed", "203.0.113.0/24", "198.51.100.32/28")
	for _, op := range []Op{
		AddBlock{Target: Target{List: "feed"}}, AddBlock{Target: Target{Account: "a"}}, onVM("v1"), onVM("v3"), onPrefix("203.0.113.0/24"),
		onPrefix("198.51.100.9/32"), onPrefix("198.51.100.10/32"), onPrefix("192.0.2.0/24"), onVM("v4"),
	} {
		log.ok(t, op)
	}
	log.ok(t, LiftBlock{ID: "b9"})
	v := s.View()
	counts := v.HoldCounts()
	for vm := range v.VMs("") {
		if got, want := counts[vm.ID], len(v.Holding(vm)); got != want {
			t.Errorf("%s is held by %d blocks, not %d", vm.ID, want, got)
		}
	}
	if len(counts) != 3 || counts["v1"] != 3 || counts["v2"] != 4 || counts["v3"] != 2 {
		t.Errorf("counts %v", counts)
	}
}
