package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
)

// link is a network interface of this node, as the kernel reports it.
type link struct {
	Index      int
	Name       string
	MAC        fsm.MAC // zero if it has no Ethernet address
	Kind       string  // as in "ip -details link": tun, veth, bridge, macvtap, …; "" for hardware
	Master     int     // index of the bridge or other interface that it is a port of; 0: none
	MasterKind string  // bridge, openvswitch, bond, …; "" without a master
	Flags      uint32  // unix.IFF_UP and so on
}

// linkChange is one interface before and after. Before is zero for one that appeared, Now for one that
// is gone. An interface that was deleted and made again while news was lost is gone and appeared.
type linkChange struct{ Before, Now link }

// linkMonitor knows this node's interfaces and tells of their changes as they happen. It is the one
// listener of the agent: what else needs interfaces subscribes here. It is safe for concurrent use.
type linkMonitor struct {
	log    *slog.Logger
	relist time.Duration // how often all are listed, in case that news was lost without a word
	buffer int           // bytes of news that wait to be read

	mu      sync.RWMutex // guards below; held while subscribers are told, so that none misses or repeats anything
	links   map[int]link
	listed  chan struct{} // closed after the first list
	tell    []func([]linkChange)
	started bool
}

const (
	// relistLinks is when interfaces are listed without news.
	relistLinks = 30 * time.Second
	// linkBuffer holds the news of some thousand interfaces that come at once, in bytes.
	linkBuffer = 8 << 20
	// skipStatistics is RTEXT_FILTER_SKIP_STATS: a list without counters has half the size.
	skipStatistics = 1 << 3
)

func newLinkMonitor(log *slog.Logger) *linkMonitor {
	return &linkMonitor{log: log, relist: relistLinks, buffer: linkBuffer, links: map[int]link{}, listed: make(chan struct{})}
}

// Subscribe has f called with every change from now on, in order and without delay; first, if interfaces
// are known already, with all of them. f is called by one goroutine at a time and holds up all news: it
// must return at once, must not call the monitor, and must not keep the slice. One that wants to gather
// news, or to do anything slow, signals a goroutine of its own.
func (m *linkMonitor) Subscribe(f func([]linkChange)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tell = append(m.tell, f)
	if len(m.links) == 0 {
		return
	}
	all := make([]linkChange, 0, len(m.links))
	for _, l := range m.links {
		all = append(all, linkChange{Now: l})
	}
	f(all)
}

// Listed is closed once all interfaces are known.
func (m *linkMonitor) Listed() <-chan struct{} { return m.listed }

// All returns the interfaces that exist now, in no order.
func (m *linkMonitor) All() []link {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]link, 0, len(m.links))
	for _, l := range m.links {
		all = append(all, l)
	}
	return all
}

// Run listens until ctx ends.
func (m *linkMonitor) Run(ctx context.Context) error {
	for {
		if err := m.listen(ctx); ctx.Err() == nil {
			m.log.Warn("can't listen to the changes of this node's interfaces; trying again", "err", err)
		}
		if !sleep(ctx, time.Second) {
			return nil
		}
	}
}

// listen subscribes before it lists: what it lists may be told again, but nothing is missed.
func (m *linkMonitor) listen(ctx context.Context) error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: unix.RTMGRP_LINK})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }()
	if err := conn.SetReadBuffer(m.buffer); err != nil {
		return fmt.Errorf("buffer of link news: %w", err)
	}
	for {
		if err := m.list(); err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(m.relist)); err != nil {
			return err
		}
		for {
			msgs, err := conn.Receive()
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ENOBUFS) {
				break // nothing was told, or too much of it
			}
			if err != nil {
				return err
			}
			m.hear(msgs)
		}
	}
}

// hear applies news.
func (m *linkMonitor) hear(msgs []netlink.Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var changes []linkChange
	for _, msg := range msgs {
		l, err := parseLink(msg)
		switch {
		case err != nil:
			m.log.Warn("the kernel tells of an interface what can't be read", "err", err)
		case l.Index == 0: // not of an interface itself
		case msg.Header.Type == unix.RTM_DELLINK:
			changes = m.put(changes, l.Index, link{})
		default:
			l.MasterKind = m.links[l.Master].Kind // the kernel tells of a master before its ports
			changes = m.put(changes, l.Index, l)
		}
	}
	m.told(changes)
}

// list asks for all interfaces, and applies the difference.
func (m *linkMonitor) list() error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(unix.IFLA_EXT_MASK, skipStatistics)
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	msgs, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
		Data:   append(make([]byte, unix.SizeofIfInfomsg), attrs...),
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	present := make(map[int]link, len(msgs))
	for _, msg := range msgs {
		l, err := parseLink(msg)
		if err != nil {
			return err
		}
		present[l.Index] = l
	}
	delete(present, 0)
	var changes []linkChange
	for index := range m.links {
		if _, ok := present[index]; !ok {
			changes = m.put(changes, index, link{})
		}
	}
	for index, l := range present {
		l.MasterKind = present[l.Master].Kind
		changes = m.put(changes, index, l)
	}
	m.told(changes)
	if !m.started {
		m.started = true
		close(m.listed)
	}
	return nil
}

// put notes what an interface is now, and appends the change if there is one. The caller holds mu.
func (m *linkMonitor) put(changes []linkChange, index int, now link) []linkChange {
	before := m.links[index]
	if now == before || now.Index == 0 && before.Index == 0 {
		return changes
	}
	if now.Index == 0 {
		delete(m.links, index)
		return append(changes, linkChange{Before: before})
	}
	m.links[index] = now
	return append(changes, linkChange{before, now})
}

// told passes changes on. The caller holds mu.
func (m *linkMonitor) told(changes []linkChange) {
	if len(changes) == 0 {
		return
	}
	for _, f := range m.tell {
		f(changes)
	}
}

// parseLink reads one message. The index is 0 for one that is not of an interface itself: a bridge tells
// of its ports in the same group, and "deletes" one that leaves it.
func parseLink(msg netlink.Message) (link, error) {
	if t := msg.Header.Type; t != unix.RTM_NEWLINK && t != unix.RTM_DELLINK || len(msg.Data) < unix.SizeofIfInfomsg || msg.Data[0] != unix.AF_UNSPEC {
		return link{}, nil
	}
	order := binary.NativeEndian
	l := link{Index: int(int32(order.Uint32(msg.Data[4:]))), Flags: order.Uint32(msg.Data[8:])}
	ad, err := netlink.NewAttributeDecoder(msg.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return link{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			l.Name = ad.String()
		case unix.IFLA_ADDRESS:
			if hw := ad.Bytes(); len(hw) == len(l.MAC) {
				l.MAC = fsm.MAC(hw)
			}
		case unix.IFLA_MASTER:
			l.Master = int(ad.Uint32())
		case unix.IFLA_LINKINFO:
			ad.Nested(func(info *netlink.AttributeDecoder) error {
				for info.Next() {
					if info.Type() == unix.IFLA_INFO_KIND {
						l.Kind = info.String()
					}
				}
				return nil
			})
		}
	}
	return l, ad.Err()
}
