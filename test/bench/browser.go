package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

const (
	browserBlocks = 2_000
	browserUser   = "bench"
	browserSecret = "correct horse battery staple"
	usableLoads   = 5
)

// stretch is a part of the time in the browser.
type stretch struct {
	name, path string
	share      float64 // of the whole
	scroll     bool    // through the table
}

// stretches begin and end with the same page, so that its memory can be compared over the whole time.
func stretches() []stretch {
	return []stretch{
		{"overview", "/", 0.35, false},
		{"VMs", "/vms", 0.15, false},
		{"VMs, scrolled", "/vms?sort=id", 0.15, true},
		{"blacklist", "/blacklist", 0.2, false},
		{"overview again", "/", 0.15, false},
	}
}

// browser measures the page in Chromium while the fleet is busy.
func (b *bench) browser(ctx context.Context) (err error) {
	if b.browserFor == 0 {
		return nil
	}
	if b.browserFor < 30*time.Second {
		return errors.New("-browser-for: half a minute or more")
	}
	// A fleet of its own, so that the figures are for just as many VMs as are named.
	if err := errors.Join(b.down(ctx), b.up(ctx)); err != nil {
		return err
	}
	if err := b.declareVMs(ctx, b.browserVMs); err != nil {
		return err
	}
	busy, err := b.busy(ctx)
	if err != nil {
		return err
	}
	if err := busy.fill(ctx, browserBlocks); err != nil {
		return err
	}
	node := b.fleet.Nodes()[0]
	if err := b.fleet.Call(ctx, node.Name, "PUT", "/v1/users/"+browserUser, map[string]string{"scope": "operator", "password": browserSecret}, nil); err != nil {
		return err
	}
	p, err := openPage(ctx, node.API, busy.actor, len(b.clients), b.browserKeep)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.login(ctx, browserUser, browserSecret); err != nil {
		return err
	}
	b.say("loading the first page %d times", usableLoads)
	if err := b.firstPage(ctx, p, "first page"); err != nil {
		return err
	}
	b.say("the same with %d events a second", b.browserRate)
	if err := busy.during(ctx, b.browserRate, func() error {
		return b.firstPage(ctx, p, fmt.Sprintf("first page with %d events/s", b.browserRate))
	}); err != nil {
		return err
	}
	// Quiet for a moment, so that it is known which events the page should get.
	past, err := p.settled(ctx)
	if err != nil {
		return err
	}
	before, began := busy.sent, time.Now()
	if err := busy.during(ctx, b.browserRate, func() error { return b.watch(ctx, p) }); err != nil {
		return err
	}
	sent := busy.sent - before
	b.report("changes made a second", float64(sent)/time.Since(began).Seconds(), "/s", strconv.Itoa(b.browserRate))
	b.report("a change begins late by at most", busy.late.Seconds()*1e3, "ms", "")
	tap, err := p.settled(ctx)
	if err != nil {
		return err
	}
	b.report("events that the page should get", float64(sent), "", "")
	b.report("events that the page got", float64(tap.Events-past.Events), "", "all")
	b.report("commit -> the page has read the event, p50 (steps of 5 ms)", tap.delay(0.5), "ms", "")
	b.report("commit -> the page has read the event, p99 (steps of 5 ms)", tap.delay(0.99), "ms", "")
	b.report("events that the page got twice", float64(tap.Repeated), "", "0")
	b.report("times that its feed began anew", float64(tap.Resets), "", "0")
	b.report("times that it connected again", float64(tap.Streams-1), "", "0")
	return nil
}

// busy prepares changes by a token of their own, whose name the events carry.
func (b *bench) busy(ctx context.Context) (*steady, error) {
	token, err := b.clients[0].CreateToken(ctx, client.TokenRequest{Name: "busy", Scope: "operator"})
	if err != nil {
		return nil, err
	}
	roots, err := b.fleet.Roots()
	if err != nil {
		return nil, err
	}
	s := &steady{vms: b.browserVMs, target: b.target}
	for _, n := range b.fleet.Nodes() {
		c, err := client.New(client.Options{URL: n.API, Token: token.Secret, RootCAs: roots, RetryFor: 20 * time.Second})
		if err != nil {
			return nil, err
		}
		// The node knows the token once it has applied its creation.
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err = c.Status(ctx); err == nil {
				break
			}
			if time.Now().After(deadline) {
				return nil, err
			}
		}
		s.clients = append(s.clients, c)
	}
	return s, nil
}

