// Command bench measures a fleet of three real agents on this machine: how long a block takes into all
// kernels, how many blocks are committed a second beside etcd, what an idle agent costs, what changes with a
// hundred thousand blocks, and what the page does in a browser while the fleet is busy. Every time is also given as a ratio to the fdatasync of the
// same disk in the same run: that is what carries over to another machine.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
)

func main() {
	o := options{}
	flag.StringVar(&o.binary, "palisade", "bin/palisade", "the palisade binary")
	flag.StringVar(&o.etcdload, "etcdload", "", "the etcdload binary; empty leaves etcd out")
	flag.StringVar(&o.dir, "dir", "", "where the fleet and etcd keep their data (default: a new directory in /var/tmp)")
	flag.IntVar(&o.blocks, "blocks", 100_000, "blocks in the scale part; 0 leaves it out")
	flag.IntVar(&o.vms, "vms", 10_000, "VMs in the scale part")
	flag.StringVar(&o.only, "only", "", "one part: idle, latency, throughput, scale, bulk, schedule, lists, browser, followers or node")
	flag.DurationVar(&o.browserFor, "browser-for", 10*time.Minute, "how long the browser part watches the page, half a minute or more; 0 leaves the part out")
	flag.IntVar(&o.browserVMs, "browser-vms", 100_000, "VMs in the browser part")
	flag.IntVar(&o.browserRate, "browser-rate", 200, "events a second in the browser part")
	flag.StringVar(&o.browserKeep, "browser-keep", "", "a directory for a trace and a picture of each stretch of the browser part, to look into with Chromium's tools; sampling the stack for that costs time, so its figures don't count")
	flag.BoolVar(&o.json, "json", false, "print the figures as JSON")
	flag.Parse()
	if err := run(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	binary, etcdload, dir string
	blocks, vms           int
	only                  string
	json                  bool

	browserFor              time.Duration
	browserVMs, browserRate int
	browserKeep             string
}

// bench is one run.
type bench struct {
	options
	fleet   *fleet.Fleet
	clients []*client.Client // by node
	sync    time.Duration    // median fdatasync
	figures []figure
	next    int // number of the next target
}

// figure is one line of the result.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Syncs is the value in fdatasyncs of this disk, for durations.
	Syncs  float64 `json:"syncs,omitempty"`
	Target string  `json:"target,omitempty"`
}

func (b *bench) report(name string, value float64, unit, target string) {
	b.add(figure{Name: name, Value: value, Unit: unit, Target: target})
}

func (b *bench) duration(name string, d time.Duration, target string) {
	b.add(figure{Name: name, Value: d.Seconds() * 1e3, Unit: "ms", Syncs: float64(d) / float64(b.sync), Target: target})
}

func (b *bench) add(f figure) {
	b.figures = append(b.figures, f)
	if b.json {
		return
	}
	line := fmt.Sprintf("  %-58s %12.3f %-9s", f.Name, f.Value, f.Unit)
	if f.Syncs != 0 {
		line += fmt.Sprintf(" = %8.1f fdatasyncs", f.Syncs)
	}
	if f.Target != "" {
		line += "   (target " + f.Target + ")"
	}
	fmt.Println(line)
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func run(ctx context.Context, o options) (err error) {
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("/var/tmp", "palisade-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	b := &bench{options: o}
	if b.sync, err = medianSync(o.dir); err != nil {
		return err
	}
	b.duration("fdatasync of 4 KiB, median", b.sync, "")
	if o.only == "" || o.only == "followers" {
		if err := b.followers(ctx); err != nil {
			return err
		}
	}
	if o.only == "" || o.only == "node" {
		if err := b.node(ctx); err != nil {
			return err
		}
	}
	if o.only == "followers" || o.only == "node" {
		return b.end()
	}
	if err := b.up(ctx); err != nil {
		return errors.Join(err, b.down(ctx))
	}
	defer func() { err = errors.Join(err, b.down(ctx)) }()
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"idle", b.idle}, {"latency", b.latency}, {"throughput", b.throughput}, {"scale", b.scale}, {"bulk", b.inBulk}, {"schedule", b.schedule}, {"lists", b.lists}, {"browser", b.browser}} {
		if o.only != "" && o.only != part.name {
			continue
		}
		if err := part.run(ctx); err != nil {
			return err
		}
	}
	return b.end()
}

func (b *bench) end() error {
	if b.json {
		return json.NewEncoder(os.Stdout).Encode(b.figures)
	}
	return nil
}

// up brings up a fleet of three nodes that hold nothing.
func (b *bench) up(ctx context.Context) error { return b.upWith(ctx, 3, "palbench") }

func (b *bench) upWith(ctx context.Context, nodes int, prefix string) (err error) {
	b.say("bringing up %d nodes", nodes)
	b.next, b.clients = 0, nil
	b.fleet, err = fleet.Up(ctx, fleet.Options{Dir: filepath.Join(b.dir, prefix), Binary: b.binary, Nodes: nodes, Prefix: prefix, GuestsPerNode: -1, LogLevel: "warn"})
	if err != nil {
		return err
	}
	roots, err := b.fleet.Roots()
	if err != nil {
		return err
	}
	for _, n := range b.fleet.Nodes() {
		c, err := client.New(client.Options{URL: n.API, Token: n.Token, RootCAs: roots})
		if err != nil {
			return err
		}
		b.clients = append(b.clients, c)
	}
	return nil
}

