package client_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/apitest"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

func TestHolds(t *testing.T) {
	f := apitest.New(t, "n2")
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	c, x := over(t, f, nil, client.Options{}), ctx(t, 20*time.Second)
	start := time.Now().Add(time.Hour).Truncate(time.Second)
	w, err := c.AddBlock(x, client.BlockRequest{
		Target: client.Target{VM: "web"}, Reason: "unpaid", StartsAt: start, Duration: "7d",
		Kind: "ports", Ports: []client.Port{{Protocol: "tcp", From: 25}},
	}, client.Write{})
	if err != nil || w.Block.State != "pending" || !w.Block.StartsAt.Equal(start) || w.Block.Ports[0].To != 25 {
		t.Fatalf("%v: %+v", err, w)
	}
	if due := collect(t, c.Schedule(x)); len(due) != 1 || due[0].What != wire.DueStart {
		t.Errorf("%+v", due)
	}
	patch := client.BlockPatch{EndsAt: wire.Given(time.Time{}), Note: wire.Given("later")}
	var p *client.Problem
	if _, err := c.PatchBlock(x, "b1", patch, client.Write{}); !errors.As(err, &p) || p.Code != wire.CodePrecondition {
		t.Errorf("without a revision: %v", err)
	}
	if w, err = c.PatchBlock(x, "b1", patch, client.Write{IfMatch: w.Block.Revision}); err != nil || !w.Block.EndsAt.IsZero() || w.Block.Note != "later" {
		t.Errorf("%v: %+v", err, w)
	}

	// A dry run is no error, also if it would be refused.
	var preview client.Preview
	if w, err := c.LiftBlock(x, "b1", client.Write{Preview: &preview}); err != nil || w.Block.ID != "" || preview.Would.Block.State != "lifted" {
		t.Errorf("%v: %+v", err, preview)
	}
	preview = client.Preview{}
	if _, err := c.AddBlock(x, client.BlockRequest{Target: client.Target{Prefix: "127.0.0.1"}}, client.Write{Preview: &preview}); err != nil || preview.Would.Problem.Code != wire.CodeGuardConflict {
		t.Errorf("%v: %+v", err, preview)
	}
	if f.View().CountPending() != 1 || f.View().CountBlocks() != 1 {
		t.Error("a dry run changed something")
	}

	blocks, confirmed, err := c.LiftReason(x, client.Target{VM: "web"}, "unpaid", client.Write{Wait: true, Timeout: time.Second})
	if err != nil || !confirmed || len(blocks) != 1 || blocks[0].ID != "b1" || len(blocks[0].Receipts) != 2 {
		t.Errorf("%v, %v: %+v", err, confirmed, blocks)
	}
	if r, err := c.BlockReceipts(x, "b1", time.Second); err != nil || !r.Complete || len(r.Receipts) != 2 {
		t.Errorf("%v: %+v", err, r)
	}
	if _, err := c.AddBlock(x, client.BlockRequest{Target: client.Target{Prefix: "198.18.0.0/15"}, ConfirmWithin: "10m"}, client.Write{}); err != nil {
		t.Error(err)
	}
	if w, err := c.ConfirmBlock(x, "b2", client.Write{}); err != nil || !w.Block.ConfirmBy.IsZero() {
		t.Errorf("%v: %+v", err, w)
	}
}

func TestAccountsSettingsAndGuards(t *testing.T) {
	f := apitest.New(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	c, x := over(t, f, nil, client.Options{}), ctx(t, 20*time.Second)
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	a, err := c.PutAccount(x, "a/b?c", client.AccountRequest{DoNotBlockUntil: until}, client.Write{})
	if err != nil || !a.DoNotBlockUntil.Equal(until) {
		t.Errorf("%v: %+v", err, a)
	}
	if b, err := c.Account(x, "a/b?c"); err != nil || b.Revision != a.Revision {
		t.Errorf("%v: %+v", err, b)
	}
	if all := collect(t, c.Accounts(x)); len(all) != 1 {
		t.Errorf("%+v", all)
	}
	s, err := c.Settings(x)
	if err != nil {
		t.Fatal(err)
	}
	s.MaxVMs = 7
	if s, err = c.PutSettings(x, s.SettingsRequest, client.Write{}); err != nil || s.MaxVMs != 7 || f.View().Settings().MaxVMs != 7 {
		t.Errorf("%v: %+v", err, s)
	}
	if g, err := c.AddGuard(x, client.GuardRequest{VM: "web"}, client.Write{}); err != nil || g.VM != "vm-1" {
		t.Errorf("%v: %+v", err, g)
	}
	if err := c.RemoveVMGuard(x, "web", client.Write{}); err != nil || len(f.View().GuardedVMs()) != 0 {
		t.Errorf("%v", err)
	}
}

func lines(n int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{\"target\":{\"prefix\":\"203.0.%d.%d\"}}\n", i>>8, i&255)
	}
	return []byte(b.String())
}

// A commit that fails on the way is tried again, with one effect.
func TestBulkGoesOn(t *testing.T) {
	f := apitest.New(t)
	failures := 2
	f.FailWith = func(c fsm.Command) error {
		if strings.HasSuffix(c.Key, "#1") && failures > 0 {
			failures--
			return fsm.ErrUnavailable
		}
		return nil
	}
	c, x := over(t, f, nil, client.Options{}), ctx(t, 30*time.Second)
	const count = 6000
	results, err := c.BulkBlocks(x, lines(count), client.Bulk{})
	if err != nil || len(results) != count || f.View().CountBlocks() != count {
		t.Fatalf("%v: %d results, %d blocks", err, len(results), f.View().CountBlocks())
	}
	for i, r := range results {
		if r.Index != i || r.Block == nil || r.Block.ID != fmt.Sprintf("b%d", i+1) {
			t.Fatalf("%d: %+v", i, r)
		}
	}
}

func TestBulkThatStaysOpen(t *testing.T) {
	f := apitest.New(t)
	f.FailWith = func(c fsm.Command) error {
		if strings.HasSuffix(c.Key, "#1") {
			return fsm.ErrUnavailable
		}
		return nil
	}
	c, x := over(t, f, nil, client.Options{RetryFor: -1}), ctx(t, 30*time.Second)
	results, err := c.BulkBlocks(x, lines(3000), client.Bulk{Key: "night"})
	var unknown *client.UnknownError
	if !errors.As(err, &unknown) || unknown.Key != "night" || len(results) != 3000 || results[0].Status != 201 || results[2999].Status != 503 {
		t.Errorf("%v: %d results", err, len(results))
	}
}

func TestBulkRefusals(t *testing.T) {
	f := apitest.New(t)
	c, x := over(t, f, nil, client.Options{}), ctx(t, 20*time.Second)
	body := append(lines(1), []byte(`{"lift":{"id":"b9"}}`)...)
	results, err := c.BulkBlocks(x, body, client.Bulk{Atomic: true})
	if err != nil || len(results) != 2 || results[0].Problem.Code != wire.CodeAborted || results[1].Problem.Code != wire.CodeNotFound {
		t.Errorf("%v: %+v", err, results)
	}
	results, err = c.BulkBlocks(x, body, client.Bulk{DryRun: true})
	if err != nil || len(results) != 2 || results[0].Block == nil || f.View().CountBlocks() != 0 {
		t.Errorf("%v: %+v", err, results)
	}
	var p *client.Problem
	if _, err := c.BulkBlocks(x, []byte("\n"), client.Bulk{}); !errors.As(err, &p) || p.Code != wire.CodeInvalid {
		t.Errorf("an empty body: %v", err)
	}
}
