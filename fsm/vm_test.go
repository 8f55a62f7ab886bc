package fsm

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestWhereAVMIs walks VMs through reports as they come in life, out of order and twice.
func TestWhereAVMIs(t *testing.T) {
	type step struct {
		node  string
		phase Phase
		epoch uint64
		want  string // state node>destination epoch tap event, or a code
	}
	for name, steps := range map[string][]step{
		"live migration": {
			{"n1", PhaseRunning, 1, "running n1> 1 tap-n1 vm.observed"},
			{"n2", PhaseIncoming, 2, "migrating n1>n2 2 tap-n1 vm.migrating"},
			{"n2", PhaseIncoming, 2, "migrating n1>n2 2 tap-n1 none"},
			{"n1", PhaseRunning, 2, "migrating n1>n2 2 tap-n1 none"},
			{"n2", PhaseRunning, 2, "running n2> 2 tap-n2 vm.moved"},
			{"n1", PhaseGone, 2, "stale"},
			{"n1", PhaseGone, 1, "stale"},
		},
		"the source goes first": {
			{"n1", PhaseRunning, 1, "running n1> 1 tap-n1 vm.observed"},
			{"n2", PhaseIncoming, 2, "migrating n1>n2 2 tap-n1 vm.migrating"},
			{"n1", PhaseGone, 2, "migrating n1>n2 2 tap-n1 none"},
			{"n2", PhaseRunning, 2, "running n2> 2 tap-n2 vm.moved"},
		},
		"the flight fails": {
			{"n1", PhaseRunning, 1, "running n1> 1 tap-n1 vm.observed"},
			{"n2", PhaseIncoming, 2, "migrating n1>n2 2 tap-n1 vm.migrating"},
			{"n2", PhaseGone, 2, "running n1> 2 tap-n1 vm.migration"},
			{"n2", PhaseRunning, 2, "stale"},
		},
		"the destination dies": {
			{"n1", PhaseRunning, 1, "running n1> 1 tap-n1 vm.observed"},
			{"n2", PhaseIncoming, 2, "migrating n1>n2 2 tap-n1 vm.migrating"},
			{"n1", PhaseRunning, 3, "running n1> 3 tap-n1 vm.migration"},
		},
		"another destination": {
			{"n1", PhaseRunning, 1, "running n1> 1 tap-n1 vm.observed"},
			{"n2", PhaseIncoming, 2, "migrating n1>n2 2 tap-n1 vm.migrating"},
			{"n3", PhaseIncoming, 3, "migrating n1>n3 3 tap-n1 vm.migrating"},
			{"n2", PhaseGone, 2, "stale"},
			{"n2", PhaseGone, 4, "stale"},
			{"n3", PhaseRunning, 3, "running n3> 3 tap-n3 vm.moved"},
		},
		"a late incoming": {
			{"n2", PhaseRunning, 2, "running n2> 2 tap-n2 vm.observed"},
			{"n2", PhaseIncoming, 2, "running n2> 2 tap-n2 none"},
		},
		"from outside": {
			{"n2", PhaseIncoming, 1, "migrating >n2 1  vm.migrating"},
			{"n2", PhaseRunning, 1, "running n2> 1 tap-n2 vm.migration"},
		},
		"from outside, but it fails": {
			{"n2", PhaseIncoming, 1, "migrating >n2 1  vm.migrating"},
			{"n2", PhaseGone, 1, "declared > 1  vm.migration"},
		},
		"shutdown and start elsewhere": {
			{"n1", PhaseRunning, 1, "running n1> 1 tap-n1 vm.observed"},
			{"n1", PhaseStopped, 1, "stopped n1> 1  vm.observed"},
			{"n2", PhaseStopped, 2, "stopped n2> 2  vm.moved"},
			{"n2", PhaseRunning, 2, "running n2> 2 tap-n2 vm.observed"},
			{"n1", PhaseStopped, 3, "stale"},
			{"n2", PhaseGone, 2, "stopped n2> 2  vm.observed"},
		},
		"a dead node's VM is started elsewhere": {
			{"n1", PhaseRunning, 1, "running n1> 1 tap-n1 vm.observed"},
			{"n2", PhaseRunning, 1, "stale"},
			{"n2", PhaseRunning, 2, "running n2> 2 tap-n2 vm.moved"},
			{"n1", PhaseRunning, 1, "stale"},
		},
		"never was": {
			{"n1", PhaseGone, 1, "not_found"},
			{"n1", PhaseRunning, 0, "invalid"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewStore()
			log := newLog(s)
			for i, step := range steps {
				before := len(s.View().events)
				op := running("v1", step.node, step.epoch, "203.0.113.5")
				op.Phase = step.phase
				r := log.do(t, op)
				var got string
				if r.Err != nil {
					got = string(r.Err.Code)
				} else {
					event := "none"
					if events := s.View().events[before:]; len(events) == 1 {
						event = string(events[0].Type)
					}
					vm := r.VM
					if vm.NICs[0].MAC.String() != "52:54:00:00:00:01" || len(vm.NICs[0].Addresses) != 1 {
						t.Errorf("step %d lost the MAC or address: %+v", i, vm.NICs)
					}
					got = fmt.Sprintf("%s %s>%s %d %s %s", vm.State, vm.Node, vm.Destination, vm.Epoch, vm.NICs[0].Tap, event)
				}
				if got != step.want {
					t.Errorf("step %d, %s on %s at %d: %s, want %s", i, step.phase, step.node, step.epoch, got, step.want)
				}
			}
		})
	}
}

