package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Migrate tells the nodes of a light guest in the order of a real hypervisor. The methods here do the same steps one
// by one, for tests in which the news come late, twice, in the wrong order or not at all.

// Tell writes what a node's hypervisor says of a light guest: "running", "incoming" or "stopped".
func (f *Fleet) Tell(vm, node, phase string) error {
	g, n, err := f.light(vm, node)
	if err != nil {
		return err
	}
	return announce(n, g, phase)
}

// TellUnnoticed is Tell without the notification: the node finds out when it reads everything again. The node must have
// been told of the guest before.
func (f *Fleet) TellUnnoticed(vm, node, phase string) error {
	g, n, err := f.light(vm, node)
	if err != nil {
		return err
	}
	b, err := inventoryEntry(g, phase)
	if err != nil {
		return err
	}
	// Whoever watches a directory is not told of what is written to a file of it by another name.
	path := inventoryFile(n, g)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if pad := int(info.Size()) - len(b); pad > 0 {
		b = append(b, bytes.Repeat([]byte{' '}, pad)...)
	}
	other := filepath.Join(n.Dir, g.VM+".unnoticed")
	if err := os.Link(path, other); err != nil {
		return err
	}
	file, err := os.OpenFile(other, os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteAt(b, 0)
		err = errors.Join(err, file.Close())
	}
	return errors.Join(err, os.Remove(other))
}

// Forget removes what a node's hypervisor says of a light guest. It is no error if it says nothing.
func (f *Fleet) Forget(vm, node string) error {
	g, n, err := f.light(vm, node)
	if err != nil {
		return err
	}
	return withdraw(n, g)
}

// MoveWire moves a light guest to another node's bridge and tells nobody but the bridges. Between the two times its
// packets may be lost by the move itself.
func (f *Fleet) MoveWire(ctx context.Context, vm, node string) (detached, attached time.Time, err error) {
	g, to, err := f.light(vm, node)
	if err != nil {
		return detached, attached, err
	}
	if g.Node == node {
		return detached, attached, fmt.Errorf("%s is on %s already", vm, node)
	}
	from, err := f.Node(g.Node)
	if err != nil {
		return detached, attached, err
	}
	return f.moveWire(ctx, g, from, to)
}

// light finds a node and a light guest that is not bound to its node.
func (f *Fleet) light(vm, node string) (Guest, Node, error) {
	g, err := f.Guest(vm)
	if err != nil {
		return g, Node{}, err
	}
	if g.Netns == "" || g.Routed {
		return g, Node{}, fmt.Errorf("%s is no light guest on a bridge", vm)
	}
	n, err := f.Node(node)
	return g, n, err
}

// inventoryEntry is what the inventory file of a light guest holds.
func inventoryEntry(g Guest, phase string) ([]byte, error) {
	type nic struct {
		MAC       string   `json:"mac"`
		Tap       string   `json:"tap"`
		Addresses []string `json:"addresses"`
	}
	return json.Marshal(map[string]any{
		"id": g.VM, "name": g.Name, "kind": "netns", "phase": phase,
		"nics": []nic{{g.MAC, g.Tap, g.Addresses}},
	})
}

// announce writes the inventory file of a light guest on a node.
func announce(n Node, g Guest, phase string) error {
	b, err := inventoryEntry(g, phase)
	if err != nil {
		return err
	}
	return writeFile(inventoryFile(n, g), b)
}

func withdraw(n Node, g Guest) error {
	if err := os.Remove(inventoryFile(n, g)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func inventoryFile(n Node, g Guest) string { return filepath.Join(n.Dir, vmsName, g.VM+".json") }
