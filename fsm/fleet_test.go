package fsm

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"time"
)

// formed is a log whose first entry formed a fleet with node n1.
func formed(tb testing.TB) (*Store, *log) {
	tb.Helper()
	s := NewStore()
	l := newLog(s)
	l.ok(tb, forming())
	return s, l
}

func TestEveryRefusedJoinSaysWhatToDo(t *testing.T) {
	s, l := formed(t)
	l.ok(t, creating("t1", ""))
	l.ok(t, creating("t2", "n2"))
	l.ok(t, creating("t3", ""))
	zoned := creating("t4", "")
	zoned.Zone = "z1"
	l.ok(t, zoned)
	wrong := admitting("t1", "n2")
	wrong.Hash[0]++
	l.refusedSaying(t, wrong, CodeTokenUnknown, "token", "palisade join-token create")
	l.refusedSaying(t, admitting("t9", "n2"), CodeTokenUnknown, "token", "another fleet")
	l.refusedSaying(t, admitting("t2", "n3"), CodeTokenBound, "node.id", "for node n2 only")
	elsewhere := admitting("t4", "n4")
	elsewhere.Node.Zone = "z2"
	l.refusedSaying(t, elsewhere, CodeTokenBound, "node.zone", `zone "z1"`)
	l.refusedSaying(t, admitting("t1", "n1"), CodeNodeExists, "node.id", "is a member")
	copied := admitting("t1", "n2")
	copied.Node.KeyHash = admission("n1").KeyHash
	l.refusedSaying(t, copied, CodeConflict, "node.key_hash", "was copied")
	same := admitting("t1", "n2")
	same.Node.Address = admission("n1").Address
	l.refusedSaying(t, same, CodeConflict, "node.address", "retire it if it is gone")
	for _, address := range []string{"", "n2", "0.0.0.0:7701", "[::]:7701", "192.0.2.1:0", "192.0.2.1:99999", "a b:1", ":7701"} {
		op := admitting("t1", "n2")
		op.Node.Address = address
		l.refused(t, op, CodeInvalid, "node.address")
	}

	first := l.ok(t, admitting("t1", "n2"))
	if first.Node.Serial != first.Index || first.Node.Confirmed != first.Index || first.Node.State != NodeActive || first.Node.JoinedAt.IsZero() {
		t.Errorf("admitted as %+v", first.Node.Membership)
	}
	again := l.ok(t, admitting("t1", "n2"))
	if !equalNodes(again.Node, first.Node) {
		t.Errorf("a lost answer asked for again is %+v", again.Node)
	}
	other := admitting("t1", "n2")
	other.Node.KeyHash = [32]byte{99}
	l.refusedSaying(t, other, CodeTokenUsed, "token", "used by node n2")
	l.refusedSaying(t, admitting("t1", "n3"), CodeTokenUsed, "token", "join-token create")
	if n := l.ok(t, admitting("t4", "n4")).Node; n.Zone != "z1" {
		t.Errorf("zone is %q", n.Zone)
	}

	l.time = l.time.Add(15 * time.Minute)
	l.refusedSaying(t, admitting("t3", "n3"), CodeTokenExpired, "token", "the leader's clock says")
	if refused := s.View().CheckAdmission(admitting("t3", "n3"), l.time); refused == nil || refused.Code != CodeTokenExpired {
		t.Errorf("asked first: %v", refused)
	}
	l.ok(t, admitting("t1", "n2")) // a lost answer, also after the end
	if refused := s.View().CheckAdmission(admitting("t1", "n2"), again.Node.NotAfter); refused == nil || !strings.Contains(refused.Detail, "never came") {
		t.Errorf("a lost answer, after the end of its certificate: %v", refused)
	}
	l.time = l.time.Add(25 * time.Hour)
	l.ok(t, creating("t5", ""))
	if _, known := s.View().JoinToken("t3"); known {
		t.Error("a token that was over for a day was not forgotten")
	}
	if refused := s.View().CheckAdmission(admitting("t5", "n3"), l.time); refused != nil {
		t.Error(refused)
	}
	if refused := s.View().CheckAdmission(admitting("t5", "n3"), l.time.Add(time.Hour)); refused == nil {
		t.Error("the time given is not looked at")
	}
}

