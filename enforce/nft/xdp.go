package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// cutter attaches a program that drops every frame to interfaces whose frames are read from packet sockets: XDP, also
// the generic kind, comes before these. It stays on the interface when the process ends.
type cutter struct {
	links
	program *ebpf.Program // nil until it is needed
	id      uint32        // of program
}

// links asks about the interfaces of a namespace.
type links struct {
	netNS   int
	timeout time.Duration
}

// link is an interface as the kernel reports it.
type link struct {
	name string
	xdp  uint32 // the id of the XDP program on it, 0 if there is none
}

// load loads the program, once.
func (c *cutter) load() error {
	if c.program != nil {
		return nil
	}
	const dropped = 1 // XDP_DROP
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "palisade_cut", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, dropped), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("load an XDP program (CAP_BPF is needed): %w", err)
	}
	info, err := p.Info()
	if err == nil {
		id, ok := info.ID()
		if c.id = uint32(id); !ok || id == 0 {
			err = errors.New("the kernel gave it no number")
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("ask for an XDP program: %w", err), p.Close())
	}
	c.program = p
	return nil
}

func (c *cutter) close() error {
	if c.program == nil {
		return nil
	}
	p := c.program
	c.program = nil
	return p.Close()
}

// attach puts the program onto an interface that has none.
func (c *cutter) attach(index int) error {
	if err := c.set(index, int32(c.program.FD()), unix.XDP_FLAGS_SKB_MODE|unix.XDP_FLAGS_UPDATE_IF_NOEXIST); err != nil {
		return fmt.Errorf("attach an XDP program: %w", err)
	}
	return nil
}

func (c *cutter) detach(index int) error {
	if err := c.set(index, -1, unix.XDP_FLAGS_SKB_MODE); err != nil {
		return fmt.Errorf("detach an XDP program: %w", err)
	}
	return nil
}

func (c *cutter) set(index int, fd int32, flags uint32) error {
	a, nest := openNest(ifInfo(index), unix.IFLA_XDP)
	a = appendAttr(a, unix.IFLA_XDP_FD, binary.NativeEndian.AppendUint32(nil, uint32(fd)))
	a = appendAttr(a, unix.IFLA_XDP_FLAGS, binary.NativeEndian.AppendUint32(nil, flags))
	_, err := c.route(unix.RTM_SETLINK, netlink.Acknowledge, closeNest(a, nest))
	return err
}

// look returns an interface; found is false if there is none with the index.
func (n links) look(index int) (l link, found bool, err error) {
	replies, err := n.route(unix.RTM_GETLINK, 0, ifInfo(index))
	if errors.Is(err, unix.ENODEV) {
		return l, false, nil
	}
	if err != nil || len(replies) != 1 || len(replies[0].Data) < unix.SizeofIfInfomsg {
		return l, false, errors.Join(fmt.Errorf("look at interface %d: %d answers", index, len(replies)), err)
	}
	for typ, v := range attrs(replies[0].Data[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = attrText(v)
		case unix.IFLA_XDP:
			for typ, v := range attrs(v) {
				if typ == unix.IFLA_XDP_PROG_ID && len(v) == 4 {
					l.xdp = binary.NativeEndian.Uint32(v)
				}
			}
		}
	}
	return l, true, nil
}

// route has one exchange with rtnetlink.
func (n links) route(typ netlink.HeaderType, flags netlink.HeaderFlags, data []byte) (_ []netlink.Message, err error) {
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: n.netNS})
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer func() { err = errors.Join(err, nl.Close()) }()
	if err := nl.SetDeadline(time.Now().Add(n.timeout)); err != nil {
		return nil, err
	}
	return nl.Execute(netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | flags}, Data: data})
}

// ifInfo is the header of a message about an interface.
func ifInfo(index int) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}
