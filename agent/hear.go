package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
)

// listenFor blocks until the guest announces itself from its tap, which it can only do when it runs: what QEMU sends at the end of a
// migration (RARP), a gratuitous ARP or an unsolicited neighbour advertisement. It hears a guest that is blocked, too: packets are seen here
// before any rule. It fails when the tap is not there or goes, and when ctx ends.
func listenFor(ctx context.Context, tap string, mac fsm.MAC) (err error) {
	port, err := net.InterfaceByName(tap)
	if err != nil {
		return fmt.Errorf("interface %s: %w", tap, err)
	}
	// Protocol 0 receives nothing until it is bound, with the filter in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	sock := os.NewFile(uintptr(fd), "packets of "+tap)
	defer func() { err = errors.Join(err, sock.Close()) }()
	if err := filterAnnouncements(fd, mac); err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: port.Index}); err != nil {
		return fmt.Errorf("bind to %s: %w", tap, err)
	}
	defer context.AfterFunc(ctx, func() { _ = sock.SetReadDeadline(time.Unix(1, 0)) })()
	if _, err := sock.Read(make([]byte, 64)); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	return nil
}

// filterAnnouncements lets through what a guest with the hardware address tells of itself.
func filterAnnouncements(fd int, mac fsm.MAC) error {
	const outgoing, rarp, arp, ipv6, icmp6, advertisement, solicited = 4, 0x8035, 0x0806, 0x86dd, 58, 136, 0x40
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: outgoing, SkipTrue: 19}, // to the guest
		bpf.LoadAbsolute{Off: 6, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(mac[:4]), SkipTrue: 17},
		bpf.LoadAbsolute{Off: 10, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16(mac[4:])), SkipTrue: 15},
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: rarp, SkipTrue: 12},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arp, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: ipv6, SkipTrue: 4, SkipFalse: 11},
		bpf.LoadAbsolute{Off: 28, Size: 4}, // who sends the ARP asks for or tells of itself
		bpf.TAX{},
		bpf.LoadAbsolute{Off: 38, Size: 4},
		bpf.JumpIfX{Cond: bpf.JumpEqual, SkipTrue: 6, SkipFalse: 7},
		bpf.LoadAbsolute{Off: 20, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmp6, SkipTrue: 5},
		bpf.LoadAbsolute{Off: 54, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: advertisement, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 58, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: solicited, SkipTrue: 1},
		bpf.RetConstant{Val: 64},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}
