package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// slowLeader answers every proposal after a while, and counts.
type slowLeader struct {
	mu    sync.Mutex
	calls int
	most  int
	err   error
}

func (s *slowLeader) propose(ctx context.Context, _ string, req *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error) {
	s.mu.Lock()
	s.calls++
	s.most = max(s.most, len(req.GetCommands()))
	err := s.err
	s.mu.Unlock()
	select {
	case <-time.After(2 * time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	resp := &peerpb.ProposeResponse{}
	for _, c := range req.GetCommands() {
		i, err := strconv.ParseUint(string(c), 10, 64)
		if err != nil {
			return nil, err
		}
		resp.Outcomes = append(resp.Outcomes, outcome{kind: done, result: fsm.Result{Index: i}}.encode())
	}
	return resp, nil
}

func newForwarder(s *slowLeader) *forwarder {
	return &forwarder{peer: "n9", propose: s.propose, ctx: context.Background(), running: &sync.WaitGroup{}}
}

func TestConcurrentProposalsShareCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowLeader{}
		f := newForwarder(s)
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				o := f.do(within(t, time.Minute), []byte(strconv.Itoa(i)))
				if o.kind != done || o.result.Index != uint64(i) {
					t.Errorf("proposal %d got %+v", i, o)
				}
			})
		}
		wg.Wait()
		if s.calls > maxForwards+3 || s.most > maxBundle {
			t.Errorf("500 proposals took %d calls, the largest with %d", s.calls, s.most)
		}
	})
}

func TestForwardedOutcomesAreHonest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			err  error
			want kind
		}{
			{fmt.Errorf("dial: %w", errNotSent), notAppended},
			{fmt.Errorf("503: %w", fsm.ErrUnavailable), notAppended},
			{errors.New("connection reset"), unknown},
		} {
			if o := newForwarder(&slowLeader{err: c.err}).do(within(t, time.Minute), []byte("1")); o.kind != c.want {
				t.Errorf("%v became %v", c.err, o.kind)
			}
		}
		// What never left the queue is certainly not appended, what left is unknown.
		f := newForwarder(&slowLeader{})
		for range maxForwards {
			go f.do(within(t, time.Minute), []byte("1"))
		}
		synctest.Wait()
		if o := f.do(within(t, time.Second), []byte("2")); o.kind != notAppended {
			t.Errorf("queued: %+v", o)
		}
		if len(f.queue) != 0 {
			t.Error("it is still queued")
		}
		time.Sleep(time.Minute)
		if o := f.do(within(t, time.Second), []byte("3")); o.kind != unknown {
			t.Errorf("sent: %+v", o)
		}
	})
}

func TestOutcomeSurvivesTheWire(t *testing.T) {
	addr := netip.MustParseAddr("2001:db8::1")
	mac := fsm.MAC{1, 2, 3, 4, 5, 6}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	block := &fsm.Block{ID: "b1", Target: fsm.Target{Prefix: netip.PrefixFrom(addr, 128)}, Kind: fsm.Drop, State: fsm.BlockActive, CreatedAt: at, Index: 7}
	vm := &fsm.VM{ID: "v", Declared: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, NICs: []fsm.NIC{{MAC: mac, Tap: "t", Addresses: []netip.Addr{addr}}}, Epoch: 1 << 63}
	node := &fsm.Node{ID: "n", Addresses: []netip.Addr{addr}, MACs: []fsm.MAC{mac}, Guards: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}}
	guard := &fsm.Guard{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Note: "ü\x00"}
	for _, r := range []fsm.Result{
		{Index: 1<<64 - 1, Block: block, Replayed: true},
		{VM: vm}, {Node: node}, {Guard: guard},
		{Err: &fsm.Error{Code: fsm.CodeTooWide, Field: "target.prefix", Detail: "no"}},
		{Index: 3, Items: []fsm.Result{{Block: block}, {Err: &fsm.Error{Code: fsm.CodeStale}}}},
	} {
		got := decodeOutcome(outcome{kind: done, result: r}.encode())
		if got.kind != done || !reflect.DeepEqual(got.result, r) {
			a, _ := json.Marshal(r)
			b, _ := json.Marshal(got.result)
			t.Errorf("sent %s\n got %s (%v)", a, b, got.err)
		}
	}
}

// TestUnsentIsKnown kills a peer under an open connection: what could not leave any more is known not
// to have been written, what left is not known.
func TestUnsentIsKnown(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	l, n := f.leader(), f.follower()
	n.propose(declare("vm", "one")) // the connection is open
	addr := n.c.dir.now().all[l.id].Address
	l.crash()
	f.await("the port to be closed", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	// The first call may still find the dead connection open; by then that is known.
	for i := range 3 {
		if _, err := n.c.rpc.propose(within(t, 5*time.Second), l.id, &peerpb.ProposeRequest{Commands: [][]byte{{1}}}); err == nil || i > 0 && !errors.Is(err, errNotSent) {
			t.Errorf("to a dead peer: %v", err)
		}
	}
}
