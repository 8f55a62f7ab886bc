// Package recovery finds what a state that takes the place of another would cease to hold, or would hold again,
// and what it takes to keep it. It is pure: no clock, no I/O.
package recovery

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// Loss is something that is held now and would not be.
type Loss struct {
	// Block is the hold, of a state; nil for what only a kernel holds.
	Block *fsm.Block
	// Element is what only a kernel holds.
	Element enforce.Element
	// What says it in words, of what is neither.
	What string
	// Unkept says why it can't be carried over, empty if it can.
	Unkept string
	ops    []fsm.Op
}

// String names the loss for people, on one line.
func (l Loss) String() string {
	if l.What != "" {
		return l.What
	}
	if l.Block == nil {
		return l.Element.String() + " (in this node's kernel; no state says why)"
	}
	return fmt.Sprintf("%s: %s on %s, reason %s, since %s", l.Block.ID, l.Block.Kind, l.Block.Target, l.Block.Reason, l.Block.Since().Format("2006-01-02 15:04:05Z"))
}

// Losses returns what from holds and to would not, in the order of the blocks. A hold that to has in another block on the
// same target is none, if it has the same effect, for the same reason and for as long: a block of another reason, or one
// that ends sooner, would go without anybody having lifted this one. A block on a list is lost in part if the list has less.
func Losses(from, to *fsm.View) []Loss {
	var out []Loss
	for b := range from.Blocks("") {
		if b.State != fsm.BlockActive {
			continue
		}
		l := Loss{Block: b}
		if !held(to, b) {
			l.ops, l.Unkept = keep(from, to, b)
			out = append(out, l)
		} else if n := unlisted(from, to, b.Target.List); n > 0 {
			l.Unkept = fmt.Sprintf("list %s lacks %d prefixes in what is restored; load it again", b.Target.List, n)
			out = append(out, l)
		}
	}
	return out
}

// held says whether the view has an active block that does the same, for the same reason and for as long.
func held(v *fsm.View, b *fsm.Block) bool {
	for o := range v.ActiveOn(b.Target) {
		if o.Reason == b.Reason && lasts(o, b) && (same(o, b) || o.Kind == fsm.Drop && o.Direction == fsm.Both) {
			return true
		}
	}
	return false
}

// unlisted counts the prefixes of a list in from that nothing in the list of to covers.
func unlisted(from, to *fsm.View, list string) (n int) {
	_, was, _ := from.List(list)
	_, is, _ := to.List(list)
	if list == "" || was.Hash() == is.Hash() {
		return 0
	}
	for p := range was.All() {
		if _, covered := is.Covering(p); !covered {
			n++
		}
	}
	return n
}

// lasts says whether an active block goes on for at least as long as another one.
func lasts(o, b *fsm.Block) bool {
	ends, least := o.Due(), b.Due()
	return ends.IsZero() || !least.IsZero() && !ends.Before(least)
}

func same(a, b *fsm.Block) bool {
	return a.Kind == b.Kind && a.Direction == b.Direction && a.Rate == b.Rate && a.RedirectTo == b.RedirectTo && slices.Equal(a.Ports, b.Ports)
}

// keep returns the ops that make to hold what b holds in from.
func keep(from, to *fsm.View, b *fsm.Block) (ops []fsm.Op, unkept string) {
	switch t := b.Target; {
	case t.VM != "":
		was, known := from.VM(t.VM)
		if _, has := to.VM(t.VM); !has && known {
			ops = append(ops, fsm.DeclareVM{ID: was.ID, Name: was.Name, Owner: was.Owner, Addresses: was.AllAddresses(), DoNotBlockUntil: was.DoNotBlockUntil})
		}
	case t.List != "":
		if _, _, has := to.List(t.List); !has {
			return nil, fmt.Sprintf("list %s is not in what is restored; put it there and block it again", t.List)
		}
	}
	return append(ops, fsm.AddBlock{
		Target: b.Target, Kind: b.Kind, Direction: b.Direction, Rate: b.Rate, Ports: b.Ports, RedirectTo: b.RedirectTo,
		Reason: b.Reason, Note: carried(b.Note, b.ID), EndsAt: b.EndsAt, Force: true,
	}), ""
}

// carried is the note of a block that was carried over.
func carried(note, id string) string {
	text := "carried over from " + id
	if note != "" {
		text = note + " (" + text + ")"
	}
	if len(text) > fsm.MaxNoteBytes {
		return note
	}
	return text
}

// Returns returns what to holds and from no longer does, though it knows of it: what somebody lifted, or what ended.
func Returns(from, to *fsm.View) []*fsm.Block {
	var out []*fsm.Block
	for b := range to.Blocks("") {
		if b.State != fsm.BlockActive || held(from, b) {
			continue
		}
		if was, known := from.Block(b.ID); known && was.Target == b.Target && was.State != fsm.BlockActive {
			out = append(out, b)
		}
	}
	return out
}

// Retired returns the ids of the members of to that from knows as retired, sorted.
func Retired(from, to *fsm.View) []string {
	var out []string
	for n := range to.Nodes() {
		if was, ok := from.Node(n.ID); ok && n.Member() && !was.Member() {
			out = append(out, n.ID)
		}
	}
	return out
}

