package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/chromedp/cdproto/css"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/heapprofiler"
	cdpio "github.com/chromedp/cdproto/io"
	cdplog "github.com/chromedp/cdproto/log"
	cdpmemory "github.com/chromedp/cdproto/memory"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/tracing"
	"github.com/chromedp/chromedp"

	"github.com/palisade/palisade/test/chromium"
)

//go:embed tap.js
var tapSource string

const (
	pagePatience = time.Minute
	traceSpan    = 10 * time.Second // of one trace: longer ones are large
	memoryGap    = 30 * time.Second // between two looks at the memory, at least
)

// page is the page of a node in Chromium.
type page struct {
	browser *chromium.Browser
	base    string
	keep    string // directory for traces and pictures, or empty
	began   time.Time
	traces  chan *tracing.EventTracingComplete
}

// tapped is what tap.js counts.
type tapped struct {
	Events   int     `json:"events"`
	Repeated int     `json:"repeated"`
	Resets   int     `json:"resets"`
	Streams  int     `json:"streams"`
	Usable   float64 `json:"usable"`
	Frames   int     `json:"frames"`
	Missed   int     `json:"missed"`
	Requests map[string]struct {
		Count int     `json:"count"`
		Bytes float64 `json:"bytes"`
	} `json:"requests"`
	Document float64 `json:"document"` // bytes of the page itself
	Delays   []int   `json:"delays"`   // events by how long after their commit the page read them, in steps of 5 ms
}

func (t tapped) bytes() (all, files float64) {
	all, files = t.Document, t.Document
	for path, r := range t.Requests {
		all += r.Bytes
		if !strings.HasPrefix(path, "/v1/") {
			files += r.Bytes
		}
	}
	return all, files
}

// delay is how long after their commit the page had read the share q of the events, in milliseconds.
func (t tapped) delay(q float64) float64 {
	sum := 0
	for i, n := range t.Delays {
		if sum += n; float64(sum) >= q*float64(t.Events) {
			return float64(i+1) * 5
		}
	}
	return 0
}

func (t tapped) requests() (count, size float64) {
	for _, r := range t.Requests {
		count += float64(r.Count)
		size += r.Bytes
	}
	return count, size
}

// memory is what the page has after a garbage collection.
type memory struct {
	at    time.Duration // since the browser began
	bytes float64
	nodes int64
}

func (m memory) heap() float64 { return m.bytes / (1 << 20) }
func (m memory) dom() float64  { return float64(m.nodes) }

// watched is what was seen in a stretch.
type watched struct {
	frames
	drawn, missed      int
	requests, received float64
	memory             []memory
}

// openPage starts a browser and readies the tap: it counts events of the actor, and takes the page for usable when so many nodes are shown.
func openPage(ctx context.Context, base, actor string, nodes int, keep string) (*page, error) {
	p := &page{base: base, keep: keep, began: time.Now(), traces: make(chan *tracing.EventTracingComplete, 1)}
	var err error
	if p.browser, err = chromium.Start(ctx, pagePatience, func(ev any) {
		if e, ok := ev.(*tracing.EventTracingComplete); ok {
			p.traces <- e
		}
	}); err != nil {
		return nil, err
	}
	name, err := json.Marshal(actor)
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	tap := strings.NewReplacer("ACTOR", string(name), "NODES", strconv.Itoa(nodes)).Replace(tapSource)
	err = p.run(ctx,
		emulation.SetDeviceMetricsOverride(1440, 900, 1, false),
		do(func(ctx context.Context) error {
			_, err := cdppage.AddScriptToEvaluateOnNewDocument(tap).Do(ctx)
			return err
		}),
	)
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *page) close() error { return p.browser.Close() }

type do = chromedp.ActionFunc

// run runs actions in the page, until the context ends or pagePatience is at its end.
func (p *page) run(ctx context.Context, actions ...chromedp.Action) error {
	tab, cancel := context.WithTimeout(p.browser.Page, pagePatience)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	return chromedp.Run(tab, actions...) //nolint:contextcheck // the page is in the context of chromedp; ctx ends it too
}

