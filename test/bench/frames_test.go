package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestFramesOfATrace(t *testing.T) {
	t.Parallel()
	// Thread 2 of process 1 is the page's: three frames, of which the first only says where the second begins. Between the second and
	// the third there is a task of a timer. Thread 3 works too, and is none of the page's.
	const trace = `{"metadata":{"a":[1]},"traceEvents":[
		{"ph":"M","pid":1,"tid":2,"name":"thread_name","args":{"name":"x"}},
		{"ph":"X","pid":1,"tid":3,"name":"RunTask","ts":0,"dur":900000,"tdur":1},
		{"ph":"X","pid":1,"tid":2,"name":"RunTask","ts":0,"dur":9000,"tdur":9000},
		{"ph":"X","pid":1,"tid":2,"name":"FireAnimationFrame","ts":10,"dur":10},
		{"ph":"X","pid":1,"tid":2,"name":"RunTask","ts":16000,"dur":6000,"tdur":2000},
		{"ph":"X","pid":1,"tid":2,"name":"FireAnimationFrame","ts":16100,"dur":1000},
		{"ph":"X","pid":1,"tid":2,"name":"FunctionCall","ts":16200,"dur":600},
		{"ph":"X","pid":1,"tid":2,"name":"Layout","ts":16300,"dur":400},
		{"ph":"X","pid":1,"tid":2,"name":"Paint","ts":18000,"dur":3000},
		{"ph":"X","pid":1,"tid":2,"name":"RunTask","ts":40000,"dur":60000,"tdur":50000},
		{"ph":"X","pid":1,"tid":2,"name":"TimerFire","ts":40000,"dur":60000},
		{"ph":"X","pid":1,"tid":2,"name":"RunTask","ts":110000,"dur":1000,"tdur":1000},
		{"ph":"X","pid":1,"tid":2,"name":"FireAnimationFrame","ts":110100,"dur":100},
		{"ph":"X","pid":1,"tid":2,"name":"RunTask","ts":120000,"dur":4000,"tdur":1000}
	]}`
	f, err := readFrames(strings.NewReader(trace))
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, got float64, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	if len(f.work) != 2 || len(f.cpu) != 2 || len(f.tasks) != 2 {
		t.Fatalf("%+v", f)
	}
	check("work of the second frame", f.work[0], 6)
	check("its CPU time", f.cpu[0], 2)
	check("work for the third, with the timer before it", f.work[1], 61)
	check("its CPU time", f.cpu[1], 51)
	check("the longest task", f.tasks[1], 60)
	check("span", f.span, 102)
	check("script", f.busy["script"], 1-0.4+60+0.1)
	check("layout", f.busy["layout"], 0.4)
	check("paint", f.busy["paint"], 3)
	// What is left of the tasks: 2 ms of the second frame, 0.9 of the third, 4 of the task at the end.
	check("other", f.busy["other"], 2+0.9+4)
}

func TestATraceWithoutFramesIsAnError(t *testing.T) {
	t.Parallel()
	for _, trace := range []string{``, `{}`, `{"traceEvents":[]}`, `{"traceEvents":[{"ph":"X","name":"RunTask"}]}`, `{"traceEvents":[{"ph":"X"`} {
		if f, err := readFrames(strings.NewReader(trace)); err == nil {
			t.Errorf("%s gives %+v", trace, f)
		}
	}
}

func TestSlope(t *testing.T) {
	t.Parallel()
	var list []memory
	for i := range 10 {
		list = append(list, memory{at: time.Duration(i) * 30 * time.Second, bytes: float64(5+3*i) * (1 << 20), nodes: 100})
	}
	if got := slope(list, memory.heap); math.Abs(got-6) > 1e-9 {
		t.Errorf("heap grows %v MiB a minute, want 6", got)
	}
	if got := slope(list, memory.dom); math.Abs(got) > 1e-9 {
		t.Errorf("nodes grow %v a minute, want 0", got)
	}
}
