package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// frames is what the main thread of a page did, frame by frame.
type frames struct {
	// work is, in milliseconds, how long the main thread was busy for each frame: with all of its tasks from the end of
	// the frame before to its own end: events and answers that came, timers, and the frame's script, style, layout and paint. cpu
	// is the time of the processor in it, without that in which other threads had it.
	work, cpu []float64
	tasks     []float64          // of 5 ms and more, in milliseconds
	busy      map[string]float64 // milliseconds by what for
	span      float64            // milliseconds from the first frame's end to the last one's
}

func (f *frames) add(g frames) {
	f.work, f.cpu, f.tasks = append(f.work, g.work...), append(f.cpu, g.cpu...), append(f.tasks, g.tasks...)
	f.span += g.span
	if f.busy == nil {
		f.busy = map[string]float64{}
	}
	for k, v := range g.busy {
		f.busy[k] += v
	}
}

// traceCategories are those of the trace that readFrames reads.
func traceCategories() []string {
	return []string{"-*", "devtools.timeline", "disabled-by-default-devtools.timeline", "v8"}
}

// traceEvent is one of a trace in Chromium's JSON format; times are in microseconds.
type traceEvent struct {
	Name string  `json:"name"`
	Ph   string  `json:"ph"`
	Ts   float64 `json:"ts"`
	Dur  float64 `json:"dur"`
	TDur float64 `json:"tdur"` // of the thread's own processor time
	PID  int     `json:"pid"`
	TID  int     `json:"tid"`
}

func (e traceEvent) end() float64 { return e.Ts + e.Dur }

type thread struct{ pid, tid int }

const (
	taskEvent  = "RunTask"
	frameEvent = "FireAnimationFrame"
	longTask   = 5 // milliseconds: shorter ones are not told apart
)

// readFrames reads a trace. Of all threads in it the page's main one is that with the most animation frames.
func readFrames(r io.Reader) (frames, error) {
	threads := map[thread][]traceEvent{}
	shown := map[thread]int{}
	err := eachEvent(r, func(e traceEvent) {
		if e.Ph != "X" {
			return
		}
		t := thread{e.PID, e.TID}
		threads[t] = append(threads[t], e)
		if e.Name == frameEvent {
			shown[t]++
		}
	})
	if err != nil {
		return frames{}, err
	}
	var main thread
	for t, n := range shown {
		if n > shown[main] {
			main = t
		}
	}
	if shown[main] == 0 {
		return frames{}, errors.New("the trace has no animation frame")
	}
	return framesOf(threads[main]), nil
}

func eachEvent(r io.Reader, f func(traceEvent)) error {
	dec := json.NewDecoder(r)
	for {
		t, err := dec.Token()
		if err != nil {
			return fmt.Errorf("read the trace: %w", err)
		}
		if t == "traceEvents" {
			break
		}
	}
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("read the trace: %w", err)
	}
	for dec.More() {
		var e traceEvent
		if err := dec.Decode(&e); err != nil {
			return fmt.Errorf("read the trace: %w", err)
		}
		f(e)
	}
	return nil
}

// framesOf cuts one thread's events into frames. What came before the first frame's end and after the last one's is left out.
func framesOf(events []traceEvent) frames {
	slices.SortStableFunc(events, func(a, b traceEvent) int {
		return cmp.Or(cmp.Compare(a.Ts, b.Ts), cmp.Compare(b.Dur, a.Dur))
	})
	f := frames{busy: map[string]float64{}}
	var work, cpu, first, last float64
	begun := false
	for i := 0; i < len(events); {
		task := events[i]
		n := i + 1
		for n < len(events) && events[n].Ts < task.end() {
			n++
		}
		inside := events[i:n]
		i = n
		if task.Name != taskEvent {
			continue
		}
		work, cpu = work+task.Dur/1e3, cpu+task.TDur/1e3
		if begun {
			share(inside, f.busy)
			if task.Dur >= longTask*1e3 {
				f.tasks = append(f.tasks, task.Dur/1e3)
			}
		}
		if !slices.ContainsFunc(inside, func(e traceEvent) bool { return e.Name == frameEvent }) {
			continue
		}
		if last = task.end(); begun {
			f.work, f.cpu = append(f.work, work), append(f.cpu, cpu)
		} else {
			begun, first = true, last
		}
		work, cpu = 0, 0
	}
	f.span = (last - first) / 1e3
	return f
}

// share adds the time of a task's events, each without those inside of it, to what it was for.
func share(events []traceEvent, busy map[string]float64) {
	var open []traceEvent
	for _, e := range events {
		for len(open) > 0 && open[len(open)-1].end() <= e.Ts {
			open = open[:len(open)-1]
		}
		if len(open) > 0 {
			busy[purpose(open[len(open)-1].Name)] -= e.Dur / 1e3
		}
		busy[purpose(e.Name)] += e.Dur / 1e3
		open = append(open, e)
	}
}

// purpose says what an event of the trace is for.
func purpose(name string) string {
	switch name {
	case "FunctionCall", "EvaluateScript", "RunMicrotasks", "TimerFire", frameEvent, "EventDispatch", "v8.callFunction", "v8.run", "V8.InvokeApiInterruptCallbacks":
		return "script"
	case "UpdateLayoutTree", "RecalculateStyles":
		return "style"
	case "Layout":
		return "layout"
	case "PrePaint", "Paint", "Layerize", "Commit", "UpdateLayer":
		return "paint"
	}
	if len(name) > 5 && (name[:5] == "V8.GC" || name == "MinorGC" || name == "MajorGC") {
		return "garbage collection"
	}
	return "other"
}