func TestBeforeThereIsAFleet(t *testing.T) {
	l := newLog(NewStore())
	l.ok(t, PutNode{Node{ID: "n9"}}) // tests and tools without a fleet
	for _, op := range []Op{creating("t1", ""), admitting("t1", "n2"), StartCA{nextCA("c2")}, AddGossipKey{GossipKey{ID: "g2", SealedKey: []byte{1}}}} {
		l.refusedSaying(t, op, CodeConflict, "", "palisade init")
	}
	l.ok(t, forming())
	l.refused(t, forming(), CodeConflict, "id")
	l.refusedSaying(t, PutNode{Node{ID: "n8"}}, CodeNotFound, "id", "n8")
	l.refused(t, PutNode{Node{ID: "n9", Name: "x"}}, CodeNotFound, "id")
}

// TestALostRenewalLocksNobodyOut: until the node says that it has the new certificate, the old one is accepted.
// TestAMemberComesBack: a node whose certificate has ended gets a new one by a token that is for it alone, if it has its key. It
// stays what it was.
func TestAMemberComesBack(t *testing.T) {
	s, l := formed(t)
	for _, id := range []string{"2", "3"} {
		l.ok(t, creating("t"+id, ""))
		l.ok(t, admitting("t"+id, "n"+id))
	}
	l.ok(t, DrainNode{ID: "n2"})
	returning := func(id, node string) CreateJoinToken {
		op := creating(id, node)
		op.Again = true
		return op
	}
	l.refusedSaying(t, returning("u1", ""), CodeInvalid, "node", "names it")
	zoned := returning("u1", "n2")
	zoned.Zone = "z1"
	l.refusedSaying(t, zoned, CodeInvalid, "zone", "keeps its zone")
	l.refusedSaying(t, returning("u1", "n9"), CodeNotFound, "node", "no node")
	if token := l.ok(t, returning("u1", "n2")).JoinToken; !token.Again {
		t.Errorf("made %+v", token)
	}
	l.ok(t, creating("t4", ""))
	was, _ := s.View().Node("n2")

	l.refusedSaying(t, admitting("t4", "n2"), CodeNodeExists, "node.id", `"palisade join-token create --node n2 --again"`)
	l.refusedSaying(t, admitting("u1", "n3"), CodeTokenBound, "node.id", "for node n2 only")
	thief := admitting("u1", "n2")
	thief.Node.KeyHash = [32]byte{99}
	l.refusedSaying(t, thief, CodeConflict, "node.key_hash", "does not have the key of node n2")
	elsewhere := admitting("u1", "n2")
	elsewhere.Node.Address = admission("n3").Address
	l.refusedSaying(t, elsewhere, CodeConflict, "node.address", "node n3 has the address")

	moved := admitting("u1", "n2")
	moved.Node.Address, moved.Node.Zone, moved.Node.Name = "192.0.2.77:7701", "z9", "other"
	got := l.ok(t, moved)
	want := *was
	want.Serial, want.Revision, want.Address, want.NotAfter = got.Index, got.Index, "192.0.2.77:7701", got.Node.NotAfter
	if !equalNodes(got.Node, &want) || want.State != NodeDrained {
		t.Errorf("came back as %+v, want %+v", got.Node, want)
	}
	if again := l.ok(t, moved); !equalNodes(again.Node, got.Node) {
		t.Errorf("a lost answer asked for again is %+v", again.Node)
	}
	l.refusedSaying(t, thief, CodeTokenUsed, "token", "used by node n2")
	if waiting := s.View().AwaitingCA(); len(waiting) != 0 {
		t.Errorf("waiting for %v", waiting)
	}
	l.ok(t, ConfirmNode{ID: "n2", Serial: got.Node.Serial})

	l.ok(t, returning("u2", "n3"))
	l.ok(t, RetireNode{ID: "n3", Force: true})
	l.refusedSaying(t, admitting("u2", "n3"), CodeNodeRetired, "node.id", "choose another one")
	l.refusedSaying(t, returning("u3", "n3"), CodeNodeRetired, "node", "was retired")
}

