package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Step is one thing that a proof did, and how long it took.
type Step struct {
	What string        `json:"what"`
	Took time.Duration `json:"took_ns"`
}

// Prove shows on one guest that the fleet blocks: it answers, is blocked through another node, does
// not answer, is unblocked, answers. The block is lifted also if something fails.
func (f *Fleet) Prove(ctx context.Context, did func(Step)) error {
	s := f.snapshot()
	if len(s.VMs) == 0 {
		return nil
	}
	g := s.VMs[0]
	writer := s.Nodes[len(s.Nodes)-1].Name // not where the guest is, if there is another
	step := func(what string, do func() error) error {
		began := time.Now()
		if err := do(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		did(Step{What: what, Took: time.Since(began)})
		return nil
	}
	ping := func(count string) error {
		for _, a := range g.Addresses {
			if _, err := f.Exec(ctx, Outside, "ping", "-q", "-c", count, "-i", "0.2", "-W", "1", a); err != nil {
				return err
			}
		}
		return nil
	}
	silent := func() error {
		for _, a := range g.Addresses {
			if _, err := f.Exec(ctx, Outside, "ping", "-q", "-c", "3", "-i", "0.2", "-W", "1", a); err == nil {
				return errors.New("it answered")
			}
		}
		return nil
	}
	if err := step(g.Name+" answers pings over IPv4 and IPv6", func() error { return ping("1") }); err != nil {
		return err
	}
	var block struct {
		ID       string `json:"id"`
		Receipts []struct {
			Node string `json:"node"`
		} `json:"receipts"`
	}
	lift := func(ctx context.Context) error {
		return f.Call(ctx, writer, http.MethodDelete, "/v1/blocks/"+block.ID+"?wait=enforced", nil, nil)
	}
	err := step(fmt.Sprintf("%s blocked through %s, in the kernels of all %d nodes", g.Name, writer, len(s.Nodes)), func() error {
		body := map[string]any{"target": map[string]string{"vm": g.VM}, "reason": "demo", "note": "the demo proves itself"}
		if err := f.Call(ctx, writer, http.MethodPost, "/v1/blocks?wait=enforced", body, &block); err != nil {
			return err
		}
		if len(block.Receipts) != len(s.Nodes) {
			return fmt.Errorf("receipts of %d nodes, want %d", len(block.Receipts), len(s.Nodes))
		}
		return nil
	})
	if err == nil {
		err = step(g.Name+" does not answer three pings over each", silent)
	}
	if block.ID == "" {
		return err
	}
	if err != nil {
		return errors.Join(err, lift(context.WithoutCancel(ctx)))
	}
	if err := step("block lifted on all nodes", func() error { return lift(context.WithoutCancel(ctx)) }); err != nil {
		return err
	}
	return step(g.Name+" answers again", func() error { return ping("1") })
}
