package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

func listSource(url string) *fsm.ListSource {
	return &fsm.ListSource{URL: url, Interval: time.Hour, MaxBytes: 1 << 20}
}

// TestSourcesAreSealed: the URL of a source reaches the state without its secrets, whichever node takes the write and
// however often; those who have the key have the whole.
func TestSourcesAreSealed(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 4).start().ready()
	_, followers := f.split()
	out := followers[0]
	out.propose(fsm.Command{Actor: "test", Op: fsm.BeginList{Upload: "u", Name: "feed"}})
	out.propose(fsm.Command{Actor: "test", Key: "commit", Op: fsm.CommitList{Upload: "u"}})
	is := func() fsm.ListSource {
		l, _, _ := out.store.View().List("feed")
		return l.Source
	}

	whole := "https://ann:pass@feeds.example/drop.txt?key=1"
	first := fsm.Command{Actor: "test", Key: "once", Op: fsm.DescribeList{Name: "feed", Source: listSource(whole)}}
	index := out.propose(first).Index
	f.agree(index)
	s := is()
	if s.URL != "https://ann:xxxxx@feeds.example/drop.txt?xxxxx" || s.Sealed == "" || strings.Contains(s.Sealed, "pass") || s.Interval != time.Hour || s.MaxBytes != 1<<20 {
		t.Errorf("the source is %+v", s)
	}
	if got, err := f.leader().c.SourceURL("feed", s); got != whole || err != nil {
		t.Errorf("the leader has %q, %v", got, err)
	}
	if f.leader() == f.nodes[0] {
		f.nodes[1].propose(first)
	} else {
		f.nodes[0].propose(first)
	}
	if is() != s {
		t.Errorf("repeated, it is %+v, was %+v", is(), s)
	}

	// The key may be for one list, and one URL.
	if _, err := f.leader().c.SourceURL("other", s); !errors.Is(err, pki.ErrSealed) {
		t.Errorf("opened for another list: %v", err)
	}
	moved := s
	moved.URL = "https://ann:xxxxx@elsewhere.example/drop.txt?xxxxx"
	if _, err := f.leader().c.SourceURL("feed", moved); err == nil {
		t.Error("what is shown is not what is asked")
	}

	if _, err := out.c.SourceURL("feed", s); !errors.Is(err, errNoSeal) {
		t.Errorf("a node without the key: %v", err)
	}

	slower := listSource(s.URL)
	slower.Interval = 2 * time.Hour
	f.agree(out.propose(fsm.Command{Actor: "test", Op: fsm.DescribeList{Name: "feed", Source: slower}}).Index)
	if now := is(); now.Sealed != s.Sealed || now.URL != s.URL || now.Interval != slower.Interval {
		t.Errorf("with another interval it is %+v", now)
	}
	for _, again := range []string{moved.URL, "https://feeds.example/?xxxxx", "https://a:b@%zz/"} {
		if err := out.refusal(fsm.DescribeList{Name: "feed", Source: listSource(again)}); err == nil || err.Field != "source.url" || strings.Contains(err.Detail, "a:b") {
			t.Errorf("%s: %v", again, err)
		}
	}
	plain := "https://feeds.example/drop.txt"
	res := out.propose(fsm.Command{Actor: "test", Op: fsm.Batch{Ops: []fsm.Op{declare("vm", "v").Op, fsm.DescribeList{Name: "feed", Source: listSource(plain)}}}})
	f.agree(res.Index)
	if is() != *listSource(plain) {
		t.Errorf("without a secret it is %+v", is())
	}
	res = out.propose(fsm.Command{Actor: "test", Op: fsm.Batch{Ops: []fsm.Op{declare("vm2", "v").Op, fsm.DescribeList{Name: "feed", Source: listSource(whole)}}}})
	f.agree(res.Index)
	if is() != s {
		t.Errorf("in a batch it is %+v", is())
	}

	// A leader without the key appends nothing: it may get it.
	l := f.leader()
	key := l.c.identity.SealKey()
	l.c.identity.sealKey.Store(nil)
	_, err := l.c.Propose(within(t, 2*time.Second), fsm.Command{Actor: "test", Op: fsm.DescribeList{Name: "feed", Source: listSource(whole + "2")}})
	if !errors.Is(err, fsm.ErrUnavailable) || strings.Contains(err.Error(), "pass") {
		t.Errorf("a leader without the key: %v", err)
	}
	l.c.identity.sealKey.Store(&key)
	if is() != s {
		t.Errorf("then it is %+v", is())
	}
}