func TestALostRenewalLocksNobodyOut(t *testing.T) {
	s, l := formed(t)
	l.ok(t, creating("t1", ""))
	joined := l.ok(t, admitting("t1", "n2")).Node
	lost := l.ok(t, RenewNode{ID: "n2", Using: joined.Serial, KeyHash: [32]byte{7}}).Node
	if lost.Serial <= joined.Serial || lost.Confirmed != joined.Serial {
		t.Fatalf("renewed to %+v", lost.Membership)
	}
	if serial := l.ok(t, StartCA{nextCA("c2")}).Index; serial <= lost.Serial {
		t.Fatal("the rotation has a lower index")
	}
	got := l.ok(t, RenewNode{ID: "n2", Using: joined.Serial, KeyHash: [32]byte{8}}).Node
	if waiting := s.View().AwaitingCA(); len(waiting) != 2 {
		t.Errorf("without a confirmed certificate: %v", waiting)
	}
	l.ok(t, ConfirmNode{ID: "n2", Serial: got.Serial})
	l.refusedSaying(t, RenewNode{ID: "n2", Using: joined.Serial, KeyHash: [32]byte{9}}, CodeStale, "using", "not its newest")
	l.refused(t, ConfirmNode{ID: "n2", Serial: joined.Serial}, CodeStale, "serial")
	l.refused(t, ConfirmNode{ID: "n2", Serial: got.Serial + 1}, CodeStale, "serial")
	l.refusedSaying(t, FinishCA{"c1"}, CodeConflict, "id", "n1")
	l.refusedSaying(t, StartCA{nextCA("c3")}, CodeConflict, "ca", "n1")
	n1 := l.ok(t, RenewNode{ID: "n1", Using: FirstSerial, KeyHash: [32]byte{10}}).Node
	l.ok(t, ConfirmNode{ID: "n1", Serial: n1.Serial})
	l.ok(t, FinishCA{"c1"})
	fleet, _ := s.View().Fleet()
	if current, ok := fleet.CurrentCA(); len(fleet.CAs) != 1 || !ok || current.ID != "c2" {
		t.Errorf("authorities are %+v", fleet.CAs)
	}
}

func TestWhatARotationNeeds(t *testing.T) {
	s, l := formed(t)
	noCross := nextCA("c2")
	noCross.Cross = nil
	l.refused(t, StartCA{noCross}, CodeInvalid, "ca.cross")
	l.ok(t, StartCA{nextCA("c2")})
	fleet, _ := s.View().Fleet()
	if fleet.CAs[0].SealedKey != nil || fleet.CAs[0].State != CATrusted || len(fleet.CAs[1].SealedKey) == 0 {
		t.Errorf("authorities are %+v", fleet.CAs)
	}
	l.refused(t, FinishCA{"c2"}, CodeConflict, "id")
	l.refused(t, RemoveGossipKey{"g1"}, CodeConflict, "id")
	l.ok(t, AddGossipKey{GossipKey{ID: "g2", SealedKey: []byte("x")}})
	l.refused(t, AddGossipKey{GossipKey{ID: "g3", SealedKey: []byte("x")}}, CodeConflict, "key")
	l.ok(t, UseGossipKey{"g2"})
	l.refused(t, UseGossipKey{"g1"}, CodeConflict, "id")
	l.ok(t, RemoveGossipKey{"g1"})
	fleet, _ = s.View().Fleet()
	if len(fleet.GossipKeys) != 1 || fleet.GossipKeys[0].State != GossipKeyPrimary || fleet.GossipKeys[0].ID != "g2" {
		t.Errorf("gossip keys are %+v", fleet.GossipKeys)
	}
	// A key that a node may have which was retired meanwhile is never used.
	l.ok(t, AddGossipKey{GossipKey{ID: "g4", SealedKey: []byte("x")}})
	l.ok(t, creating("t1", ""))
	l.ok(t, admitting("t1", "n2"))
	l.ok(t, RetireNode{ID: "n2", Force: true})
	l.refused(t, UseGossipKey{"g4"}, CodeConflict, "id")
	l.ok(t, RemoveGossipKey{"g4"})
	l.ok(t, AddGossipKey{GossipKey{ID: "g5", SealedKey: []byte("x")}})
	l.ok(t, UseGossipKey{"g5"})
}

