package test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
	"github.com/palisade/palisade/test/rig"
)

// putList puts a list in place through a node and waits until every live kernel has it.
func putList(t *testing.T, c *client.Client, lines ...string) {
	t.Helper()
	r, err := c.PutList(t.Context(), "feed", strings.NewReader(strings.Join(lines, "\n")), client.ListPut{Wait: true})
	if err != nil || len(r.Unconfirmed) > 0 {
		t.Fatalf("put the list: unconfirmed by %v, %v", r.Unconfirmed, err)
	}
}

// silent wants none of what is sent from now on to arrive.
func silent(f *rig.Flows, flows []*probe.Flow) {
	since := time.Now()
	rest(400 * time.Millisecond)
	f.Silent(flows, since)
}

// TestAListCutsItsPrefixesOnEveryNode holds a list that names a guest, replaces and patches it, and kills an
// agent: what is on the list never passes, what is not never loses a packet, nor does a guard that it names.
func TestAListCutsItsPrefixesOnEveryNode(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	v4, v6 := l.Ends(t, "guest1")
	o4, o6 := l.Ends(t, "guest2")
	node, _ := l.follower(t)
	api := l.Clients[node]
	var in4, out4, in6, innocents []*probe.Flow
	for _, peer := range []string{"guest3", "guest7", fleet.Outside} {
		p4, p6 := l.Ends(t, peer)
		out4 = append(out4, f.One("guest1", peer, v4, p4))
		in4 = append(in4, f.One(peer, "guest1", p4, v4))
		in6 = append(in6, f.One("guest1", peer, v6, p6), f.One(peer, "guest1", p6, v6))
		innocents = append(innocents, f.One("guest2", peer, o4, p4), f.One(peer, "guest2", p6, o6))
	}
	f.Passing(append(append(append(append([]*probe.Flow{}, in4...), out4...), in6...), innocents...))

	putList(t, api, "198.51.100.0/24", v4.Addr.String())
	hold, err := api.AddBlock(t.Context(), client.BlockRequest{Target: client.Target{List: "feed"}, Direction: "out", Force: true}, client.Write{Wait: true})
	if err != nil || !hold.Confirmed {
		t.Fatalf("hold the list: confirmed %t, %v", hold.Confirmed, err)
	}
	t.Cleanup(func() {
		if b, err := api.Block(t.Context(), hold.Block.ID); err == nil && b.State == "active" {
			_, _ = api.LiftBlock(t.Context(), b.ID, client.Write{Wait: true})
		}
		_ = api.DeleteList(t.Context(), "feed", client.Write{})
	})
	silent(f, out4)
	l.Eventually(t, "what the list dropped is counted", func() error {
		b, err := api.Block(t.Context(), hold.Block.ID)
		if err == nil && (b.Counters == nil || b.Counters.Packets == 0) {
			err = errors.New("nothing is")
		}
		return err
	})
	f.Passing(in4) // only what comes from the list is dropped
	f.Passing(in6)

	// Another content, large enough to be loaded beside the old one, names the guest too; and a guard.
	lines := []string{v4.Addr.String(), v6.Addr.String()}
	for i := range 20_000 {
		lines = append(lines, fmt.Sprintf("20.%d.%d.%d/%d", i>>13, i>>5&255, i<<3&255, 32-i%3))
	}
	putList(t, api, lines...)
	silent(f, out4)
	silent(f, in6[:1])
	f.Passing(in4)

	// An agent that is killed leaves its kernel as it is, and confirms again when it is back.
	if err := l.KillAgent(t.Context(), "node-1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	silent(f, out4)
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	l.Eventually(t, "the agent confirms the hold again", func() error {
		b, err := api.Block(t.Context(), hold.Block.ID)
		if err == nil && len(b.Receipts) != len(l.Clients) {
			err = errors.New("it does not")
		}
		return err
	})
	silent(f, out4)

	r, err := api.PatchList(t.Context(), "feed", client.ListPatchRequest{Remove: []string{v4.Addr.String()}}, client.ListPatch{}, client.Write{Wait: true})
	if err != nil || len(r.Unconfirmed) > 0 {
		t.Fatalf("patch: unconfirmed by %v, %v", r.Unconfirmed, err)
	}
	f.Passing(out4)
	silent(f, in6[:1])
	if _, err := api.LiftBlock(t.Context(), hold.Block.ID, client.Write{Wait: true}); err != nil {
		t.Fatal(err)
	}
	f.Passing(in6)
	f.Lossless(innocents)
}
