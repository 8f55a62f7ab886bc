package fsm

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"
)

// FuzzUnmarshalCommand: no input panics, and what is read can be written and read again.
func FuzzUnmarshalCommand(f *testing.F) {
	for _, op := range seedOps() {
		f.Add(encode(f, Command{Actor: "token:a", Key: "k", Op: op}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := UnmarshalCommand(data)
		if err != nil {
			var refused *Error
			var unsupported *UnsupportedError
			if !errors.As(err, &refused) && !errors.As(err, &unsupported) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		again, err := MarshalCommand(c)
		if err != nil {
			var refused *Error
			if b, ok := c.Op.(Batch); ok && len(b.Ops) == 0 && errors.As(err, &refused) {
				return // Apply refuses it as well
			}
			t.Fatalf("%+v can't be written: %v", c, err)
		}
		if _, err := UnmarshalCommand(again); err != nil {
			t.Fatalf("%+v can't be read again: %v", c, err)
		}
	})
}

// FuzzApply: no log panics a store, and its replica in other batches, restored on the way, is equal.
// The input is a list of entries, each with one byte of length in front.
func FuzzApply(f *testing.F) {
	var all []byte
	for _, op := range seedOps() {
		entry := encode(f, Command{Actor: "token:a", Key: "k", Op: op})
		if len(entry) > 255 {
			f.Fatalf("seed of %d bytes", len(entry))
		}
		all = append(append(all, byte(len(entry))), entry...)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, data []byte) {
		var entries []Entry
		for len(data) > 0 {
			n := min(int(data[0]), len(data)-1)
			entries = append(entries, Entry{uint64(len(entries) + 1), data[1 : 1+n]})
			data = data[1+n:]
		}
		small := limits{results: 3, over: 2, events: 5}
		single, batched := newStore(small), newStore(small)
		var halt error
		for _, e := range entries {
			if _, halt = single.ApplyBatch([]Entry{e}); halt != nil {
				break
			}
		}
		half := len(entries) / 2
		_, err := batched.ApplyBatch(entries[:half])
		if err == nil {
			copied := newStore(small)
			if err := copied.Restore(bytes.NewReader(snapshot(t, batched.View()))); err != nil {
				t.Fatal(err)
			}
			batched = copied
			_, err = batched.ApplyBatch(entries[half:])
		}
		if (halt == nil) != (err == nil) || single.View().Hash() != batched.View().Hash() {
			t.Fatalf("one by one %v, in batches %v", halt, err)
		}
		if v := single.View(); recomputed(v) != v.sum {
			t.Fatal("the kept hash is not that of the objects")
		}
	})
}

// FuzzRestore: no input panics or is taken for a snapshot unless it is one, byte by byte.
func FuzzRestore(f *testing.F) {
	f.Add(snapshot(f, NewStore().View()))
	f.Add(snapshot(f, sample(f).View()))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := NewStore()
		before := s.View()
		if err := s.Restore(bytes.NewReader(data)); err != nil {
			if s.View() != before {
				t.Fatal("a failed restore changed the state")
			}
			return
		}
		v := s.View()
		if recomputed(v) != v.sum {
			t.Fatal("the hash is not that of the objects")
		}
		for vm := range v.VMs("") {
			v.Holding(vm)
		}
		v.GuardedPrefixes()
	})
}

func seedOps() []Op {
	return []Op{
		PutNode{Node{ID: "n1", Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}, MACs: []MAC{{2}}}},
		DeclareVM{ID: "v1", Name: "web", Owner: "c7"},
		running("v1", "n1", 1, "203.0.113.5"),
		onVM("web"), onPrefix("198.51.100.0/24"), onPrefix("2001:db8:1::/48"),
		LiftBlock{ID: "b1", IfRevision: 4}, PutGuard{Prefix: prefix("203.0.113.0/24"), Note: "office"},
		DeleteGuard{Prefix: prefix("203.0.113.0/24")},
		Batch{Ops: []Op{onVM("v1"), LiftBlock{ID: "b3"}}},
		forming(), creating("t1", "n2"), admitting("t1", "n2"), RenewNode{ID: "n2", Using: 13, KeyHash: [32]byte{9}},
		ConfirmNode{ID: "n2", Serial: 14}, StartCA{nextCA("c2")}, FinishCA{"c1"},
		AddGossipKey{GossipKey{ID: "g2", SealedKey: []byte{1}}}, UseGossipKey{"g2"}, RemoveGossipKey{"g1"}, DeleteJoinToken{"t1"},
		DrainNode{ID: "n2"}, RetireNode{ID: "n2", Force: true}, BeginEpoch{Fleet: "f1", Epoch: 2, How: EpochRestored, Node: "n1", Retire: []string{"n3"}}, SettleEpoch{2},
		CreateToken{Name: "ci", Scope: ScopeAdmin, Hash: [32]byte{1}},
		PutUser{Name: "ann", Scope: ScopeViewer, Password: testPassword},
		CreateSession{ID: "s1", Hash: [32]byte{2}, User: "oidc:eve", Scope: ScopeBilling, ExpiresAt: time.Unix(1_000, 0), Idle: time.Minute},
		EndSessions{User: "oidc:eve"}, DeleteToken{Name: "ci"}, TouchSession{ID: "s1"}, DeleteUser{Name: "ann"},
		RefusedLogins{Total: 2, Logins: []RefusedLogin{{"ann", "192.0.2.1", 2}}},
		ReportIncident{Incident{Node: "n1", Code: "kernel_drift", Severity: Critical, Text: "flushed", At: time.Unix(9, 0), Lasted: time.Millisecond, Times: 1}},
	}
}