func (b *bench) down(ctx context.Context) error {
	if b.fleet == nil {
		return nil
	}
	return b.fleet.Down(context.WithoutCancel(ctx))
}

// medianSync times writing and syncing one page, as a raft log does at least once for every commit.
func medianSync(dir string) (time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var took []time.Duration
	page := make([]byte, 4096)
	for range 500 {
		if _, err := f.Write(page); err != nil {
			return 0, err
		}
		begin := time.Now()
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begin))
	}
	return quantile(took, 0.5), os.Remove(f.Name())
}

func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	list = slices.Sorted(slices.Values(list))
	return list[min(len(list)-1, int(q*float64(len(list))))]
}

// target names an address that was not blocked before.
func (b *bench) target() client.Target {
	b.next++
	n := b.next
	return client.Target{Prefix: fmt.Sprintf("100.%d.%d.%d", 64+n>>16&63, n>>8&255, n&255)}
}

// idle measures what agents cost that have nothing to do.
func (b *bench) idle(context.Context) error {
	const settle, span = 5 * time.Second, 20 * time.Second
	b.say("watching idle agents for %v", settle+span)
	time.Sleep(settle)
	var before []time.Duration
	for _, n := range b.fleet.Nodes() {
		cpu, _, err := usage(n.Agent.PID)
		if err != nil {
			return err
		}
		before = append(before, cpu)
	}
	time.Sleep(span)
	var share, memory float64
	for i, n := range b.fleet.Nodes() {
		cpu, rss, err := usage(n.Agent.PID)
		if err != nil {
			return err
		}
		share = max(share, (cpu-before[i]).Seconds()/span.Seconds()*100)
		memory = max(memory, float64(rss)/(1<<20))
	}
	b.report("idle agent, CPU of the busiest (the leader)", share, "% of core", "< 1")
	b.report("idle agent, resident memory of the largest", memory, "MiB", "< 60")
	return nil
}

// latency blocks one address after the other, through each node in turn.
func (b *bench) latency(ctx context.Context) error {
	b.say("blocking 600 addresses, one after the other")
	kernel, answer, err := b.oneByOne(ctx, 600)
	if err != nil {
		return err
	}
	b.duration("request -> in the kernels of all three nodes, median", quantile(kernel, 0.5), "<= 3 ms")
	b.duration("request -> in the kernels of all three nodes, p99", quantile(kernel, 0.99), "<= 10 ms")
	b.duration("request -> answer with all receipts, median", quantile(answer, 0.5), "")
	b.duration("request -> answer with all receipts, p99", quantile(answer, 0.99), "")
	return nil
}

// oneByOne returns, for each of n blocks, the time from the request to the last receipt, which is the
// moment after the read-back from the slowest kernel, and to the answer. All clocks are one machine's.
func (b *bench) oneByOne(ctx context.Context, n int) (kernel, answer []time.Duration, err error) {
	for i := range n {
		begin := time.Now()
		w, err := b.clients[i%len(b.clients)].AddBlock(ctx, client.BlockRequest{Target: b.target()}, client.Write{Wait: true})
		if err != nil {
			return nil, nil, err
		}
		answer = append(answer, time.Since(begin))
		if len(w.Block.Receipts) != len(b.clients) {
			return nil, nil, fmt.Errorf("block %s has %d receipts", w.Block.ID, len(w.Block.Receipts))
		}
		last := begin
		for _, r := range w.Block.Receipts {
			if r.At.After(last) {
				last = r.At
			}
		}
		kernel = append(kernel, last.Sub(begin.Round(0)))
	}
	return kernel, answer, nil
}

const writers = 64

