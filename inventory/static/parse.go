package static

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

var errUnchanged = errors.New("unchanged")

// racy is how old a file must be for its stamp to be trusted: two writes within one tick of the file
// system's clock can leave the same stamp.
const racy = 2 * time.Second

// read returns the content of a regular file of at most MaxFileBytes, or errUnchanged if its stamp is
// the one before.
func read(path string, before stamp) ([]byte, stamp, error) {
	// Without O_NONBLOCK a FIFO of this name would stop the driver.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, stamp{}, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, stamp{}, errors.New("not a regular file")
	}
	now := stamp{modified: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		now.inode = sys.Ino
	}
	if now == before && time.Since(info.ModTime()) > racy {
		return nil, now, errUnchanged
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return nil, stamp{}, err
	}
	if len(data) > MaxFileBytes {
		return nil, now, fmt.Errorf("larger than %d bytes", MaxFileBytes)
	}
	return data, now, nil
}

var (
	idForm   = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,255}$`)
	kindForm = regexp.MustCompile(`^[a-z0-9_-]{0,64}$`)
)

// document is a file as written.
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

// parse reads one file. Its errors name the field. The tap of a stopped VM is dropped: the interface
// does not exist, and its name may by now be that of another VM.
func parse(data []byte) (inventory.VM, error) {
	var doc document
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		var wrong *json.UnmarshalTypeError
		switch {
		case errors.As(err, &wrong) && wrong.Field == "":
			return inventory.VM{}, fmt.Errorf("is a JSON %s, want an object", wrong.Value)
		case wrong != nil:
			return inventory.VM{}, fmt.Errorf("%s: is a JSON %s, want %s", wrong.Field, wrong.Value, wrong.Type)
		}
		return inventory.VM{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return inventory.VM{}, errors.New("more than one JSON value")
	}
	return doc.vm()
}

func (doc document) vm() (inventory.VM, error) {
	if err := plain(doc.Name); err != nil {
		return inventory.VM{}, fmt.Errorf("name: %w", err)
	}
	// What the state machine would refuse, again and again, is refused here.
	if !idForm.MatchString(doc.ID) {
		return inventory.VM{}, errors.New("id: want 1 to 255 of A-Z a-z 0-9 . _ : -")
	}
	if !kindForm.MatchString(doc.Kind) {
		return inventory.VM{}, errors.New("kind: want at most 64 of a-z 0-9 _ -")
	}
	vm := inventory.VM{ID: doc.ID, Name: doc.Name, Kind: doc.Kind, Phase: fsm.Phase(doc.Phase)}
	if vm.Name == "" {
		vm.Name = vm.ID
	}
	switch vm.Phase {
	case fsm.PhaseRunning, fsm.PhaseIncoming, fsm.PhaseStopped:
	default:
		return inventory.VM{}, fmt.Errorf("phase: is %q, want running, incoming or stopped", doc.Phase)
	}
	if len(doc.NICs) > fsm.MaxNICs {
		return inventory.VM{}, fmt.Errorf("nics: %d, want at most %d", len(doc.NICs), fsm.MaxNICs)
	}
	total := 0
	for i, n := range doc.NICs {
		mac, err := fsm.ParseMAC(n.MAC)
		if err != nil {
			return inventory.VM{}, fmt.Errorf("nics[%d].mac: %w", i, err)
		}
		if err := inventory.CheckTap(n.Tap); err != nil {
			return inventory.VM{}, fmt.Errorf("nics[%d].tap: %w", i, err)
		}
		nic := fsm.NIC{MAC: mac, Tap: n.Tap}
		if vm.Phase == fsm.PhaseStopped {
			nic.Tap = ""
		}
		if total += len(n.Addresses); total > fsm.MaxVMAddresses {
			return inventory.VM{}, fmt.Errorf("nics[%d].addresses: more than %d in all", i, fsm.MaxVMAddresses)
		}
		for j, s := range n.Addresses {
			a, err := inventory.Address(s)
			if err != nil {
				return inventory.VM{}, fmt.Errorf("nics[%d].addresses[%d]: %w", i, j, err)
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
