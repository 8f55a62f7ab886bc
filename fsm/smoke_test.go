package fsm

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	s := NewStore()
	var es []Entry
	for i := range 20 {
		b, err := MarshalCommand(Command{Time: time.Unix(int64(1000+i), 0), Actor: "token:x", Key: fmt.Sprint(i), Op: AddBlock{Target: Target{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.0.0.%d/32", i))}}})
		if err != nil {
			t.Fatal(err)
		}
		es = append(es, Entry{uint64(i + 5), b})
	}
	rs, err := s.ApplyBatch(es)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	var buf, buf2 bytes.Buffer
	if err := s.View().WriteSnapshot(&buf); err != nil {
		t.Fatal(err)
	}
	s2 := NewStore()
	if err := s2.Restore(bytes.NewReader(buf.Bytes())); err != nil {
		t.Fatal(err)
	}
	s2.View().WriteSnapshot(&buf2)
	if s.View().Hash() != s2.View().Hash() || !bytes.Equal(buf.Bytes(), buf2.Bytes()) {
		t.Fatal("differ")
	}
	if n := len(s2.View().Holding(&VM{ID: "x", Declared: []netip.Prefix{netip.MustParsePrefix("10.0.0.8/29")}})); n != 8 {
		t.Fatal(n)
	}
}
