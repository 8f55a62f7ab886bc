package enforce

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/palisade/palisade/fsm"
)

// passes is what a kernel that holds these elements does with a packet, in the order of its rules. What
// is sent by or to an address that VMs on this node have, is sent by or to their interfaces too.
func passes(held map[Element]struct{}, v *fsm.View, l Local, p fsm.Packet) fsm.Verdict {
	links := func(a netip.Addr) (out []Element) {
		for id, nics := range l.NICs.All() {
			vm, ok := v.VM(id)
			if !ok {
				continue
			}
			has := slices.ContainsFunc(vm.AllAddresses(), func(p netip.Prefix) bool { return p.Contains(a) })
			for _, n := range nics {
				has = has || slices.Contains(n.Addresses, a)
			}
			for _, n := range nics {
				if has {
					out = append(out, Element{Tap: n.Tap}, Element{MAC: n.MAC})
				}
			}
		}
		return out
	}
	from, to := links(p.Src), links(p.Dst)
	const never = 99
	best, verdict := never, fsm.VerdictPass
	for e := range held {
		t, _ := e.Treatment.Terms()
		bare := e
		bare.Treatment = ""
		if bare == (Element{}) {
			continue
		}
		for _, end := range []struct {
			d     fsm.Direction
			addr  netip.Addr
			links []Element
		}{{fsm.Out, p.Src, from}, {fsm.In, p.Dst, to}} {
			byAddress := e.Prefix.IsValid() && e.Prefix.Contains(end.addr)
			if !byAddress && !slices.Contains(end.links, bare) {
				continue
			}
			rank, does := never, fsm.VerdictDrop
			switch fits := t.Direction == end.d || t.Direction == fsm.Both; {
			case t.Kind == fsm.Drop && fits:
				rank = 0
			case t.Kind == fsm.Ports && fits && slices.ContainsFunc(t.Ports, func(r fsm.PortRange) bool {
				return r.Protocol == p.Protocol && r.First <= p.DstPort && p.DstPort <= r.Last
			}):
				rank = 1
			case t.Kind == fsm.Reject && fits:
				rank, does = 2, fsm.VerdictReject
			case t.Kind == fsm.Redirect && t.Direction == fsm.Out && fits:
				rank = 3
			case t.Kind == Page && end.d == fsm.In && p.Protocol == 6 && p.DstPort == 80:
				rank, does = 4, fsm.VerdictRedirect
			case t.Kind == fsm.Redirect && fits:
				rank = 5
			case t.Kind == fsm.Limit && fits:
				rank, does = 6, fsm.VerdictLimit
			}
			if rank < best {
				best, verdict = rank, does
			}
		}
	}
	return verdict
}

// TestExplainIsWhatIsCompiled draws histories and packets, and compares what is explained with what the
// compiled elements do.
func TestExplainIsWhatIsCompiled(t *testing.T) {
	// Interfaces are of one VM alone, or a hold on one VM would hit another.
	own := func(id string, nics []fsm.NIC) []fsm.NIC {
		nics = slices.Clone(nics)
		n, _ := strconv.Atoi(strings.TrimPrefix(id, "vm"))
		for i := range nics {
			nics[i].MAC = hw(byte(n<<4 | i | 8))
			nics[i].Tap = fmt.Sprint("vnet", n, i)
		}
		return nics
	}
	rapid.Check(t, func(t *rapid.T) {
		store := fsm.NewStore()
		l := Local{PagePort: 8079}
		for i := range rapid.IntRange(1, 40).Draw(t, "ops") {
			op := genOp().Draw(t, "op")
			if see, ok := op.(fsm.ObserveVM); ok {
				see.NICs = own(see.ID, see.NICs)
				op = see
			}
			data, err := fsm.MarshalCommand(fsm.Command{Actor: "token:a", Time: time.Unix(1000, 0), Op: op})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := store.ApplyBatch([]fsm.Entry{{Index: uint64(i + 1), Data: data}}); err != nil {
				t.Fatal(err)
			}
			l = genLocal(l).Draw(t, "local")
		}
		l.Node = "n1"
		for id, nics := range l.NICs.All() {
			l.NICs = l.NICs.With(id, own(id, nics))
		}
		v := store.View()
		held := Compile(v, l)
		for range 20 {
			p := fsm.Packet{
				Src: genAddr().Draw(t, "src"), Dst: genAddr().Draw(t, "dst"),
				Protocol: rapid.SampledFrom([]uint8{6, 6, 6, 1, 17}).Draw(t, "protocol"),
				DstPort:  rapid.SampledFrom([]uint16{80, 80, 11, 22, 91, 443}).Draw(t, "port"),
			}
			if p.Src.Is4() != p.Dst.Is4() {
				continue
			}
			e := Explain(v, l, p)
			want := passes(held, v, l, p)
			if e.Verdict != want {
				t.Fatalf("%+v: explained as %s (%s), the elements make it %s\nholds %+v\nguards %q", p, e.Verdict, e.Why, want, e.Holds, e.Guards)
			}
			treats := len(e.Holds) > 0 && e.Holds[0].Treats
			if treats != (want != fsm.VerdictPass) || treats && !strings.Contains(e.Why, "block "+e.Holds[0].Block+" ") {
				t.Fatalf("%+v is %s because of %q, holds %+v", p, e.Verdict, e.Why, e.Holds)
			}
		}
	})
}

