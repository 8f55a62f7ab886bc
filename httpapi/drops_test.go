package httpapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/apitest"
	"github.com/palisade/palisade/httpapi/wire"
)

// plotText is a series in short: the last four steps, "-" for what is not known.
func plotText(d wire.DropSeries) string {
	text := []string{d.Node, d.Reason + d.Block}
	for _, v := range d.Packets[len(d.Packets)-4:] {
		if v == nil {
			text = append(text, "-")
		} else {
			text = append(text, fmt.Sprint(*v))
		}
	}
	return strings.Join(text, " ")
}

func TestDropsOfAllNodesAreLaidBesideEachOther(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 7, 0, time.UTC)
	end := now.Truncate(10 * time.Second)
	f := newFleet(t, "n2", "n3", "n4")
	series := func(reason string, packets ...uint64) fsm.DropSeries {
		s := fsm.DropSeries{Reason: reason, Packets: packets}
		for _, p := range packets {
			s.Bytes = append(s.Bytes, 100*p)
		}
		return s
	}
	f.Peers["n1"].Dropped = &fsm.Drops{Step: 10 * time.Second, End: end, Steps: 3, Series: []fsm.DropSeries{series("abuse", 0, 10, 25), series("unpaid", 1, 0, 0)}}
	f.Peers["n2"].Dropped = &fsm.Drops{Step: 10 * time.Second, End: end.Add(-10 * time.Second), Steps: 2, Series: []fsm.DropSeries{series("abuse", 20, 40)}}
	f.Peers["n4"].Down = true
	s := newServer(t, f, func(o *Options) { o.Now = func() time.Time { return now } })
	d := decode[wire.Drops](t, s.do(t, request{method: "GET", path: "/v1/drops?since=10m"}), 200)
	if d.Step != 10 || d.Points != 60 || !d.From.Equal(end.Add(-10*time.Minute)) || len(d.Known) != 2 || len(d.Silent) != 2 || !d.Known[0].From.Equal(end.Add(-30*time.Second)) {
		t.Fatalf("%+v", d)
	}
	var got []string
	for _, s := range d.Series {
		got = append(got, plotText(s))
	}
	if want := fmt.Sprint([]string{"n1 abuse - 0 1 2.5", "n1 unpaid - 0.1 0 0", "n2 abuse - 2 4 -"}); fmt.Sprint(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
	if b := d.Series[0].Bytes[59]; b == nil || *b != 250 {
		t.Errorf("bytes %v", b)
	}
	var before, after int
	f.Set(func() { before = f.Peers["n1"].Asked })
	one := decode[wire.Drops](t, s.do(t, request{method: "GET", path: "/v1/drops?node=n2"}), 200)
	if len(one.Series) != 1 || one.Series[0].Node != "n2" || one.Points != 360 || len(one.Silent) != 0 {
		t.Errorf("of n2: %+v", one)
	}
	decode[wire.Node](t, s.do(t, request{method: "GET", path: "/v1/nodes/n2"}), 200)
	if f.Set(func() { after = f.Peers["n1"].Asked }); after != before {
		t.Errorf("n1 was asked %d times for what n2 knows", after-before)
	}
	day := decode[wire.Drops](t, s.do(t, request{method: "GET", path: "/v1/drops?since=24h"}), 200)
	if day.Step != 300 || day.Points != 288 || len(day.Series) != 0 {
		t.Errorf("of a day: %d series, step %d, %d points", len(day.Series), day.Step, day.Points)
	}
	f.Set(func() {
		if q := f.Peers["n1"].LastAsk.Drops; q == nil || !q.Coarse {
			t.Errorf("asked for %+v", q)
		}
	})
	for query, want := range map[string]int{"since=25h": 422, "since=1s": 422, "since=x": 422, "node=none": 404} {
		decode[wire.Problem](t, s.do(t, request{method: "GET", path: "/v1/drops?" + query}), want)
	}
}

func TestOfManyNodesTheLeastAreSummed(t *testing.T) {
	f := newFleet(t)
	now := time.Now()
	end := now.Truncate(10 * time.Second)
	for i := range 20 {
		id := fmt.Sprintf("m%02d", i)
		f.Set(func() {
			f.Peers[id] = &apitest.Member{Member: fsm.Member{ID: id, Alive: true}, Dropped: &fsm.Drops{Step: 10 * time.Second, End: end, Steps: 1,
				Series: []fsm.DropSeries{{Reason: "abuse", Packets: []uint64{uint64(10 * (20 - i))}, Bytes: []uint64{1}}}}}
		})
	}
	s := newServer(t, f, func(o *Options) { o.Now = func() time.Time { return now } })
	d := decode[wire.Drops](t, s.do(t, request{method: "GET", path: "/v1/drops"}), 200)
	if len(d.Series) != mostDropNodes+1 || plotText(d.Series[0]) != " abuse - - - 10" || plotText(d.Series[1]) != "m00 abuse - - - 20" {
		t.Errorf("%d series, the first %q", len(d.Series), plotText(d.Series[0]))
	}
}

func TestDropsOfABlockAndOfAVM(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	f.RunVM("vm-2", "free", "n1", "192.0.2.8")
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: "abuse"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "192.0.2.7")}})
	end := time.Now().Truncate(10 * time.Second)
	f.Peers["n1"].Dropped = &fsm.Drops{Step: 10 * time.Second, End: end, Steps: 1, Series: []fsm.DropSeries{{Block: "b1", Packets: []uint64{50}, Bytes: []uint64{500}}}}
	s := newServer(t, f)
	for path, want := range map[string]string{"/v1/blocks/b1/drops": "[b1]", "/v1/vms/web/drops": "[b1 b2]", "/v1/vms/vm-2/drops": "[]"} {
		d := decode[wire.Drops](t, s.do(t, request{method: "GET", path: path}), 200)
		f.Set(func() {
			if got := fmt.Sprint(f.Peers["n1"].LastAsk.Drops.Blocks); got != want {
				t.Errorf("%s: asked for %s, want %s", path, got, want)
			}
		})
		if len(d.Series) != 1 || d.Series[0].Block != "b1" || d.Points != 360 {
			t.Errorf("%s: %+v", path, d.Series)
		}
	}
	if d := decode[wire.Drops](t, s.do(t, request{method: "GET", path: "/v1/vms/web/drops?since=24h"}), 200); d.Step != 300 || d.Points != 288 {
		t.Errorf("of a day: %+v", d)
	}
	decode[wire.Problem](t, s.do(t, request{method: "GET", path: "/v1/blocks/b9/drops"}), 404)
	decode[wire.Problem](t, s.do(t, request{method: "GET", path: "/v1/vms/none/drops"}), 404)
}
