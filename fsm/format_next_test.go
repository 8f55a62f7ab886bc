//go:build nextformat

package fsm

import "testing"

func TestANewOpRaisesTheFormatOfTheLog(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, PutNode{Node{ID: "n1", Format: 1}})
	op := PutSettings{Settings: Settings{MaxVMs: 7}}
	if refused := s.View().Readable(op); refused == nil {
		t.Error("it may be written although a node can't read it")
	}
	log.ok(t, PutNode{Node{ID: "n1", Format: 2}})
	if refused := s.View().Readable(op); refused != nil {
		t.Error(refused)
	}
	before := s.View().Format()
	log.ok(t, op)
	if before != 1 || s.View().Format() != 2 {
		t.Errorf("the format was %d and is %d", before, s.View().Format())
	}
}