func TestAnIncomingVMBringsNewMACs(t *testing.T) {
	log := newLog(NewStore())
	log.ok(t, running("v1", "n1", 1, "203.0.113.5"))
	op := running("v1", "n2", 2, "203.0.113.6")
	op.Phase = PhaseIncoming
	op.NICs = append(op.NICs, NIC{MAC: MAC{2}, Tap: "tap9", Addresses: []netip.Addr{addr("203.0.113.7")}})
	got := log.ok(t, op).VM.NICs
	if len(got) != 2 || got[0].MAC != (MAC{2}) || got[0].Tap != "" || got[1].Tap != "tap-n1" {
		t.Errorf("NICs are %+v", got)
	}
}

func TestDeclarationAndObservationKeepEachOther(t *testing.T) {
	log := newLog(NewStore())
	log.ok(t, running("v1", "n1", 1, "203.0.113.5"))
	vm := log.ok(t, DeclareVM{ID: "v1", Name: "web", Owner: "c7",
		Addresses: []netip.Prefix{prefix("203.0.113.64/26"), prefix("203.0.113.9/32"), prefix("203.0.113.9/32")}}).VM
	if vm.Node != "n1" || vm.State != VMRunning || len(vm.NICs) != 1 || vm.Epoch != 1 {
		t.Errorf("a declaration changed what was observed: %+v", vm)
	}
	op := running("v1", "n1", 1, "203.0.113.5", "203.0.113.6")
	vm = log.ok(t, op).VM
	want := []netip.Prefix{prefix("203.0.113.5/32"), prefix("203.0.113.6/32"), prefix("203.0.113.9/32"), prefix("203.0.113.64/26")}
	if vm.Name != "web" || vm.Owner != "c7" || !slices.Equal(vm.AllAddresses(), want) {
		t.Errorf("an observation changed what was declared: %+v", vm)
	}
	op.Name = "seen"
	if vm = log.ok(t, op).VM; vm.Name != "seen" {
		t.Errorf("the name the node sees is not taken: %q", vm.Name)
	}
}

func TestSameContentChangesNothing(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	declare := DeclareVM{ID: "v1", Name: "web", Addresses: []netip.Prefix{prefix("203.0.113.9/32"), prefix("203.0.113.8/32")}}
	observe := running("v2", "n1", 1, "203.0.113.5", "203.0.113.4")
	node := PutNode{Node{ID: "n1", Addresses: []netip.Addr{addr("192.0.2.2"), addr("192.0.2.1")}}}
	guard := PutGuard{Prefix: prefix("192.0.2.0/24"), Note: "x"}
	for _, op := range []Op{declare, observe, node, guard} {
		first := log.ok(t, op)
		before := s.View()
		log.actor = "token:other"
		again := log.ok(t, op)
		if s.View().sum != before.sum || len(s.View().events) != len(before.events) {
			t.Errorf("%+v again changed the state", op)
		}
		if again.VM != first.VM || again.Node != first.Node || again.Guard != first.Guard {
			t.Errorf("%+v again gave another object", op)
		}
	}
}