func TestExplain(t *testing.T) {
	store := fsm.NewStore()
	index := uint64(0)
	do := func(op fsm.Op) fsm.Result {
		t.Helper()
		index++
		data, err := fsm.MarshalCommand(fsm.Command{Actor: "token:a", Time: time.Unix(1000, 0), Op: op})
		if err != nil {
			t.Fatal(err)
		}
		r, err := store.ApplyBatch([]fsm.Entry{{Index: index, Data: data}})
		if err != nil || r[0].Err != nil {
			t.Fatalf("%+v: %v, %v", op, err, r)
		}
		return r[0]
	}
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	nic := func(n byte, tap string) []fsm.NIC {
		return []fsm.NIC{{MAC: hw(n), Tap: tap, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 7, 0, n})}}}
	}
	vm := func(n byte) string { return fmt.Sprint("vm", n) }
	l := Local{Node: "n1", PagePort: 8079, NICs: MapOf(map[string][]fsm.NIC{}), Started: map[string]struct{}{"b9": {}}}
	for n := range byte(9) {
		if n%2 == 1 { // odd ones are here
			l.NICs = l.NICs.With(vm(n), nic(n, "vnet"+strconv.Itoa(int(n))))
		}
		do(fsm.ObserveVM{ID: vm(n), Kind: "netns", Node: "n" + strconv.Itoa(2-int(n%2)), Phase: fsm.PhaseRunning, NICs: nic(n, ""), Epoch: 1})
	}
	do(fsm.DeclareVM{ID: vm(7), Owner: "acct"})
	do(fsm.DeclareVM{ID: vm(8), Owner: "safe"})
	do(fsm.PutGuard{VM: vm(8), Note: "mail"})
	do(fsm.AddBlock{Target: fsm.Target{VM: vm(1)}, Kind: fsm.Redirect, Direction: fsm.Both})                                     // b1
	do(fsm.AddBlock{Target: fsm.Target{VM: vm(2)}, Kind: fsm.Limit, Direction: fsm.Both, Rate: fsm.Rate{Packets: 5}})            // b2
	do(fsm.AddBlock{Target: fsm.Target{VM: vm(3)}, Kind: fsm.Limit, Direction: fsm.In, Rate: fsm.Rate{Packets: 5}})              // b3
	do(fsm.AddBlock{Target: fsm.Target{VM: vm(4)}, Kind: fsm.Ports, Ports: []fsm.PortRange{{Protocol: 6, First: 25, Last: 25}}}) // b4
	do(fsm.AddBlock{Target: fsm.Target{Prefix: prefix("10.7.0.4/31")}, Kind: fsm.Reject, Direction: fsm.Out})                    // b5
	do(fsm.AddBlock{Target: fsm.Target{Account: "acct"}, Direction: fsm.In})                                                     // b6
	do(fsm.AddBlock{Target: fsm.Target{Account: "safe"}})                                                                        // b7
	do(fsm.AddBlock{Target: fsm.Target{VM: vm(5)}, Kind: fsm.Redirect, Direction: fsm.Both})                                     // b8
	do(fsm.AddBlock{Target: fsm.Target{Prefix: prefix("198.51.100.0/24")}, StartsAt: time.Unix(5000, 0)})                        // b9
	do(fsm.AddBlock{Target: fsm.Target{Prefix: prefix("203.0.113.0/24")}, StartsAt: time.Unix(5000, 0)})                         // b10
	do(fsm.BeginList{Upload: "u", Name: "feed"})
	do(fsm.AddListChunk{Upload: "u", Prefixes: fsm.AppendPacked(nil, prefix("192.0.2.0/24"))})
	do(fsm.CommitList{Upload: "u"})
	do(fsm.AddBlock{Target: fsm.Target{List: "feed"}, Direction: fsm.In}) // b11
	do(fsm.PutNode{Node: fsm.Node{ID: "n1", Addresses: []netip.Addr{addr("10.7.0.5"), addr("192.0.2.1")}}})

	for _, c := range []struct {
		src, dst string
		protocol uint8
		port     uint16
		want     fsm.Verdict
		holds    string // the strictest first, * for what does not treat the packet
		guards   string
	}{
		{"10.9.0.1", "10.7.0.1", 6, 80, fsm.VerdictRedirect, "b1", ""},
		{"10.9.0.1", "10.7.0.1", 6, 443, fsm.VerdictDrop, "b1", ""},
		{"10.7.0.1", "10.9.0.1", 6, 80, fsm.VerdictDrop, "b1", ""},
		// A guarded address gets no page; its interface is held nevertheless.
		{"10.9.0.1", "10.7.0.5", 6, 80, fsm.VerdictDrop, "b8", "10.7.0.5/32: address of node n1"},
		// A rate is counted where the VM is.
		{"10.9.0.1", "10.7.0.2", 17, 53, fsm.VerdictPass, "", ""},
		{"10.9.0.1", "10.7.0.3", 17, 53, fsm.VerdictLimit, "b3", ""},
		{"10.7.0.3", "10.9.0.1", 17, 53, fsm.VerdictPass, "", ""},
		{"10.9.0.1", "10.7.0.4", 6, 25, fsm.VerdictDrop, "b4", ""},
		{"10.9.0.1", "10.7.0.4", 6, 26, fsm.VerdictPass, "b4*", ""},
		{"10.9.0.1", "10.7.0.4", 17, 25, fsm.VerdictPass, "b4*", ""},
		{"10.7.0.4", "10.9.0.1", 6, 25, fsm.VerdictDrop, "b4 b5", ""},
		{"10.7.0.4", "10.9.0.1", 6, 26, fsm.VerdictReject, "b5 b4*", ""},
		{"10.7.0.4", "10.7.0.1", 6, 80, fsm.VerdictReject, "b5 b1 b4*", ""},
		{"10.9.0.1", "10.7.0.7", 17, 1, fsm.VerdictDrop, "b6", ""},
		{"10.7.0.7", "10.9.0.1", 17, 1, fsm.VerdictPass, "", ""},
		{"10.7.0.8", "10.9.0.1", 17, 1, fsm.VerdictPass, "", "10.7.0.8/32: address of guarded VM vm8 VM vm8: mail"},
		{"198.51.100.7", "10.9.0.1", 17, 1, fsm.VerdictDrop, "b9", ""},
		{"203.0.113.7", "10.9.0.1", 17, 1, fsm.VerdictPass, "", ""},
		{"10.9.0.1", "192.0.2.77", 17, 1, fsm.VerdictDrop, "b11", ""},
		{"10.9.0.1", "192.0.2.1", 17, 1, fsm.VerdictPass, "", "192.0.2.1/32: address of node n1"},
		{"192.0.2.77", "10.9.0.1", 17, 1, fsm.VerdictPass, "", ""},
	} {
		e := Explain(store.View(), l, fsm.Packet{Src: addr(c.src), Dst: addr(c.dst), Protocol: c.protocol, DstPort: c.port})
		var holds []string
		for _, h := range e.Holds {
			if !h.Treats {
				h.Block += "*"
			}
			if h.Started != (h.Block == "b9") {
				t.Errorf("%+v: started %v", c, h.Started)
			}
			holds = append(holds, h.Block)
		}
		if e.Verdict != c.want || strings.Join(holds, " ") != c.holds || strings.Join(e.Guards, " ") != c.guards {
			t.Errorf("%+v\n got %s (%s), holds %q, guards %q", c, e.Verdict, e.Why, holds, e.Guards)
		}
	}
	if e := Explain(store.View(), l, fsm.Packet{Dst: addr("10.7.0.7")}); e.Verdict != fsm.VerdictDrop {
		t.Errorf("without a source: %+v", e)
	}
}
