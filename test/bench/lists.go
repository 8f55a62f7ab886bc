package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

const listEntries = 1_000_000

// manyPrefixes returns n prefixes of 8 lengths, none in another and no two adjoining.
func manyPrefixes(n int) []netip.Prefix {
	lengths := []int{32, 24, 31, 28, 30, 26, 29, 25}
	list := make([]netip.Prefix, 0, n)
	at := uint64(20 << 24)
	for i := range n {
		bits := lengths[i%len(lengths)]
		size := uint64(1) << (32 - bits)
		at = (at + size - 1) / size * size
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(at >> 24), byte(at >> 16), byte(at >> 8), byte(at)}), bits))
		at += 2 * size
	}
	return list
}

// lists loads a list of a million prefixes into three kernels, and changes it.
func (b *bench) lists(ctx context.Context) error {
	list := manyPrefixes(listEntries)
	one, err := b.nftLoad(ctx, list, "inet")
	if err != nil {
		return err
	}
	both, err := b.nftLoad(ctx, list, "inet", "bridge")
	if err != nil {
		return err
	}
	b.duration("nft -f of 1,000,000 prefixes of 8 lengths, one table", one, "")
	b.duration("nft -f of 1,000,000 prefixes of 8 lengths, two tables", both, "")

	hold, err := b.heldList(ctx)
	if err != nil {
		return err
	}
	var before []float64
	for _, n := range b.fleet.Nodes() {
		_, rss, err := usage(n.Agent.PID)
		if err != nil {
			return err
		}
		before = append(before, float64(rss))
	}
	took, waits, err := b.loadList(ctx, list)
	if err != nil {
		return err
	}
	b.duration("end of the upload -> in force on three nodes", took, "")
	b.report("the same, times nft -f with one table on one node", took.Seconds()/one.Seconds(), "x", "<= 3")
	b.report("the same, times nft -f with two tables on one node", took.Seconds()/both.Seconds(), "x", "<= 3")
	b.duration("an urgent block meanwhile -> three kernels, median", quantile(waits, 0.5), "")
	b.duration("an urgent block meanwhile -> three kernels, p99", quantile(waits, 0.99), "")
	most := 0.0
	for i, n := range b.fleet.Nodes() {
		_, rss, err := usage(n.Agent.PID)
		if err != nil {
			return err
		}
		most = max(most, (float64(rss)-before[i])/float64(len(list)))
	}
	b.report("resident memory of an agent, more for each prefix", most, "bytes", "")
	if err := b.listDeltas(ctx, list); err != nil {
		return err
	}
	if _, err = b.clients[0].LiftBlock(ctx, hold, client.Write{Wait: true}); err != nil {
		return err
	}
	return b.alone(ctx, list)
}

// alone loads the list on a node that has the machine for itself, as nodes have, and blocks meanwhile.
func (b *bench) alone(ctx context.Context, list []netip.Prefix) (err error) {
	single := *b
	if err := single.upWith(ctx, 1, "palbenc1"); err != nil {
		return errors.Join(err, single.down(ctx))
	}
	defer func() { err = errors.Join(err, single.down(ctx)) }()
	if _, err := single.heldList(ctx); err != nil {
		return err
	}
	_, waits, err := single.loadList(ctx, list)
	if err != nil {
		return err
	}
	b.report("blocks during a load on one node", float64(len(waits)), "", "")
	b.duration("an urgent block during a load -> one node's kernel, median", quantile(waits, 0.5), "")
	b.duration("an urgent block during a load -> one node's kernel, p99", quantile(waits, 0.99), "< 10 ms")
	b.duration("an urgent block during a load -> one node's kernel, worst", slices.Max(waits), "")
	return nil
}

// heldList makes a list of one prefix that a block holds, and returns the block's id.
func (b *bench) heldList(ctx context.Context) (string, error) {
	if _, err := b.clients[0].PutList(ctx, "bench", strings.NewReader("192.0.2.1\n"), client.ListPut{}); err != nil {
		return "", err
	}
	w, err := b.clients[0].AddBlock(ctx, client.BlockRequest{Target: client.Target{List: "bench"}, Force: true}, client.Write{Wait: true})
	return w.Block.ID, err
}