// js evaluates an expression, a promise too.
func (p *page) js(ctx context.Context, expression string, out any) error {
	err := p.run(ctx, chromedp.Evaluate(expression, out, func(e *runtime.EvaluateParams) *runtime.EvaluateParams { return e.WithAwaitPromise(true) }))
	if err != nil {
		return fmt.Errorf("evaluate %s: %w", expression, err)
	}
	return nil
}

// until waits until an expression is true.
func (p *page) until(ctx context.Context, what, expression string) error {
	for deadline := time.Now().Add(pagePatience); ; time.Sleep(50 * time.Millisecond) {
		var ok bool
		if err := p.js(ctx, "!!("+expression+")", &ok); err != nil || ok {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %s", pagePatience, what)
		}
	}
}

// login starts a session and shows the overview.
func (p *page) login(ctx context.Context, user, password string) error {
	body, err := json.Marshal(map[string]string{"user": user, "password": password})
	if err != nil {
		return err
	}
	// What chromedp listens to by itself is turned off: the page would pay for it.
	if err := p.run(ctx, chromedp.Navigate(p.base+"/favicon.svg"), css.Disable(), dom.Disable(), network.Disable(), cdplog.Disable()); err != nil {
		return err
	}
	var status int
	err = p.js(ctx, fmt.Sprintf(`fetch('/v1/login', {method: 'POST', headers: {'Content-Type': 'application/json', 'Palisade-CSRF': '1'}, body: JSON.stringify(%s)}).then(r => r.status)`, body), &status)
	if err == nil && status/100 != 2 {
		err = fmt.Errorf("login: HTTP %d", status)
	}
	return err
}

// load loads the overview with an empty cache and waits until it is usable.
func (p *page) load(ctx context.Context) (tapped, error) {
	err := p.run(ctx, network.ClearBrowserCache(), chromedp.Navigate(p.base+"/"))
	if err == nil {
		err = p.until(ctx, "the page is usable", "palisadeBench.usable")
	}
	if err != nil {
		return tapped{}, err
	}
	return p.tap(ctx)
}

func (p *page) tap(ctx context.Context) (t tapped, err error) {
	return t, p.js(ctx, "({...palisadeBench, document: performance.getEntriesByType('navigation')[0].transferSize})", &t)
}

// settled returns the counts when no event has come for two seconds.
func (p *page) settled(ctx context.Context) (tapped, error) {
	deadline := time.Now().Add(pagePatience)
	for last, since := -1, time.Now(); ; time.Sleep(100 * time.Millisecond) {
		t, err := p.tap(ctx)
		if err != nil {
			return t, err
		}
		if t.Events != last {
			last, since = t.Events, time.Now()
		}
		if time.Since(since) > 2*time.Second {
			return t, nil
		}
		if time.Now().After(deadline) {
			return t, errors.New("events keep coming though nothing is changed")
		}
	}
}

// visit goes to a stretch's place, as a click on a link does, and waits until it is shown.
func (p *page) visit(ctx context.Context, s stretch) error {
	path, err := json.Marshal(s.path)
	if err != nil {
		return err
	}
	var ok bool
	err = p.js(ctx, fmt.Sprintf(`(() => { const a = document.createElement('a'); a.href = %s; document.body.append(a); a.click(); a.remove(); return true })()`, path), &ok)
	if err == nil {
		err = p.until(ctx, s.name+" is shown", `document.querySelector('main')?.innerText.trim().length > 100 && !document.querySelector('main [aria-busy=true]')`)
	}
	if err == nil && s.scroll {
		// 8 pixels a frame, to the end of what is there and on from the beginning.
		err = p.js(ctx, `(() => { const box = document.querySelector('.scroller'); const step = () => { if (!box.isConnected) return;
			box.scrollTop += 8; if (box.scrollTop + box.clientHeight >= box.scrollHeight - 8) box.scrollTop = 0; requestAnimationFrame(step) }; step(); return true })()`, &ok)
	}
	return err
}