// thing is what of an element packets are told by.
type thing struct {
	mac    fsm.MAC
	prefix netip.Prefix
}

// KernelLosses returns what a kernel holds, to would not, and from does not explain. from may be nil. Interfaces of guests are
// left out: what they are of is held by its addresses too.
func KernelLosses(kernel iter.Seq[enforce.Element], from, to *fsm.View, local enforce.Local) []Loss {
	explained := newHolds(from, local)
	kept := newHolds(to, local)
	var out []Loss
	for e := range kernel {
		t, ok := e.Treatment.Terms()
		if e.Tap != "" || e.MAC == (fsm.MAC{}) && !e.Prefix.IsValid() || ok && helps(t.Kind) {
			continue
		}
		if kept.has(e, t) || explained.has(e, t) {
			continue
		}
		l := Loss{Element: e}
		l.ops, l.Unkept = keepElement(e, t, ok, from, to)
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Loss) int { return a.Element.Compare(b.Element) })
	return out
}

// helps is of kinds that hold nothing.
func helps(k fsm.Kind) bool { return k == enforce.Page || k == enforce.Bridge || k == enforce.Here }

// holds are what a view makes a node's kernel hold, whatever the blocks are called.
type holds struct {
	things map[thing]map[string]bool // by the effect
	wide   map[int]bool              // lengths of prefixes that are dropped whole
}

func newHolds(v *fsm.View, local enforce.Local) holds {
	h := holds{things: map[thing]map[string]bool{}, wide: map[int]bool{}}
	if v == nil {
		return h
	}
	for _, e := range enforce.NewCompiler().Reset(v, local).Add {
		t, _ := e.Treatment.Terms()
		at := thing{e.MAC, e.Prefix}
		if h.things[at] == nil {
			h.things[at] = map[string]bool{}
		}
		h.things[at][effect(t)] = true
		if e.Prefix.IsValid() && e.Treatment == "" {
			h.wide[e.Prefix.Bits()] = true
		}
	}
	return h
}

// effect is what terms do, without the block that they are of.
func effect(t enforce.Terms) string {
	t.Hold = ""
	return fmt.Sprint(t)
}

func dropAll() string { return effect(enforce.Terms{Kind: fsm.Drop, Direction: fsm.Both}) }

func (h *holds) has(e enforce.Element, t enforce.Terms) bool {
	at := h.things[thing{e.MAC, e.Prefix}]
	if at[effect(t)] || at[dropAll()] {
		return true
	}
	if e.Prefix.IsValid() {
		for bits := range h.wide {
			if bits >= e.Prefix.Bits() {
				continue
			}
			if p, err := e.Prefix.Addr().Prefix(bits); err == nil && h.things[thing{prefix: p}][dropAll()] {
				return true
			}
		}
	}
	return false
}

func keepElement(e enforce.Element, t enforce.Terms, known bool, views ...*fsm.View) ([]fsm.Op, string) {
	if !known {
		return nil, "this version of palisade does not know what the kernel does with it"
	}
	op := fsm.AddBlock{Kind: t.Kind, Direction: cmp.Or(t.Direction, fsm.Both), Rate: t.Rate, Ports: t.Ports, Force: true,
		Note: "carried over from a kernel that held it when the fleet was restored"}
	if e.Prefix.IsValid() {
		op.Target = fsm.Target{Prefix: e.Prefix}
		return []fsm.Op{op}, ""
	}
	for _, v := range views {
		if v == nil {
			continue
		}
		for vm := range v.VMs("") {
			if slices.ContainsFunc(vm.NICs, func(n fsm.NIC) bool { return n.MAC == e.MAC }) {
				op.Target = fsm.Target{VM: vm.ID}
				return []fsm.Op{op}, ""
			}
		}
	}
	return nil, "no VM is known to have this hardware address; block the VM once it is seen"
}

// Keep returns the ops that carry over what can be.
func Keep(losses []Loss) []fsm.Op {
	var out []fsm.Op
	for _, l := range losses {
		out = append(out, l.ops...)
	}
	return out
}

// Try finds out which losses can't be carried over because to would refuse it, and says so in them. to stays as it is.
func Try(to *fsm.View, losses []Loss) error {
	var b bytes.Buffer
	if err := to.WriteSnapshot(&b); err != nil {
		return err
	}
	state := fsm.NewStore()
	if err := state.Restore(&b); err != nil {
		return err
	}
	for i := range losses {
		for _, op := range losses[i].ops {
			refused, err := try(state, op)
			if err != nil {
				return err
			}
			if refused != nil {
				losses[i].Unkept, losses[i].ops = refused.Error(), nil
				break
			}
		}
	}
	return nil
}

func try(state *fsm.Store, op fsm.Op) (*fsm.Error, error) {
	v := state.View()
	data, err := fsm.MarshalCommand(fsm.Command{Time: v.Time(), Actor: "restore", Op: op})
	if refused, ok := errors.AsType[*fsm.Error](err); ok {
		return refused, nil
	}
	if err != nil {
		return nil, err
	}
	res, err := state.ApplyBatch([]fsm.Entry{{Index: v.Index() + 1, Data: data}})
	if err != nil {
		return nil, err
	}
	return res[0].Err, nil
}