// throughput lets 64 writers write, and etcd's 64 writers after them, in turn. On both sides each writer
// has a connection of its own, to one of the three servers.
func (b *bench) throughput(ctx context.Context) error {
	const rounds, span = 3, 8 * time.Second
	var etcd *etcdCluster
	if b.etcdload != "" {
		var err error
		b.say("starting three etcd members")
		if etcd, err = startEtcd(ctx, filepath.Join(b.dir, "etcd")); err != nil {
			return err
		}
		defer etcd.stop()
	}
	var ours, costs, theirs, ratios []float64
	for i := range rounds {
		b.say("64 writers with a connection each, round %d of %d", i+1, rounds)
		mine, cost, err := b.rate(ctx, span)
		if err != nil {
			return err
		}
		ours, costs = append(ours, mine), append(costs, cost)
		if etcd == nil {
			continue
		}
		other, err := etcd.rate(ctx, b.etcdload, span)
		if err != nil {
			return err
		}
		theirs, ratios = append(theirs, other), append(ratios, mine/other)
	}
	b.report("64 writers, blocks committed, median of 3", median(ours), "/s", "")
	b.report("64 writers, CPU of the three agents for one block, median", median(costs), "us", "")
	if etcd != nil {
		b.report("64 writers, etcd puts of the same size, median of 3", median(theirs), "/s", "")
		b.report("64 writers, ratio to etcd, median of 3 pairs", median(ratios), "x", ">= 1")
	}
	return nil
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// rate returns the blocks committed a second by 64 writers, and the CPU time in microseconds that the
// agents spent on each. The machine's other work changes the first far more than the second.
func (b *bench) rate(ctx context.Context, span time.Duration) (blocks, micros float64, err error) {
	before, err := b.agentsCPU()
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	n, err := b.write(ctx, func(int) bool { return time.Since(begin) < span })
	if err != nil || n == 0 {
		return 0, 0, err
	}
	blocks = float64(n) / time.Since(begin).Seconds()
	after, err := b.agentsCPU()
	return blocks, float64((after - before).Microseconds()) / float64(n), err
}

// agentsCPU returns the CPU time that all agents have used.
func (b *bench) agentsCPU() (total time.Duration, err error) {
	for _, n := range b.fleet.Nodes() {
		cpu, _, err := usage(n.Agent.PID)
		if err != nil {
			return 0, err
		}
		total += cpu
	}
	return total, nil
}

// write lets 64 writers, spread over the nodes, block addresses while more(written) says so.
func (b *bench) write(ctx context.Context, more func(int) bool) (int, error) {
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		done  int
		taken int
		first error
	)
	take := func() (client.Target, bool) {
		mu.Lock()
		defer mu.Unlock()
		if first != nil || !more(taken) {
			return client.Target{}, false
		}
		taken++
		return b.target(), true
	}
	for w := range writers {
		wg.Go(func() {
			for {
				t, ok := take()
				if !ok {
					return
				}
				_, err := b.clients[w%len(b.clients)].AddBlock(ctx, client.BlockRequest{Target: t}, client.Write{})
				mu.Lock()
				if err == nil {
					done++
				} else if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return done, first
}

// scale fills the fleet and measures what that changes.
func (b *bench) scale(ctx context.Context) error {
	if b.blocks == 0 {
		return nil
	}
	// A fleet of its own, so that the figures are for just as many blocks as are named.
	if err := errors.Join(b.down(ctx), b.up(ctx)); err != nil {
		return err
	}
	if err := b.declareVMs(ctx, b.vms); err != nil {
		return err
	}
	few, _, err := b.oneByOne(ctx, 300)
	if err != nil {
		return err
	}
	b.say("loading %d blocks", b.blocks)
	begin := time.Now()
	if _, err := b.write(ctx, func(n int) bool { return n < b.blocks }); err != nil {
		return err
	}
	b.duration(fmt.Sprintf("load of %d blocks by 64 writers", b.blocks), time.Since(begin), "")
	many, _, err := b.oneByOne(ctx, 300)
	if err != nil {
		return err
	}
	b.duration("one more block with 0 to 300 held, median", quantile(few, 0.5), "")
	b.duration(fmt.Sprintf("one more block with %d held, median", b.next), quantile(many, 0.5), "")
	b.report("one more block, ratio", float64(quantile(many, 0.5))/float64(quantile(few, 0.5)), "x", "<= 1.5")
	var memory float64
	for _, n := range b.fleet.Nodes() {
		_, rss, err := usage(n.Agent.PID)
		if err != nil {
			return err
		}
		memory = max(memory, float64(rss)/(1<<20))
	}
	b.report("resident memory of the largest agent", memory, "MiB", "")
	return b.restarts(ctx)
}

func vmID(n int) string { return fmt.Sprintf("vm-%d", n) }

// vmRequest is the VM of a number up to 16 million.
func vmRequest(n int) client.VMRequest {
	return client.VMRequest{
		Name: fmt.Sprintf("customer-%d", n), Owner: fmt.Sprintf("acct-%d", n/3),
		Addresses: []string{fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255)},
	}
}

func (b *bench) declareVMs(ctx context.Context, n int) error {
	b.say("declaring %d VMs", n)
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += writers {
				_, errs[w] = b.clients[w%len(b.clients)].PutVM(ctx, vmID(i), vmRequest(i), client.Write{})
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// restarts measures an agent's way back to a kernel that is proven to equal the state: after a kill,
// with its rules still in the kernel, and after a reboot, with an empty kernel.
func (b *bench) restarts(ctx context.Context) error {
	node := b.fleet.Nodes()[2].Name
	for _, how := range []struct {
		name  string
		flush bool
	}{{"restart -> fully enforced, rules in the kernel", false}, {"restart -> fully enforced, empty kernel (reboot)", true}} {
		b.say("%s", how.name)
		if err := b.fleet.KillAgent(ctx, node, syscall.SIGKILL); err != nil {
			return err
		}
		if how.flush {
			if _, err := b.fleet.Exec(ctx, node, "nft", "flush", "ruleset"); err != nil {
				return err
			}
		}
		begin := time.Now()
		if err := b.fleet.StartAgent(ctx, node); err != nil {
			return err
		}
		if err := b.fleet.AwaitReady(ctx); err != nil {
			return err
		}
		b.duration(how.name, time.Since(begin), "< 5 s")
	}
	return nil
}