// watch looks at what is shown for a while.
func (p *page) watch(ctx context.Context, name string, span time.Duration) (w watched, err error) {
	var measured time.Time
	for end := time.Now().Add(span); time.Until(end) > time.Second || len(w.work) == 0; {
		before, err := p.tap(ctx)
		if err != nil {
			return w, err
		}
		trace, err := p.trace(ctx, max(min(traceSpan, time.Until(end)), time.Second))
		if err != nil {
			return w, err
		}
		after, err := p.tap(ctx)
		if err != nil {
			return w, err
		}
		f, err := readFrames(bytes.NewReader(trace))
		if err != nil {
			return w, err
		}
		if p.keep != "" && len(w.work) == 0 {
			if err := p.keepThis(ctx, name, trace); err != nil {
				return w, err
			}
		}
		w.add(f)
		w.drawn, w.missed = w.drawn+after.Frames-before.Frames, w.missed+after.Missed-before.Missed
		count, size := after.requests()
		count0, size0 := before.requests()
		w.requests, w.received = w.requests+count-count0, w.received+size-size0
		// At first when the page has settled.
		if time.Since(measured) > memoryGap || time.Until(end) < time.Second && time.Since(measured) > time.Second {
			m, err := p.memory(ctx)
			if err != nil {
				return w, err
			}
			w.memory, measured = append(w.memory, m), time.Now()
		}
	}
	return w, nil
}

// trace records what the page's threads do.
func (p *page) trace(ctx context.Context, span time.Duration) ([]byte, error) {
	categories := traceCategories()
	if p.keep != "" {
		categories = append(categories, "disabled-by-default-v8.cpu_profiler", "disabled-by-default-devtools.timeline.frame", "blink.user_timing")
	}
	err := p.run(ctx, tracing.Start().WithTransferMode(tracing.TransferModeReturnAsStream).WithTraceConfig(&tracing.TraceConfig{IncludedCategories: categories}))
	if err != nil {
		return nil, err
	}
	time.Sleep(span)
	if err := p.run(ctx, tracing.End()); err != nil {
		return nil, err
	}
	var done *tracing.EventTracingComplete
	select {
	case done = <-p.traces:
	case <-time.After(pagePatience):
		return nil, errors.New("the browser does not give the trace")
	}
	if done.DataLossOccurred {
		return nil, errors.New("the browser lost a part of the trace")
	}
	var out []byte
	return out, p.run(ctx, do(func(ctx context.Context) error {
		for {
			var r cdpio.ReadReturns
			if err := chromedp.FromContext(ctx).Target.Execute(ctx, cdpio.CommandRead, cdpio.Read(done.Stream).WithSize(1<<20), &r); err != nil {
				return err
			}
			chunk := []byte(r.Data)
			if r.Base64encoded {
				var err error
				if chunk, err = base64.StdEncoding.DecodeString(r.Data); err != nil {
					return err
				}
			}
			if out = append(out, chunk...); r.EOF {
				return cdpio.Close(done.Stream).Do(ctx)
			}
		}
	}))
}

// keepThis writes a trace and a picture.
func (p *page) keepThis(ctx context.Context, name string, trace []byte) error {
	name = strings.NewReplacer(" ", "-", ",", "").Replace(name)
	if err := os.MkdirAll(p.keep, 0o755); err != nil {
		return err
	}
	var png []byte
	if err := p.run(ctx, chromedp.CaptureScreenshot(&png)); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(p.keep, name+".json"), trace, 0o644),
		os.WriteFile(filepath.Join(p.keep, name+".png"), png, 0o644))
}

// memory collects garbage and says what is left.
func (p *page) memory(ctx context.Context) (m memory, err error) {
	m.at = time.Since(p.began)
	return m, p.run(ctx, heapprofiler.CollectGarbage(), do(func(ctx context.Context) (err error) {
		m.bytes, _, _, _, err = runtime.GetHeapUsage().Do(ctx)
		return err
	}), do(func(ctx context.Context) (err error) {
		_, m.nodes, _, err = cdpmemory.GetDOMCounters().Do(ctx)
		return err
	}))
}