// TestANodesReportIsNoAdmission: what the fleet decided about a node can't be changed by what a node says.
func TestANodesReportIsNoAdmission(t *testing.T) {
	s, l := formed(t)
	before, _ := s.View().Node("n1")
	forged := Node{ID: "n1", Name: "one", Membership: Membership{
		Zone: "z", KeyHash: [32]byte{66}, Serial: 1000, Confirmed: 1000, NotAfter: time.Unix(1<<33, 0), State: NodeRetired, Generation: 5,
	}}
	after := l.ok(t, PutNode{forged}).Node
	want := before.Membership
	want.Generation = 5
	if after.Membership != want {
		t.Errorf("got %+v, want %+v", after.Membership, want)
	}
	l.refusedSaying(t, PutNode{Node{ID: "n1", Membership: Membership{Generation: 4}}}, CodeStale, "generation", "copy")
	if n := l.ok(t, PutNode{Node{ID: "n1", Membership: Membership{Address: "198.51.100.9:7701"}}}).Node; n.Address != "198.51.100.9:7701" || n.Gossip != want.Gossip {
		t.Errorf("after it moved: %+v", n.Membership)
	}
	l.refused(t, PutNode{Node{ID: "n1", Membership: Membership{Gossip: "n1:7702"}}}, CodeInvalid, "gossip")
}

// TestSecretsStayInTheState: results, events and the audit have neither what is sealed nor what is hashed.
func TestSecretsStayInTheState(t *testing.T) {
	s := NewStore()
	l := newLog(s)
	form := forming()
	form.CA.SealedKey, form.GossipKey.SealedKey = []byte("CANARY-CA"), []byte("CANARY-GOSSIP")
	token := creating("t1", "")
	copy(token.Hash[:], "CANARY-TOKEN")
	results := []Result{l.ok(t, form), l.ok(t, token)}
	admit := admitting("t1", "n2")
	admit.Hash = token.Hash
	results = append(results, l.ok(t, admit))
	wrong := admitting("t1", "n3")
	copy(wrong.Hash[:], "CANARY-WRONG")
	l.refused(t, wrong, CodeTokenUnknown, "token")
	results = append(results, l.ok(t, DeleteJoinToken{"t1"}))
	var shown bytes.Buffer
	w := newRecordWriter(&shown)
	for i := range results {
		for r := range resultRecords(&remembered{result: results[i]}, forSnapshot) {
			w.record(r)
		}
	}
	for i := range s.View().events {
		w.record(eventRecord(uint64(i), &s.View().events[i]))
	}
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	lines, _ := s.View().AuditSince(0)
	for _, line := range lines {
		shown.Write(line)
	}
	text := shown.String()
	if strings.Contains(text, "CANARY") || strings.Contains(text, hex.EncodeToString([]byte("CANARY"))) {
		t.Errorf("a secret got out: %s", text)
	}
	for _, want := range []string{"fleet.form", "join_token.create", "join_token.use", "node.admit", "join_token.delete", `"outcome":"join_token_unknown"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the audit does not tell of %s", want)
		}
	}
}
