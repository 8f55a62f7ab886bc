// Command probe is one end of a test flow, run inside a network namespace. It prints one JSON object
// when it is ready, and one for every line that it reads from standard input; it ends with it.
//
//	probe sink ADDR:PORT             receive numbered UDP packets
//	probe source FROM TO:PORT RATE   send numbered UDP packets, RATE a second, until told to stop
//	probe echo FROM TO:PORT RATE     the same, and record the echoes
//	probe tcpsink ADDR:PORT          accept one connection and count what it brings
//	probe tcpsource FROM TO:PORT RATE  open one connection and write numbered records
//	probe answer ADDR PORT           echo UDP and TCP until standard input ends
//	probe station ADDR:PORT...       send and receive many flows, as the lines say (probe.StationOrder)
//	probe wire node|outside MAC...   watch the frames of hardware addresses, and tell of them on every line
//
// The times are the kernel's receive stamps (CLOCK_REALTIME), taken when a packet enters the namespace,
// however late the process runs.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/palisade/palisade/internal/probe"
)

// end is one end of a flow. stop ends the sending, report may be called at any time.
type end interface {
	stop()
	report() probe.Report
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 1 && args[0] == "station" {
		return runStation(args[1:])
	}
	if len(args) > 2 && args[0] == "wire" {
		return runWire(args[1], args[2:])
	}
	e, err := open(args)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(probe.Report{}); err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "stop" {
			e.stop()
		}
		if err := out.Encode(e.report()); err != nil {
			return err
		}
	}
	return nil
}

func open(args []string) (end, error) {
	if len(args) < 2 {
		return nil, errors.New("usage: probe sink|source|echo|tcpsink|tcpsource|answer ADDRESSES [RATE]")
	}
	if args[0] == "sink" || args[0] == "tcpsink" {
		at, err := netip.ParseAddrPort(args[1])
		if err != nil {
			return nil, err
		}
		if args[0] == "sink" {
			return newUDP(at, netip.AddrPort{}, 0)
		}
		return newTCPSink(at)
	}
	if args[0] == "answer" {
		at, err := netip.ParseAddrPort(args[1])
		if err != nil {
			return nil, err
		}
		return newAnswer(at)
	}
	if len(args) != 4 {
		return nil, fmt.Errorf("%s wants FROM TO:PORT RATE", args[0])
	}
	from, err := netip.ParseAddr(args[1])
	if err != nil {
		return nil, err
	}
	to, err := netip.ParseAddrPort(args[2])
	if err != nil {
		return nil, err
	}
	rate, err := strconv.Atoi(args[3])
	if err != nil || rate <= 0 || rate > 200_000 {
		return nil, fmt.Errorf("rate %q: want 1 to 200000 packets a second", args[3])
	}
	switch args[0] {
	case "source", "echo":
		return newUDP(netip.AddrPortFrom(from, 0), to, rate)
	case "tcpsource":
		return newTCPSource(from, to, rate)
	}
	return nil, fmt.Errorf("unknown kind of end %q", args[0])
}

// pace calls send with 0, 1, 2, … at the rate until it returns false. It catches up after a pause of
// the machine, so that the rate holds over time.
func pace(rate int, stopped <-chan struct{}, send func(seq uint64) bool) {
	tick := max(time.Millisecond, time.Second/time.Duration(rate))
	start := time.Now()
	t := time.NewTicker(tick)
	defer t.Stop()
	for seq := uint64(0); ; {
		due := uint64(time.Since(start).Seconds() * float64(rate))
		for ; seq < due; seq++ {
			select {
			case <-stopped:
				return
			default:
			}
			if !send(seq) {
				return
			}
		}
		select {
		case <-stopped:
			return
		case <-t.C:
		}
	}
}
