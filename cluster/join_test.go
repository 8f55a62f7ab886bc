package cluster

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// formed is a fleet that Form has made, with its first node running.
func formed(t *testing.T) (*fleet, string) {
	t.Helper()
	base := diskDir(t)
	f := &fleet{t: t, voters: 1}
	p := Peer{ID: "n1", Address: freePort(f.t), Gossip: freePort(f.t)}
	got, err := Form(FormOptions{
		DataDir: filepath.Join(base, p.ID), Actor: "unix:0", Node: p.ID, Address: p.Address, Gossip: p.Gossip,
		Commands: []fsm.Op{fsm.DeclareVM{ID: "first", Name: "first", Owner: "init"}}, Logger: logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	n := f.add(p, base).start()
	t.Cleanup(f.stop)
	f.ready()
	view := n.store.View()
	fl, ok := view.Fleet()
	if !ok || fl.ID != got.Fleet || got.Authority != fl.CAs[0].ID || owner(n.store, "first") != "init" {
		t.Fatalf("formed %+v, the state has %+v", got, fl)
	}
	if m, ok := view.Node("n1"); !ok || m.Address != p.Address || m.Serial != fsm.FirstSerial {
		t.Fatalf("the first node: %+v", m)
	}
	return f, base
}

// token makes a join token.
func (f *fleet) token(tune ...func(*fsm.CreateJoinToken)) pki.JoinToken {
	f.t.Helper()
	token, err := pki.NewJoinToken(pki.KeyHash(f.leader().c.dir.now().trusted[0]))
	if err != nil {
		f.t.Fatal(err)
	}
	op := fsm.CreateJoinToken{ID: token.ID(), Hash: token.SecretHash(), TTL: time.Hour}
	for _, change := range tune {
		change(&op)
	}
	f.leader().propose(fsm.Command{Actor: "test", Op: op})
	return token
}

func (f *fleet) joinOptions(base, id string, by *node, token pki.JoinToken) JoinOptions {
	return JoinOptions{
		DataDir: filepath.Join(base, id), Remote: by.c.dir.now().all[by.id].Address, Token: token, Node: id,
		Address: freePort(f.t), Gossip: freePort(f.t),
	}
}

// grow lets a node join through another, and starts it.
func (f *fleet) grow(base, id string, by *node) *node {
	f.t.Helper()
	o := f.joinOptions(base, id, by, f.token())
	got, err := Join(within(f.t, 30*time.Second), o)
	if err != nil {
		f.t.Fatalf("%s joins: %v", id, err)
	}
	if got.Node != id || got.Peers != len(f.nodes)+1 || got.Index == 0 || time.Until(got.NotAfter) < 80*24*time.Hour {
		f.t.Errorf("%s joined: %+v", id, got)
	}
	n := f.add(Peer{ID: id, Address: o.Address, Gossip: o.Gossip}, base).start()
	f.voters = odd(min(len(f.nodes), fsm.DefaultVoters))
	return n
}

func TestFleetGrowsByJoining(t *testing.T) {
	t.Parallel()
	f, base := formed(t)
	f.grow(base, "n2", f.nodes[0])
	f.ready()
	f.grow(base, "n3", f.nodes[1]) // through one that does not lead
	f.ready()
	res := f.nodes[2].propose(declare("vm", "three"))
	f.agree(res.Index)
	f.await("everybody alive by gossip", func() bool {
		for _, n := range f.nodes {
			for _, m := range n.c.Members() {
				if !m.Alive {
					return false
				}
			}
		}
		return true
	})
	// All of them from their own disks, the first one last.
	for _, n := range f.nodes {
		n.crash()
	}
	f.nodes[2].start()
	f.nodes[1].start()
	f.leader().propose(declare("vm", "four"))
	f.nodes[0].start()
	f.ready()
}

func TestJoinIsRefused(t *testing.T) {
	t.Parallel()
	f, base := formed(t)
	n1 := f.nodes[0]
	other, _ := formed(t)
	join := func(id string, token pki.JoinToken) (Joined, error) {
		o := f.joinOptions(base, id, n1, token)
		o.DataDir = filepath.Join(base, "data of "+filepath.Base("/"+id))
		return Join(within(t, 30*time.Second), o)
	}
	refusal := func(err error) fsm.Code {
		if e, ok := errors.AsType[*fsm.Error](err); ok {
			return e.Code
		}
		return ""
	}
	unknown, err := pki.NewJoinToken(f.token().Pin())
	if err != nil {
		t.Fatal(err)
	}
	used := f.token()
	if _, err := join("user", used); err != nil {
		t.Fatal(err)
	}
	short := f.token(func(op *fsm.CreateJoinToken) { op.TTL = time.Nanosecond })
	bound := f.token(func(op *fsm.CreateJoinToken) { op.Node = "n7" })
	index := n1.store.View().Index()
	for name, c := range map[string]struct {
		id    string
		token pki.JoinToken
		want  fsm.Code
	}{
		"unknown":           {"n2", unknown, fsm.CodeTokenUnknown},
		"used":              {"n2", used, fsm.CodeTokenUsed},
		"expired":           {"n2", short, fsm.CodeTokenExpired},
		"for another node":  {"n2", bound, fsm.CodeTokenBound},
		"an id that exists": {"n1", f.token(), fsm.CodeNodeExists},
		"no id":             {"", f.token(), fsm.CodeInvalid},
		"control character": {"n\x1b[2J", f.token(), fsm.CodeInvalid},
	} {
		if _, err := join(c.id, c.token); refusal(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if grew := n1.store.View().Index() - index; grew != 3 { // the tokens made in between
		t.Errorf("refused nodes have put %d entries into the log", int(grew)-3)
	}
	_, err = join("n2", other.token())
	if !errors.Is(err, ErrOtherFleet) {
		t.Errorf("another fleet's token: %v", err)
	}
	// What was refused has left no identity.
	if _, err := LoadIdentity(filepath.Join(base, "data of n2")); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("after refusals: %v", err)
	}
	// An address that another node has.
	o := f.joinOptions(base, "n2", n1, f.token())
	o.Address = o.Remote
	if _, err := Join(within(t, 30*time.Second), o); refusal(err) != fsm.CodeConflict {
		t.Errorf("the address of another node: %v", err)
	}
	if _, err := Join(within(t, 30*time.Second), f.joinOptions(base, "data of user", n1, f.token())); !errors.Is(err, ErrHasIdentity) {
		t.Errorf("a second time: %v", err)
	}
	o = f.joinOptions(base, "n2", n1, f.token())
	n1.crash()
	if _, err := Join(within(t, 30*time.Second), o); err == nil {
		t.Error("nobody there, and joined")
	}
}

// TestLostAnswerIsAskedForAgain: the node was admitted, the answer did not get through, and the same command works.
func TestLostAnswerIsAskedForAgain(t *testing.T) {
	t.Parallel()
	f, base := formed(t)
	token := f.token()
	o := f.joinOptions(base, "n2", f.nodes[0], token)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	direct, store := o.Remote, f.nodes[0].store
	go func() { // passes on what the node says, and only the handshake of what it is answered
		in, err := ln.Accept()
		if err != nil {
			return
		}
		defer in.Close()
		out, err := net.Dial("tcp", direct)
		if err != nil {
			return
		}
		defer out.Close()
		go func() { _, _ = io.Copy(out, in) }()
		head := make([]byte, 64<<10)
		n, _ := out.Read(head) // ServerHello and certificates
		_, _ = in.Write(head[:n])
		for w := store.Watch(0); ; { // the answer is on its way once it is admitted
			view, _, err := w.Next(t.Context())
			if err != nil && !errors.Is(err, fsm.ErrCompacted) {
				return
			}
			if _, ok := view.Node("n2"); ok {
				return
			}
		}
	}()
	o.Remote = ln.Addr().String()
	if _, err := Join(within(t, 30*time.Second), o); err == nil || !strings.Contains(err.Error(), "the same command again is safe") {
		t.Fatalf("the answer was lost: %v", err)
	}
	o.Remote = direct
	// One serial is one certificate: when it ends was decided when the node was admitted.
	ends := func() time.Time { n, _ := store.View().Node("n2"); return n.NotAfter }
	for began := time.Now(); time.Since(began) < 1100*time.Millisecond; { // certificates count in seconds
		time.Sleep(10 * time.Millisecond)
	}
	got, err := Join(within(t, 30*time.Second), o)
	if err != nil || got.Node != "n2" || !got.NotAfter.Equal(ends()) {
		t.Fatalf("again: %+v, %v; the state says until %s", got, err, ends())
	}
	// Another key is another node.
	o.DataDir = filepath.Join(base, "thief")
	if _, err := Join(within(t, 30*time.Second), o); err == nil {
		t.Error("a used token has admitted another key")
	}
	f.add(Peer{ID: "n2", Address: o.Address, Gossip: o.Gossip}, base).start()
	f.ready()
	// Once the node has renewed, the token gives its key nothing any more.
	if err := f.nodes[1].c.Renew(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(base, "n2", identityDir, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	o.DataDir = filepath.Join(base, "copy")
	if err := errors.Join(os.MkdirAll(filepath.Join(o.DataDir, identityDir), 0o700), os.WriteFile(filepath.Join(o.DataDir, identityDir, keyFile), key, 0o600)); err != nil {
		t.Fatal(err)
	}
	var refused *fsm.Error
	if _, err := Join(within(t, 30*time.Second), o); !errors.As(err, &refused) || refused.Code != fsm.CodeTokenUsed || !strings.Contains(refused.Detail, "newer certificate") {
		t.Errorf("a used token and the node's key got a certificate: %v", err)
	}
}

// TestWhoIsAdmittedAgainIsNoCopy: what the answer to its joining gave a node is lost when it has run already. It gets it again,
// and is not taken for a copy of its earlier life, though the state has not heard of that yet.
func TestWhoIsAdmittedAgainIsNoCopy(t *testing.T) {
	t.Parallel()
	f, base := formed(t)
	o := f.joinOptions(base, "n2", f.nodes[0], f.token())
	if _, err := Join(within(t, 30*time.Second), o); err != nil {
		t.Fatal(err)
	}
	n := f.add(Peer{ID: "n2", Address: o.Address, Gossip: o.Gossip}, base).start()
	f.ready()
	n.crash()
	for _, name := range []string{fleetFile, chainFile, rosterFile} {
		if err := os.Remove(filepath.Join(base, "n2", identityDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if m, _ := f.nodes[0].store.View().Node("n2"); m.Generation != 0 {
		t.Fatalf("the state knows of start %d: this tests nothing", m.Generation)
	}
	if _, err := Join(within(t, 30*time.Second), o); err != nil {
		t.Fatal(err)
	}
	n.start()
	f.ready().agree(n.propose(declare("vm", "two")).Index)
}

// TestAMemberComesBackWithItsKey: a node was away until its certificate ended. It starts, is refused by its peers, and gets a new certificate by a
// token that is for it alone, for the key that it has; its agent goes on with it. Nobody else gets one by that token.
func TestAMemberComesBackWithItsKey(t *testing.T) {
	f, base := formed(t)
	f.grow(base, "n2", f.nodes[0])
	f.ready()
	o := f.joinOptions(base, "n3", f.nodes[1], f.token())
	if _, err := Join(within(t, 30*time.Second), o); err != nil {
		t.Fatal(err)
	}
	f.expire(o.DataDir)
	n3 := f.add(Peer{ID: "n3", Address: o.Address, Gossip: o.Gossip}, base).start()
	if refused, ok := errors.AsType[*RefusedError](n3.outcome()); !ok || !strings.Contains(refused.Why, `"palisade join-token create --node n3 --again"`) {
		t.Fatalf("a node whose certificate has ended: %+v", refused)
	}
	fleetJSON := filepath.Join(o.DataDir, identityDir, fleetFile)
	was, err := os.ReadFile(fleetJSON)
	if err != nil {
		t.Fatal(err)
	}
	member, _ := f.leader().store.View().Node("n3")

	again := func(op *fsm.CreateJoinToken) { op.Node, op.Again = op.Node+"n3", true }
	other, _ := formed(t)
	foreign := other.token()
	before := other.leader().store.View().Index()
	stolen := o
	stolen.DataDir = filepath.Join(base, "thief")
	for name, c := range map[string]struct {
		o     JoinOptions
		token pki.JoinToken
		code  fsm.Code
		say   string
	}{
		"a token for new nodes":      {o, f.token(), fsm.CodeNodeExists, "--again"},
		"a token for another member": {o, f.token(func(op *fsm.CreateJoinToken) { op.Node, op.Again = "n2", true }), fsm.CodeTokenBound, "for node n2 only"},
		"another machine":            {stolen, f.token(again), fsm.CodeConflict, "does not have the key of node n3"},
		"another fleet's token":      {o, foreign, "", "of another fleet"},
		"at another fleet's address": {func() JoinOptions { o := o; o.Remote = other.nodes[0].c.dir.now().all["n1"].Address; return o }(), foreign, "", "this node is of the fleet"},
		"as another node":            {func() JoinOptions { o := o; o.Node = "n4"; return o }(), f.token(), "", `holds the identity of node "n3"`},
	} {
		c.o.Token = c.token
		_, err := Join(within(t, 30*time.Second), c.o)
		var refused *fsm.Error
		if errors.As(err, &refused) && refused.Code != c.code || c.code != "" && refused == nil || err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if index := other.leader().store.View().Index(); index != before {
		t.Errorf("the other fleet's log has grown from %d to %d", before, index)
	}

	o.Token = f.token(again)
	got, err := Join(within(t, 30*time.Second), o)
	if err != nil || !got.Again || got.Node != "n3" || time.Until(got.NotAfter) < 80*24*time.Hour {
		t.Fatalf("came back: %+v, %v", got, err)
	}
	if is, err := os.ReadFile(fleetJSON); err != nil || !bytes.Equal(is, was) {
		t.Errorf("what the node knows of itself was changed from %s to %s, %v", was, is, err)
	}
	f.voters = 3
	n3.start()
	f.ready()
	res := n3.propose(declare("vm", "back"))
	f.agree(res.Index)
	is, _ := f.leader().store.View().Node("n3")
	if is.Serial <= member.Serial || is.KeyHash != member.KeyHash || !is.JoinedAt.Equal(member.JoinedAt) {
		t.Errorf("was %+v, is %+v", member.Membership, is.Membership)
	}
	o.Token = f.token(again)
	if _, err := Join(within(t, 30*time.Second), o); !errors.Is(err, ErrHasIdentity) || !strings.Contains(err.Error(), "renews itself") {
		t.Errorf("with a certificate that is good: %v", err)
	}
}

// TestARunningNodeTakesItsNewCertificate: its agent need not be started again after "palisade join", but becomes nobody else.
func TestARunningNodeTakesItsNewCertificate(t *testing.T) {
	f, base := formed(t)
	f.grow(base, "n2", f.nodes[0])
	f.ready()
	n2, dir := f.nodes[1], filepath.Join(base, "n2")
	if changed, err := n2.c.Reload(); changed || err != nil {
		t.Fatalf("nothing is new on the disk: %v, %v", changed, err)
	}
	was := n2.c.Certificate()
	f.sign(dir, "n2", was.Serial+1, time.Now())
	if changed, err := n2.c.Reload(); !changed || err != nil || n2.c.Certificate().Serial != was.Serial+1 {
		t.Errorf("took %+v, %v", n2.c.Certificate(), err)
	}
	f.sign(dir, "n9", was.Serial+2, time.Now())
	if changed, err := n2.c.Reload(); changed || err == nil || n2.c.Certificate().Node != "n2" {
		t.Errorf("became %+v, %v", n2.c.Certificate(), err)
	}
}

// expire puts a certificate that has ended in the place of a node's own.
func (f *fleet) expire(dataDir string) {
	f.t.Helper()
	c, err := loadCredentials(filepath.Join(dataDir, identityDir))
	if err != nil {
		f.t.Fatal(err)
	}
	f.sign(dataDir, c.member.Node, c.member.Serial, time.Now().Add(-2*time.Hour))
}

// sign puts a certificate of an hour over a node's key on its disk.
func (f *fleet) sign(dataDir, node string, serial uint64, at time.Time) {
	f.t.Helper()
	dir := filepath.Join(dataDir, identityDir)
	c, err := loadCredentials(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	request, err := pki.Request(c.key)
	if err != nil {
		f.t.Fatal(err)
	}
	leader := f.leader().c
	a, _, err := leader.authority(leader.store.View())
	if err != nil {
		f.t.Fatal(err)
	}
	leaf, err := a.IssueNode(request, pki.NodeTerms{Fleet: c.member.Fleet, Node: node, Serial: serial, Lifetime: time.Hour}, at)
	if err != nil {
		f.t.Fatal(err)
	}
	if c, err = newCredentials(c.key, a.Chain(leaf)); err == nil {
		err = c.save(dir)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func TestFormLeavesNothingHalf(t *testing.T) {
	dir := filepath.Join(diskDir(t), "data")
	o := FormOptions{
		DataDir: dir, Actor: "unix:0", Node: "n1", Address: "192.0.2.1:7420", Gossip: "192.0.2.1:7421", Logger: logger(t),
		Commands: []fsm.Op{fsm.LiftBlock{ID: "b9"}},
	}
	if _, err := Form(o); err == nil || !strings.Contains(err.Error(), "b9") {
		t.Errorf("a first command that is refused: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("a failed Form left %v, %v", left, err)
	}
	o.Commands = nil
	if _, err := Form(o); err != nil {
		t.Fatal(err)
	}
	if _, err := Form(o); !errors.Is(err, ErrHasIdentity) {
		t.Errorf("a second time: %v", err)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil && (!d.IsDir() || filepath.Dir(path) == dir) && st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s can be read by others: %s", path, st.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// A store without its identity is never formed over.
	if err := os.RemoveAll(filepath.Join(dir, identityDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := Form(o); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("over a store: %v", err)
	}
}

// door connects to the door as anybody may.
func door(t *testing.T, n *node) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", n.c.dir.now().all[n.id].Address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpnJoin}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestDoorIsBounded: strangers get no more than a short answer to a short question.
func TestDoorIsBounded(t *testing.T) {
	t.Parallel()
	f, base := formed(t)
	n := f.nodes[0]
	closed := func(conn net.Conn, within time.Duration) []byte {
		_ = conn.SetReadDeadline(time.Now().Add(within))
		got, err := io.ReadAll(conn)
		if isTimeout(err) {
			t.Errorf("the connection was still open after %s", within)
		}
		return got
	}
	send := func(b []byte) []byte {
		conn := door(t, n)
		_, _ = conn.Write(b)
		return closed(conn, 3*time.Second)
	}
	for name, b := range map[string][]byte{
		"a huge message":  binary.BigEndian.AppendUint32(nil, 1<<31),
		"just too long":   binary.BigEndian.AppendUint32(nil, maxAdmitRequest+1),
		"no message":      append(binary.BigEndian.AppendUint32(nil, 3), 0xff, 0xff, 0xff),
		"an HTTP request": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	} {
		if got := send(b); len(got) > 0 {
			t.Errorf("%s was answered %q", name, got)
		}
	}
	empty, err := proto.Marshal(&peerpb.AdmitRequest{Request: bytes.Repeat([]byte{0x30}, 8<<10), Node: strings.Repeat("n", 4<<10)})
	if err != nil {
		t.Fatal(err)
	}
	if got := send(append(binary.BigEndian.AppendUint32(nil, uint32(len(empty))), empty...)); len(got) == 0 || len(got) > 4<<10 {
		t.Errorf("a request of nonsense was answered with %d bytes", len(got))
	}
	// Those who say nothing are few at once, and are sent away; the fleet's own connections don't notice.
	var silent []*tls.Conn
	for range maxDoor + 3 {
		silent = append(silent, door(t, n))
	}
	n.propose(declare("vm", "one"))
	for _, conn := range silent {
		closed(conn, doorReadTime+2*time.Second)
	}
	// Nor does one that speaks slowly get longer.
	slow := door(t, n)
	go func() {
		for _, b := range binary.BigEndian.AppendUint32(nil, 1000) {
			if _, err := slow.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}()
	closed(slow, doorReadTime+2*time.Second)
	// After all that a node joins.
	f.grow(base, "n2", n)
	f.ready()
	// Without a certificate there is nothing but the door.
	for _, proto := range []string{alpnRPC, alpnRaft} {
		conn, err := tls.Dial("tcp", n.c.dir.now().all[n.id].Address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}})
		if err != nil {
			continue
		}
		_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
		if got, err := io.ReadAll(conn); err == nil || isTimeout(err) || len(got) > 0 {
			t.Errorf("%s without a certificate: %q, %v", proto, got, err)
		}
		_ = conn.Close()
	}
}
