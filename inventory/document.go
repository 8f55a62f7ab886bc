package inventory

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/palisade/palisade/fsm"
)

var (
	idForm   = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,255}$`)
	kindForm = regexp.MustCompile(`^[a-z0-9_-]{0,64}$`)
)

// document is a VM as written. A file of the static driver holds one, and so does a line of a program's
// listing.
type document struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Kind  string `json:"kind"`
	Phase string `json:"phase"`
	NICs  []struct {
		MAC       string   `json:"mac"`
		Tap       string   `json:"tap"`
		Addresses []string `json:"addresses"`
	} `json:"nics"`
}

// Parse reads one VM as JSON:
//
//	{"id": "vm101", "name": "guest1", "kind": "kvm", "phase": "running",
//	 "nics": [{"mac": "52:54:00:5a:00:01", "tap": "tap101i0", "addresses": ["192.0.2.7"]}]}
//
// A name that is not given is the id; a NIC without an Ethernet address of its own (OpenVZ's venet) has no
// mac, and one whose interface on the host is shared or does not exist has no tap. Unknown fields are errors,
// and errors name the field. The tap of a stopped VM is dropped: the interface does not exist, and its name
// may by now be that of another VM.
func Parse(data []byte) (VM, error) {
	var doc document
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		var wrong *json.UnmarshalTypeError
		switch {
		case errors.As(err, &wrong) && wrong.Field == "":
			return VM{}, fmt.Errorf("is a JSON %s, want an object", wrong.Value)
		case wrong != nil:
			return VM{}, fmt.Errorf("%s: is a JSON %s, want %s", wrong.Field, wrong.Value, wrong.Type)
		}
		return VM{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return VM{}, errors.New("more than one JSON value")
	}
	return doc.vm()
}

func (doc document) vm() (VM, error) {
	if err := plain(doc.Name); err != nil {
		return VM{}, fmt.Errorf("name: %w", err)
	}
	// What the state machine would refuse, again and again, is refused here.
	if !idForm.MatchString(doc.ID) {
		return VM{}, errors.New("id: want 1 to 255 of A-Z a-z 0-9 . _ : -")
	}
	if !kindForm.MatchString(doc.Kind) {
		return VM{}, errors.New("kind: want at most 64 of a-z 0-9 _ -")
	}
	vm := VM{ID: doc.ID, Name: doc.Name, Kind: doc.Kind, Phase: fsm.Phase(doc.Phase)}
	if vm.Name == "" {
		vm.Name = vm.ID
	}
	switch vm.Phase {
	case fsm.PhaseRunning, fsm.PhaseIncoming, fsm.PhaseStopped:
	default:
		return VM{}, fmt.Errorf("phase: is %q, want running, incoming or stopped", doc.Phase)
	}
	if len(doc.NICs) > fsm.MaxNICs {
		return VM{}, fmt.Errorf("nics: %d, want at most %d", len(doc.NICs), fsm.MaxNICs)
	}
	total := 0
	for i, n := range doc.NICs {
		var mac fsm.MAC
		if n.MAC != "" {
			var err error
			if mac, err = fsm.ParseMAC(n.MAC); err != nil {
				return VM{}, fmt.Errorf("nics[%d].mac: %w", i, err)
			}
		}
		if err := CheckTap(n.Tap); err != nil {
			return VM{}, fmt.Errorf("nics[%d].tap: %w", i, err)
		}
		nic := fsm.NIC{MAC: mac, Tap: n.Tap}
		if vm.Phase == fsm.PhaseStopped {
			nic.Tap = ""
		}
		if total += len(n.Addresses); total > fsm.MaxVMAddresses {
			return VM{}, fmt.Errorf("nics[%d].addresses: more than %d in all", i, fsm.MaxVMAddresses)
		}
		for j, s := range n.Addresses {
			a, err := Address(s)
			if err != nil {
				return VM{}, fmt.Errorf("nics[%d].addresses[%d]: %w", i, j, err)
			}
			nic.Addresses = append(nic.Addresses, a)
		}
		vm.NICs = append(vm.NICs, nic)
	}
	return vm, nil
}

// plain refuses what could not be shown on one line.
func plain(s string) error {
	switch {
	case len(s) > fsm.MaxNameBytes:
		return fmt.Errorf("longer than %d bytes", fsm.MaxNameBytes)
	case !utf8.ValidString(s):
		return errors.New("not UTF-8")
	case strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0:
		return errors.New("holds a control character")
	}
	return nil
}