// loadList replaces the content of the list, and blocks one address after the other meanwhile. It returns how long the list took
// to be in force from the end of its upload, and how long each block took to be.
func (b *bench) loadList(ctx context.Context, list []netip.Prefix) (took time.Duration, urgent []time.Duration, err error) {
	var text bytes.Buffer
	for _, p := range list {
		fmt.Fprintln(&text, p)
	}
	body := &timedEnd{from: &text}
	waits, done := make(chan []time.Duration, 1), make(chan struct{})
	go func() { waits <- b.urgent(ctx, done) }()
	r, err := b.clients[0].PutList(ctx, "bench", body, client.ListPut{Force: true, Wait: true, Timeout: time.Minute})
	took = time.Since(body.at)
	close(done)
	urgent = <-waits
	if err != nil {
		return 0, nil, err
	}
	if len(r.Unconfirmed) > 0 || r.Size != len(list) {
		return 0, nil, fmt.Errorf("the list has %d prefixes, unconfirmed by %v", r.Size, r.Unconfirmed)
	}
	return took, urgent, nil
}

// listDeltas adds and removes a thousand prefixes in turn.
func (b *bench) listDeltas(ctx context.Context, list []netip.Prefix) error {
	var took []time.Duration
	for i := range 20 {
		var texts []string
		for k := range 1000 {
			texts = append(texts, list[(i/2*1000+k)*61%len(list)].String())
		}
		p := client.ListPatchRequest{Remove: texts}
		if i%2 == 1 {
			p = client.ListPatchRequest{Add: texts}
		}
		begin := time.Now()
		r, err := b.clients[i%len(b.clients)].PatchList(ctx, "bench", p, client.ListPatch{}, client.Write{Wait: true})
		if err != nil {
			return err
		}
		if len(r.Unconfirmed) > 0 || r.Added+r.Removed != 1000 {
			return fmt.Errorf("a delta changed %d, unconfirmed by %v", r.Added+r.Removed, r.Unconfirmed)
		}
		took = append(took, time.Since(begin))
	}
	b.duration("delta of 1,000 prefixes -> in force on three nodes, median", quantile(took, 0.5), "< 100 ms")
	b.duration("delta of 1,000 prefixes -> in force on three nodes, worst", slices.Max(took), "")
	return nil
}

// urgent blocks one address after the other until done is closed, and returns how long each took.
func (b *bench) urgent(ctx context.Context, done <-chan struct{}) []time.Duration {
	var took []time.Duration
	for {
		select {
		case <-done:
			return took
		case <-time.After(20 * time.Millisecond):
		}
		kernel, _, err := b.oneByOne(ctx, 1)
		if err != nil {
			b.say("an urgent block: %v", err)
			return took
		}
		took = append(took, kernel...)
	}
}

// timedEnd notes when the last byte was read.
type timedEnd struct {
	from io.Reader
	at   time.Time
}

// Read implements io.Reader.
func (t *timedEnd) Read(p []byte) (int, error) {
	n, err := t.from.Read(p)
	if errors.Is(err, io.EOF) {
		t.at = time.Now()
	}
	return n, err
}

// nftLoad times nft with the same sets and rules in a namespace of its own.
func (b *bench) nftLoad(ctx context.Context, list []netip.Prefix, families ...string) (time.Duration, error) {
	path := filepath.Join(b.dir, "lists.nft")
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(path) }()
	w := bufio.NewWriter(f)
	byLength := map[int][]netip.Prefix{}
	for _, p := range list {
		byLength[p.Bits()] = append(byLength[p.Bits()], p)
	}
	for _, family := range families {
		fmt.Fprintf(w, "table %s lists {\n", family)
		var rules strings.Builder
		for bits, part := range byLength {
			fmt.Fprintf(w, "set a%d { type ipv4_addr; size %d; elements = {", bits, len(part))
			for _, p := range part {
				fmt.Fprintf(w, "%s,", p.Addr())
			}
			fmt.Fprintln(w, "} }")
			mask := ""
			if bits < 32 {
				m := ^uint32(0) << (32 - bits)
				mask = fmt.Sprintf(" & %d.%d.%d.%d", m>>24, m>>16&255, m>>8&255, m&255)
			}
			fmt.Fprintf(&rules, "ip saddr%s @a%d drop\nip daddr%s @a%d drop\n", mask, bits, mask, bits)
		}
		fmt.Fprintf(w, "chain prerouting { type filter hook prerouting priority -500;\n%s}\n}\n", rules.String())
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		return 0, err
	}
	begin := time.Now()
	if out, err := exec.CommandContext(ctx, "unshare", "--net", "nft", "-f", path).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("nft -f: %w: %s", err, out)
	}
	return time.Since(begin), nil
}