func TestDeclareRefusals(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, PutNode{Node{ID: "n1", Addresses: []netip.Addr{addr("192.0.2.1")}}})
	log.refused(t, DeclareVM{}, CodeInvalid, "id")
	log.refused(t, DeclareVM{ID: "a b"}, CodeInvalid, "id")
	log.refused(t, DeclareVM{ID: strings.Repeat("a", 256)}, CodeInvalid, "id")
	log.refused(t, DeclareVM{ID: "v1", Name: "a\nb"}, CodeInvalid, "name")
	log.refused(t, DeclareVM{ID: "v1", Owner: "a\x00b"}, CodeInvalid, "owner")
	log.refused(t, DeclareVM{ID: "v1", IfRevision: 1}, CodeRevision, "if_revision")
	log.refused(t, DeclareVM{ID: "v1", Addresses: []netip.Prefix{prefix("0.0.0.0/0")}}, CodeTooWide, "addresses")
	log.refused(t, DeclareVM{ID: "v1", Addresses: []netip.Prefix{{}}}, CodeInvalid, "addresses")
	log.refused(t, DeclareVM{ID: "v1", Addresses: []netip.Prefix{prefix("192.0.2.0/24")}}, CodeGuardConflict, "addresses")
	log.refused(t, DeclareVM{ID: "v1", Addresses: make([]netip.Prefix, 1025)}, CodeInvalid, "addresses")
	vm := log.ok(t, DeclareVM{ID: strings.Repeat("a", 255)}).VM
	log.refused(t, DeclareVM{ID: vm.ID, IfRevision: vm.Revision + 1}, CodeRevision, "if_revision")
	log.ok(t, DeclareVM{ID: vm.ID, Owner: "c", IfRevision: vm.Revision})
}

func TestObserveRefusals(t *testing.T) {
	log := newLog(NewStore())
	change := func(f func(*ObserveVM)) ObserveVM {
		op := running("v1", "n1", 1)
		f(&op)
		return op
	}
	log.refused(t, change(func(o *ObserveVM) { o.ID = "" }), CodeInvalid, "id")
	log.refused(t, change(func(o *ObserveVM) { o.Node = "" }), CodeInvalid, "node")
	log.refused(t, change(func(o *ObserveVM) { o.Kind = "K V M" }), CodeInvalid, "kind")
	log.refused(t, change(func(o *ObserveVM) { o.Phase = "" }), CodeInvalid, "phase")
	log.refused(t, change(func(o *ObserveVM) { o.NICs = make([]NIC, 65) }), CodeInvalid, "nics")
	log.refused(t, change(func(o *ObserveVM) { o.NICs[0].Tap = "a/b" }), CodeInvalid, "nics[0].tap")
	log.refused(t, change(func(o *ObserveVM) { o.NICs[0].Tap = "0123456789abcdef" }), CodeInvalid, "nics[0].tap")
}

