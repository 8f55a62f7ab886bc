package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// readBytes is what one read takes. The kernel makes dump messages of up to 32 KiB for a reader
	// that offers as much; each message costs a walk of the set from its start.
	readBytes = 64 << 10
	// elementsPerMessage keeps the list of elements below the 64 KiB that an attribute can have.
	elementsPerMessage = 400
	// queriesInFlight are asked in one write. Each answer takes about 1 KiB of the receive buffer.
	queriesInFlight = 256
	// bufferBytesMost bounds how far buffers grow after ENOBUFS or EMSGSIZE.
	bufferBytesMost = 64 << 20
)

// wire is one lasting netlink socket. It is used by one goroutine at a time. After any error but a
// missing element the socket is not usable: answers may be lost or still be on their way.
type wire struct {
	nl      *netlink.Conn
	raw     syscall.RawConn // of nl
	in, out []byte          // of get
	timeout time.Duration
}

func dial(netNS, bufferBytes int, timeout time.Duration) (*wire, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netNS, MessageBufferSize: readBytes})
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// Errors come without the message that they are about, which could be 64 KiB.
	err = nl.SetOption(netlink.CapAcknowledge, true)
	// Both try SO_RCVBUFFORCE and SO_SNDBUFFORCE first: the system's limit is about 208 KiB.
	if err == nil {
		err = nl.SetReadBuffer(bufferBytes)
	}
	if err == nil {
		err = nl.SetWriteBuffer(bufferBytes)
	}
	var raw syscall.RawConn
	if err == nil {
		raw, err = nl.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up a netlink socket: %w", err), nl.Close())
	}
	return &wire{nl: nl, raw: raw, in: make([]byte, readBytes), timeout: timeout}, nil
}

func (w *wire) close() error { return w.nl.Close() }

// deadline bounds one exchange. The kernel answers before the write returns, so it only passes if an
// answer was lost.
func (w *wire) deadline(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return w.nl.SetDeadline(time.Now().Add(w.timeout))
}

func message(typ uint16, flags netlink.HeaderFlags, f family, attrs []byte) netlink.Message {
	data := append(make([]byte, 0, attrHeader+len(attrs)), byte(f), unix.NFNETLINK_V0, 0, 0)
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ),
			Flags: netlink.Request | flags,
		},
		Data: append(data, attrs...),
	}
}

// batch is one transaction: the kernel takes all of it or nothing, in both tables.
type batch struct {
	messages []netlink.Message
	what     []string // of each message, for errors
}

func (b *batch) add(typ uint16, flags netlink.HeaderFlags, f family, what string, attrs []byte) {
	b.messages = append(b.messages, message(typ, flags, f, attrs))
	b.what = append(b.what, what)
}

func (b *batch) empty() bool { return len(b.messages) == 0 }

// refusedError says that the kernel refused a transaction because of one message.
type refusedError struct {
	message int
	err     error
}

func (e *refusedError) Error() string { return e.err.Error() }

func (e *refusedError) Unwrap() error { return e.err }

// commit sends the batch and waits for the kernel's answer. Any error but a context that ended
// before leaves it open whether the transaction is in the kernel.
func (w *wire) commit(ctx context.Context, b *batch) error {
	if b.empty() {
		return nil
	}
	if err := w.deadline(ctx); err != nil {
		return err
	}
	edge := func(typ uint16) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request},
			Data:   binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, unix.NFNL_SUBSYS_NFTABLES),
		}
	}
	all := make([]netlink.Message, 0, len(b.messages)+2)
	all = append(all, edge(unix.NFNL_MSG_BATCH_BEGIN))
	all = append(all, b.messages...)
	all = append(all, edge(unix.NFNL_MSG_BATCH_END))
	// The acknowledgement of the last message comes after the commit, and after the errors of all
	// others.
	last := len(b.messages)
	all[last].Header.Flags |= netlink.Acknowledge

	sent, err := w.nl.SendMessages(all)
	if err != nil {
		return fmt.Errorf("send a transaction of %d messages: %w", len(b.messages), err)
	}
	for {
		replies, err := w.nl.Receive()
		if err != nil {
			if op := (*netlink.OpError)(nil); errors.As(err, &op) {
				if i := int(op.Sequence - sent[0].Header.Sequence); op.Sequence != 0 && i >= 1 && i <= last {
					return &refusedError{i - 1, fmt.Errorf("%s: %w", b.what[i-1], err)}
				}
			}
			return fmt.Errorf("commit: %w", err)
		}
		for _, r := range replies {
			if r.Header.Type == netlink.Error && r.Header.Sequence == sent[last].Header.Sequence {
				return nil
			}
		}
	}
}

