package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/internal/probe"
)

// wire watches every interface of its namespace for frames of some hardware addresses.
type wire struct {
	outside bool
	macs    [][]byte

	mu     sync.Mutex
	frames []probe.Frame
}

// runWire answers every line of standard input with what was seen, until it ends.
func runWire(where string, macs []string) error {
	w := &wire{outside: where == "outside"}
	for _, m := range macs {
		mac, err := net.ParseMAC(m)
		if err != nil {
			return err
		}
		w.macs = append(w.macs, mac)
	}
	var all [2]byte
	binary.BigEndian.PutUint16(all[:], unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16(all[:])))
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
	); err != nil {
		return err
	}
	go w.read(fd)
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(probe.Tally{}); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		w.mu.Lock()
		seen := w.frames
		w.frames = nil
		w.mu.Unlock()
		if err := out.Encode(probe.Tally{Frames: seen}); err != nil {
			return err
		}
	}
	return in.Err()
}

func (w *wire) read(fd int) {
	names := map[int]string{}
	b, oob := make([]byte, 128), make([]byte, 128)
	for {
		n, oobn, _, from, err := unix.Recvmsg(fd, b, oob, 0)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			fmt.Fprintln(os.Stderr, "probe: packet socket:", err)
			os.Exit(1)
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || n < 14 {
			continue
		}
		f, ours := w.frame(b[:n])
		if !ours {
			continue
		}
		// Interfaces come and go with the guests, and their numbers are not used again.
		if _, known := names[link.Ifindex]; !known {
			if dev, err := net.InterfaceByIndex(link.Ifindex); err == nil {
				names[link.Ifindex] = dev.Name
			}
		}
		dev, out := names[link.Ifindex], link.Pkttype == unix.PACKET_OUTGOING
		f.Tap = strings.HasPrefix(dev, "vnet")
		switch {
		case w.outside:
			f.Passed = f.From && !out && strings.HasPrefix(dev, "up") // came out of a node
		case dev == "br0":
			f.Passed = !out // reached the node's own stack; what goes out there comes from it
		default:
			f.Passed = out // left by a port of the bridge: to a guest or to the wire
		}
		if !f.Passed && (!f.From || !f.Tap) {
			continue // neither did it pass, nor is it what a guest tried
		}
		if f.At, err = stamp(oob[:oobn]); err != nil {
			fmt.Fprintln(os.Stderr, "probe:", err)
			os.Exit(1)
		}
		w.mu.Lock()
		w.frames = append(w.frames, f)
		w.mu.Unlock()
	}
}

// frame reads whose frame it is, and its number if it has one.
func (w *wire) frame(b []byte) (f probe.Frame, ours bool) {
	for i, mac := range w.macs {
		if f.From = bytes.Equal(b[6:12], mac); f.From || bytes.Equal(b[:6], mac) {
			f.Address, ours = i, true
			break
		}
	}
	if !ours {
		return f, false
	}
	const ethernet, udpHeader, echo = 14, 8, 7
	ip := 20
	switch protocol := binary.BigEndian.Uint16(b[12:]); {
	case protocol == unix.ETH_P_IP && len(b) > 34 && b[23] == unix.IPPROTO_UDP:
	case protocol == unix.ETH_P_IPV6 && len(b) > 54 && b[20] == unix.IPPROTO_UDP:
		ip = 40
	default:
		return f, true
	}
	udp := b[ethernet+ip:]
	if len(udp) >= udpHeader+16 && (binary.BigEndian.Uint16(udp) == echo || binary.BigEndian.Uint16(udp[2:]) == echo) {
		f.Stream, f.Seq = binary.BigEndian.Uint64(udp[udpHeader:]), binary.BigEndian.Uint64(udp[udpHeader+8:])
	}
	return f, true
}