// TestWhatAGuestChoosesIsNeverRefused keeps a VM known whatever its owner or its agent reports.
func TestWhatAGuestChoosesIsNeverRefused(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	op := running("v1", "n1", 1)
	for name, want := range map[string]string{
		"a\x00b\x1b[2J\n":              "a\uFFFDb\uFFFD[2J\uFFFD",
		"\xff\xfe":                     "\uFFFD",
		"\u202egnp.exe":                "\uFFFDgnp.exe",
		strings.Repeat("a", 254) + "é": strings.Repeat("a", 254),
		strings.Repeat("\xff a", 400):  strings.Repeat("\uFFFD a", 51),
		"plain":                        "plain",
	} {
		op.Name = name
		if got := log.ok(t, op).VM.Name; got != want {
			t.Errorf("name %q became %q, want %q", name, got, want)
		}
	}
	op.NICs = []NIC{{MAC: MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, Tap: "t"}, {MAC: MAC{2}}}
	op.NICs[0].Addresses = []netip.Addr{{}, addr("fe80::1%eth0"), addr("::ffff:203.0.113.5"), addr("203.0.113.5")}
	for i := range 2000 {
		op.NICs[1].Addresses = append(op.NICs[1].Addresses, addr4(0x0a000000+i))
	}
	vm := log.ok(t, op).VM
	want := []netip.Addr{addr("203.0.113.5"), addr("fe80::1")}
	if vm.NICs[0].MAC != (MAC{}) || !slices.Equal(vm.NICs[0].Addresses, want) {
		t.Errorf("NIC is %+v", vm.NICs[0])
	}
	if n := len(vm.NICs[0].Addresses) + len(vm.NICs[1].Addresses); n != MaxVMAddresses {
		t.Errorf("%d addresses are kept", n)
	}
	log.ok(t, onVM("v1"))
}

func TestVMsAreListed(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	for _, id := range []string{"b", "a", "ab", "c"} {
		log.ok(t, running(id, "n1", 1))
	}
	moving := running("a", "n10", 2)
	moving.Phase = PhaseIncoming
	log.ok(t, moving)
	list := func(vms func(func(*VM) bool)) (out []string) {
		for vm := range vms {
			out = append(out, vm.ID)
		}
		return out
	}
	for _, c := range []struct{ got, want []string }{
		{list(s.View().VMs("")), []string{"a", "ab", "b", "c"}},
		{list(s.View().VMs("a")), []string{"ab", "b", "c"}},
		{list(s.View().VMs("aa")), []string{"ab", "b", "c"}},
		{list(s.View().VMs("c")), nil},
		{list(s.View().VMsOn("n1")), []string{"a", "ab", "b", "c"}},
		{list(s.View().VMsOn("n10")), []string{"a"}},
		{list(s.View().VMsOn("n")), nil},
		{list(s.View().VMsOn("")), nil},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
	for range s.View().VMs("") {
		break // stopping early is fine
	}
}

// What a VM may send from is set for it or for the fleet; who declares it without a word about that changes nothing.
func TestSourceGuardOfAVM(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	check := func(what string, want SourceGuard, guarded bool) {
		t.Helper()
		vm, ok := s.View().VM("v1")
		if !ok || vm.SourceGuard != want || s.View().SourceGuarded(vm) != guarded {
			t.Errorf("%s: %+v, guarded %t", what, vm, s.View().SourceGuarded(vm))
		}
	}
	settings := DefaultSettings()
	log.ok(t, DeclareVM{ID: "v1"})
	check("new", SourceInherit, false)
	settings.SourceGuard = true
	log.ok(t, PutSettings{Settings: settings})
	check("for the fleet", SourceInherit, true)
	log.ok(t, DeclareVM{ID: "v1", SourceGuard: SourceOff})
	check("off", SourceOff, false)
	log.ok(t, DeclareVM{ID: "v1", Name: "other"})
	check("declared again", SourceOff, false)
	log.ok(t, DeclareVM{ID: "v1", SourceGuard: SourceReset})
	check("reset", SourceInherit, true)
	log.ok(t, PutGuard{VM: "v1"})
	check("never to be blocked", SourceInherit, false)
	log.ok(t, DeclareVM{ID: "v1", SourceGuard: SourceOn})
	check("never to be blocked, but asked for", SourceOn, true)
	var image bytes.Buffer
	if err := s.View().WriteSnapshot(&image); err != nil {
		t.Fatal(err)
	}
	again := NewStore()
	if err := again.Restore(&image); err != nil {
		t.Fatal(err)
	}
	if vm, _ := again.View().VM("v1"); vm.SourceGuard != SourceOn || !again.View().Settings().SourceGuard {
		t.Errorf("a snapshot gives %+v, %+v", vm, again.View().Settings())
	}
	if _, err := MarshalCommand(Command{Op: DeclareVM{ID: "v1", SourceGuard: "maybe"}}); err == nil {
		t.Error("a value that nobody knows gets into the log")
	}
}