// dump calls each with the attributes of every object of a kind.
func (w *wire) dump(ctx context.Context, typ uint16, f family, request []byte, each func(attrs []byte)) error {
	if err := w.deadline(ctx); err != nil {
		return err
	}
	if _, err := w.nl.Send(message(typ, netlink.Dump, f, request)); err != nil {
		return fmt.Errorf("ask for a dump: %w", err)
	}
	for m, err := range w.nl.ReceiveIter() {
		if err != nil {
			return fmt.Errorf("read a dump: %w", err)
		}
		if err := w.deadline(ctx); err != nil {
			return err
		}
		if len(m.Data) >= attrHeader && m.Data[0] == byte(f) {
			each(m.Data[attrHeader:])
		}
	}
	return nil
}

// ask returns the attributes of one object; found is false if there is none.
func (w *wire) ask(ctx context.Context, typ uint16, f family, request []byte) (answer []byte, found bool, err error) {
	if err := w.deadline(ctx); err != nil {
		return nil, false, err
	}
	if _, err := w.nl.Send(message(typ, 0, f, request)); err != nil {
		return nil, false, fmt.Errorf("ask: %w", err)
	}
	replies, err := w.nl.Receive()
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("read an answer: %w", err)
	case len(replies) != 1 || len(replies[0].Data) < attrHeader:
		return nil, false, fmt.Errorf("read an answer: %d messages, want 1", len(replies))
	}
	return replies[0].Data[attrHeader:], true, nil
}

// generation is a number that changes with every transaction of anyone in this network namespace.
func (w *wire) generation(ctx context.Context) (uint32, error) {
	answer, found, err := w.ask(ctx, unix.NFT_MSG_GETGEN, 0, nil)
	if err != nil {
		return 0, fmt.Errorf("ask for the generation: %w", err)
	}
	for typ, v := range attrs(answer) {
		if typ == unix.NFTA_GEN_ID {
			return attrUint32(v), nil
		}
	}
	return 0, fmt.Errorf("ask for the generation: no answer (found %t)", found)
}

// query asks for one element of one set.
type query struct {
	family family
	set    string
	key    []byte
}

// answer is what the kernel has of a query's element.
type answer struct {
	found   bool
	counter [2]uint64 // packets, bytes
	chain   string
}

// get asks for single elements, many in one write, and returns as many answers. A missing element,
// set or table is an answer, not an error.
func (w *wire) get(ctx context.Context, table string, queries []query) ([]answer, error) {
	answers := make([]answer, len(queries))
	for first := 0; first < len(queries); first += queriesInFlight {
		end := min(first+queriesInFlight, len(queries))
		if err := w.getSome(ctx, table, queries[first:end], answers[first:end]); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// getSome writes and reads without the netlink package: under load it is most of what a change costs,
// and takes no memory of its own this way. The kernel has put all answers into the receive buffer
// before the write returns.
func (w *wire) getSome(ctx context.Context, table string, queries []query, answers []answer) error {
	if err := w.deadline(ctx); err != nil {
		return err
	}
	w.out = w.out[:0]
	for i, q := range queries {
		w.out = appendQuery(w.out, uint32(i), table, q)
	}
	if err := w.send(w.out); err != nil {
		return fmt.Errorf("ask for %d elements: %w", len(queries), err)
	}
	for answered := 0; answered < len(queries); {
		n, err := w.receive(w.in)
		if err != nil {
			return fmt.Errorf("read back elements: %w", err)
		}
		for b := w.in[:n]; len(b) > 0; answered++ {
			h, data, rest, err := cutMessage(b)
			if err != nil {
				return fmt.Errorf("read back elements: %w", err)
			}
			i := h.Sequence
			switch {
			case i >= uint32(len(queries)):
				return fmt.Errorf("read back elements: an answer to something else (type %d)", h.Type)
			case h.Type != netlink.Error:
				eachElement(data, func(e element) { answers[i] = answer{true, e.counter, e.chain} })
			default:
				if err := errorIn(data); !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("read back elements: %w", err)
				}
			}
			b = rest
		}
	}
	return nil
}