// firstPage loads the overview with an empty cache, a few times.
func (b *bench) firstPage(ctx context.Context, p *page, what string) error {
	var usable, size, assets []float64
	for range usableLoads {
		tap, err := p.load(ctx)
		if err != nil {
			return err
		}
		usable = append(usable, tap.Usable)
		all, files := tap.bytes()
		size, assets = append(size, all/1024), append(assets, files/1024)
	}
	b.report(what+": usable after, median of 5", median(usable), "ms", "< 1000")
	b.report(what+": usable after, worst of 5", slices.Max(usable), "ms", "")
	b.report(what+": transferred until then", slices.Max(size), "KiB", "< 300")
	b.report(what+": of that files, the rest is answers of the API", slices.Max(assets), "KiB", "")
	return nil
}

// watch goes through the stretches.
func (b *bench) watch(ctx context.Context, p *page) error {
	var overview []memory
	for _, s := range stretches() {
		span := time.Duration(float64(b.browserFor) * s.share)
		b.say("watching: %s, for %v", s.name, span)
		cpu, err := b.eachAgentCPU()
		if err != nil {
			return err
		}
		began := time.Now()
		if err := p.visit(ctx, s); err != nil {
			return err
		}
		seen, err := p.watch(ctx, s.name, span)
		if err != nil {
			return err
		}
		after, err := b.eachAgentCPU()
		if err != nil {
			return err
		}
		b.frames(s.name, seen)
		for i := range cpu {
			b.report(fmt.Sprintf("%s: CPU of the agent of %s", s.name, b.fleet.Nodes()[i].Name), (after[i]-cpu[i]).Seconds()/time.Since(began).Seconds()*100, "% of core", "")
		}
		b.memory(s.name, seen.memory)
		if s.path == "/" {
			overview = append(overview, seen.memory...)
		}
	}
	b.report("overview, from its first look to the last: JS heap grows", slope(overview, memory.heap), "MiB/min", "~ 0")
	b.report("overview, from its first look to the last: DOM nodes grow", slope(overview, memory.dom), "/min", "~ 0")
	return nil
}

func (b *bench) eachAgentCPU() (each []time.Duration, err error) {
	for _, n := range b.fleet.Nodes() {
		cpu, _, err := usage(n.Agent.PID)
		if err != nil {
			return nil, err
		}
		each = append(each, cpu)
	}
	return each, nil
}

// frames reports what the main thread did for each frame.
func (b *bench) frames(name string, s watched) {
	work := func(list []float64, q float64) float64 {
		list = slices.Sorted(slices.Values(list))
		return list[min(len(list)-1, int(q*float64(len(list))))]
	}
	b.report(name+": work for a frame, p50", work(s.work, 0.5), "ms", "")
	b.report(name+": work for a frame, p95", work(s.work, 0.95), "ms", "< 16")
	b.report(name+": the same in CPU time, p95", work(s.cpu, 0.95), "ms", "")
	b.report(name+": work for a frame, p99", work(s.work, 0.99), "ms", "")
	b.report(name+": work for a frame, worst", slices.Max(s.work), "ms", "")
	long := 0
	for _, t := range s.tasks {
		if t >= 50 {
			long++
		}
	}
	b.report(name+": longest task", slices.Max(append(s.tasks, 0)), "ms", "")
	b.report(name+": tasks of 50 ms and more, a minute", float64(long)/s.span*60e3, "/min", "")
	b.report(name+": frames that were due at 60 Hz and missed", 100*float64(s.missed)/float64(max(1, s.missed+s.drawn)), "%", "")
	for _, k := range slices.Sorted(maps.Keys(s.busy)) {
		b.report(name+": main thread busy with "+k, s.busy[k]/s.span*100, "%", "")
	}
	b.report(name+": requests", s.requests/s.span*60e3, "/min", "")
	b.report(name+": answers", s.received/s.span*60e3/1024, "KiB/min", "")
}

func (b *bench) memory(name string, list []memory) {
	for _, m := range list {
		b.report(fmt.Sprintf("%s: JS heap after garbage collection, %v in", name, m.at.Round(time.Second)), m.heap(), "MiB", "")
		b.report(fmt.Sprintf("%s: DOM nodes, %v in", name, m.at.Round(time.Second)), m.dom(), "", "")
	}
	if len(list) > 2 {
		b.report(name+": JS heap grows", slope(list, memory.heap), "MiB/min", "~ 0")
	}
}

// slope is that of the line of least squares, a minute.
func slope(list []memory, of func(memory) float64) float64 {
	var x, y, xx, xy float64
	for _, m := range list {
		t, v := m.at.Minutes(), of(m)
		x, y, xx, xy = x+t, y+v, xx+t*t, xy+t*v
	}
	n := float64(len(list))
	return (n*xy - x*y) / (n*xx - x*x)
}
