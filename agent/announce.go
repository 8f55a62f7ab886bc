package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// announcer tells bridges and switches where a guest is, once its hardware address has left this
// node's kernel. A guest that migrates while it is blocked announces itself in vain: its frames are
// dropped like all others. Without this its peers would go on sending to the node that it left, until
// the guest itself speaks or their caches run out.
type announcer struct {
	log     *slog.Logger
	node    string
	view    func() *fsm.View
	local   localGuests
	forward func(tap string, mac fsm.MAC) error // teaches the bridges; announce but in tests

	wake  chan struct{}
	mu    sync.Mutex // guards below
	freed []fsm.MAC
}

// localGuests is what the announcer needs of the enforcer.
type localGuests interface {
	// Guests calls f for each interface of a guest here that has one of the addresses.
	Guests(macs map[fsm.MAC]struct{}, f func(vm string, nic fsm.NIC))
	// UnlessHeld calls f unless the address is blocked; no block of it is reported in force before f
	// has returned.
	UnlessHeld(mac fsm.MAC, f func() error) error
}

var _ localGuests = (*enforcer)(nil)

// announceAfter are the pauses before each announcement. The first ones may be lost: the other nodes
// lift the block some milliseconds sooner or later. The last one is for a guest that was about to
// arrive when its block was lifted.
func announceAfter() []time.Duration {
	return []time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond, 1500 * time.Millisecond}
}

func newAnnouncer(log *slog.Logger, node string, view func() *fsm.View, local localGuests) *announcer {
	return &announcer{log: log, node: node, view: view, local: local, forward: announce, wake: make(chan struct{}, 1)}
}

// Freed takes the addresses that the kernel has just been told to let pass. It does not block.
func (a *announcer) Freed(macs []fsm.MAC) {
	a.mu.Lock()
	a.freed = append(a.freed, macs...)
	a.mu.Unlock()
	signal(a.wake)
}

// Run announces until ctx ends.
func (a *announcer) Run(ctx context.Context) error {
	var rounds sync.WaitGroup
	defer rounds.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
			macs := map[fsm.MAC]struct{}{}
			a.mu.Lock()
			for _, m := range a.freed {
				macs[m] = struct{}{}
			}
			a.freed = nil
			a.mu.Unlock()
			rounds.Go(func() { a.rounds(ctx, macs) })
		}
	}
}

// rounds looks anew each time which of the addresses are here: guests come and go, and are blocked
// again.
func (a *announcer) rounds(ctx context.Context, macs map[fsm.MAC]struct{}) {
	for _, pause := range announceAfter() {
		if !sleep(ctx, pause) {
			return
		}
		view := a.view()
		guarded := view.GuardedMACs()
		var here []fsm.NIC
		a.local.Guests(macs, func(vm string, nic fsm.NIC) {
			// One that is in flight announces itself where it arrives: a late word from the node that
			// it leaves would lead everyone astray.
			known, ok := view.VM(vm)
			_, notOurs := guarded[nic.MAC]
			if ok && known.State == fsm.VMRunning && known.Node == a.node && !notOurs {
				here = append(here, nic)
			}
		})
		for _, nic := range here {
			err := a.local.UnlessHeld(nic.MAC, func() error { return a.forward(nic.Tap, nic.MAC) })
			if err != nil {
				a.log.Warn("can't tell the bridges where a guest is; they learn it when it speaks", "tap", nic.Tap, "mac", nic.MAC, "err", err)
			}
		}
	}
}

// Guests meets localGuests.
func (e *enforcer) Guests(macs map[fsm.MAC]struct{}, f func(vm string, nic fsm.NIC)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for vm, nics := range e.local.NICs.All() {
		for _, n := range nics {
			if _, ok := macs[n.MAC]; ok && n.Tap != "" {
				f(vm, n)
			}
		}
	}
}

// UnlessHeld meets localGuests: what is compiled while f runs waits, and so does its way to the kernel.
func (e *enforcer) UnlessHeld(mac fsm.MAC, f func() error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.compiler.Holds(enforce.Element{MAC: mac}) {
		return nil
	}
	return f()
}

// announce makes the bridge of a tap forward to it what is for the address, and broadcasts from there
// what QEMU sends at the end of a migration (a RARP request, of which only the source counts), so
// that everyone else forwards to this node. A tap without a Linux bridge (routed, Open vSwitch) is
// left alone.
func announce(tap string, mac fsm.MAC) error {
	port, err := netlink.LinkByName(tap)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", tap, err)
	}
	master := port.Attrs().MasterIndex
	if master == 0 {
		return nil
	}
	if bridge, err := netlink.LinkByIndex(master); err != nil {
		return fmt.Errorf("find the bridge of %s: %w", tap, err)
	} else if bridge.Type() != "bridge" {
		return nil
	}
	// A bridge does not learn from what it sends itself.
	if err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, HardwareAddr: mac[:],
		State: unix.NUD_REACHABLE, Flags: unix.NTF_MASTER | unix.NTF_USE,
	}); err != nil {
		return fmt.Errorf("forward %v to %s: %w", mac, tap, err)
	}
	return broadcast(master, rarp(mac))
}

// rarp is a reverse ARP request of a host for itself (RFC 903), padded to the least size of a frame.
func rarp(mac fsm.MAC) []byte {
	return slices.Concat(
		[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac[:], []byte{unix.ETH_P_RARP >> 8, unix.ETH_P_RARP & 0xff},
		[]byte{0, 1, 8, 0, 6, 4, 0, 3}, // Ethernet, IPv4, reverse request
		mac[:], make([]byte, 4), mac[:], make([]byte, 4), make([]byte, 18),
	)
}

// broadcast sends one whole frame from an interface.
func broadcast(index int, frame []byte) (err error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	to := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(frame[12:]), Ifindex: index, Halen: 6}
	if err := unix.Sendto(fd, frame, 0, to); err != nil {
		return fmt.Errorf("send to interface %d: %w", index, err)
	}
	return nil
}
