package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

// schedule lets blocks start and end at their times, with 100,000 due times pending beside them.
func (b *bench) schedule(ctx context.Context) error {
	const pending, fired, every, lasts = 100_000, 100, 50 * time.Millisecond, 8 * time.Second
	if err := errors.Join(b.down(ctx), b.up(ctx)); err != nil {
		return err
	}
	b.say("agreeing on %d blocks that start in two hours", pending)
	far := time.Now().Add(2 * time.Hour)
	for from := 0; from < pending; from += 10_000 {
		var lines bytes.Buffer
		enc := json.NewEncoder(&lines)
		for i := range 10_000 {
			if err := enc.Encode(client.BlockRequest{Target: b.target(), StartsAt: far.Add(time.Duration(from+i) * time.Millisecond)}); err != nil {
				return err
			}
		}
		if err := b.bulk(ctx, lines.Bytes(), 10_000); err != nil {
			return err
		}
	}
	b.say("starting and ending %d blocks, one every %v", fired, every)
	first := time.Now().Add(3 * time.Second)
	var ids []string
	for i := range fired {
		at := first.Add(time.Duration(i) * every)
		w, err := b.clients[i%len(b.clients)].AddBlock(ctx, client.BlockRequest{Target: b.target(), StartsAt: at, EndsAt: at.Add(lasts)}, client.Write{})
		if err != nil {
			return err
		}
		ids = append(ids, w.Block.ID)
	}
	time.Sleep(time.Until(first.Add(fired*every + time.Second)))
	var kernel, ends []time.Duration
	for _, id := range ids {
		block, err := b.clients[0].Block(ctx, id)
		if err != nil {
			return err
		}
		last := block.StartedAt
		for _, r := range block.Receipts {
			if r.At.After(last) {
				last = r.At
			}
		}
		if block.State != "active" || len(block.Receipts) != len(b.clients) || block.StartedAt.Before(block.StartsAt) {
			return fmt.Errorf("block %s should be in force everywhere: %+v", id, block)
		}
		kernel = append(kernel, last.Sub(block.StartsAt))
	}
	time.Sleep(time.Until(first.Add(fired*every + lasts + time.Second)))
	for _, id := range ids {
		block, err := b.clients[0].Block(ctx, id)
		if err != nil {
			return err
		}
		if block.State != "ended" || block.LiftedAt.Before(block.EndsAt) {
			return fmt.Errorf("block %s should have ended, not early: %+v", id, block)
		}
		ends = append(ends, block.LiftedAt.Sub(block.EndsAt))
	}
	b.duration("due -> in the kernels of all three nodes, 100,000 pending, median", quantile(kernel, 0.5), "")
	b.duration("due -> in the kernels of all three nodes, 100,000 pending, slowest", quantile(kernel, 1), "<= 50 ms")
	b.duration("due -> fired to end, slowest", quantile(ends, 1), "<= 50 ms")
	return nil
}

// bulk sends lines of a bulk request and fails if any was refused.
func (b *bench) bulk(ctx context.Context, lines []byte, n int) error {
	results, err := b.clients[0].BulkBlocks(ctx, lines, client.Bulk{})
	if err != nil {
		return err
	}
	for _, r := range results {
		if r.Problem != nil {
			return fmt.Errorf("line %d: %w", r.Line, r.Problem)
		}
	}
	if len(results) != n {
		return fmt.Errorf("%d results of %d lines", len(results), n)
	}
	return nil
}

// inBulk times 10,000 holds in one call, on an empty fleet each time.
func (b *bench) inBulk(ctx context.Context) error {
	const holds, rounds = 10_000, 3
	var took []time.Duration
	for range rounds {
		if err := errors.Join(b.down(ctx), b.up(ctx)); err != nil {
			return err
		}
		var lines bytes.Buffer
		enc := json.NewEncoder(&lines)
		for range holds {
			if err := enc.Encode(client.BlockRequest{Target: b.target(), Reason: "attack"}); err != nil {
				return err
			}
		}
		begin := time.Now()
		if err := b.bulk(ctx, lines.Bytes(), holds); err != nil {
			return err
		}
		took = append(took, time.Since(begin))
	}
	b.duration("10,000 holds in one bulk call, committed on three nodes, median of 3", quantile(took, 0.5), "< 1 s")
	return nil
}
