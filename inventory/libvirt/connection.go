package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

var (
	errNoDomain   = errors.New("no such domain")
	errConnection = errors.New("libvirt")
)

// ref names a domain to libvirt.
type ref struct {
	id, name string
	dom      golibvirt.Domain
}

func refOf(d golibvirt.Domain) ref { return ref{id: uuid(d.UUID), name: d.Name, dom: d} }

// connection is one connection to libvirt. Its calls are made by one goroutine; none takes longer than
// the timeout, after which the connection is closed. The library's own signal of a lost connection can
// be missed when it is lost while connecting, so the socket is watched instead.
type connection struct {
	rpc     *golibvirt.Libvirt
	sock    *watchedConn
	timeout time.Duration
	detach  func() bool // of the context that closes the socket
	lost    <-chan struct{}
	events  chan ref
	ended   context.Context // of the subscriptions; ends after the socket, so that ending costs no call
	end     context.CancelFunc
	group   sync.WaitGroup
}

// dial connects. The connection is closed when ctx ends.
func dial(ctx context.Context, o Options) (*connection, error) {
	dialer := net.Dialer{Timeout: o.Timeout}
	raw, err := dialer.DialContext(ctx, "unix", o.Socket)
	if err != nil {
		return nil, err
	}
	sock := &watchedConn{Conn: raw, lost: make(chan struct{})}
	c := &connection{
		rpc: golibvirt.NewWithDialer(ready{sock}), sock: sock, timeout: o.Timeout, lost: sock.lost,
		events: make(chan ref),
	}
	c.ended, c.end = context.WithCancel(context.Background())
	c.detach = context.AfterFunc(ctx, func() { _ = raw.Close() })
	if err := c.call("connect", func() error { return c.rpc.ConnectToURI(golibvirt.ConnectURI(o.URI)) }); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// close ends the connection and returns when its goroutines are about to end.
func (c *connection) close() {
	c.detach()
	_ = c.sock.Close()
	c.end()
	c.group.Wait()
}

// call makes one call under the timeout and sorts its error.
func (c *connection) call(what string, f func() error) error {
	timer := time.AfterFunc(c.timeout, func() { _ = c.sock.Close() })
	err := f()
	inTime := timer.Stop()
	var answer golibvirt.Error
	switch {
	case err == nil:
		return nil
	case !inTime:
		return fmt.Errorf("%w: no answer to %s within %v", errConnection, what, c.timeout)
	case golibvirt.IsNotFound(err):
		return errNoDomain
	case errors.As(err, &answer):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%w: %s: %w", errConnection, what, err)
}

// subscribe asks for all events that can change what is known.
func (c *connection) subscribe() error {
	for _, id := range []golibvirt.DomainEventID{
		golibvirt.DomainEventIDLifecycle, golibvirt.DomainEventIDDeviceAdded, golibvirt.DomainEventIDDeviceRemoved,
	} {
		var stream <-chan any
		err := c.call("subscribe", func() (err error) {
			stream, err = c.rpc.SubscribeEvents(c.ended, id, nil)
			return err
		})
		if err != nil {
			return err
		}
		c.group.Go(func() { c.forward(stream) })
	}
	return nil
}

// forward reads a stream until the library closes it, also when nobody wants the events any more:
// else the library's goroutine would stay.
func (c *connection) forward(stream <-chan any) {
	for e := range stream {
		var d golibvirt.Domain
		switch m := e.(type) {
		case *golibvirt.DomainEventCallbackLifecycleMsg:
			d = m.Msg.Dom
		case *golibvirt.DomainEventCallbackDeviceAddedMsg:
			d = m.Dom
		case *golibvirt.DomainEventCallbackDeviceRemovedMsg:
			d = m.Msg.Dom
		default:
			continue
		}
		select {
		case c.events <- refOf(d):
		case <-c.ended.Done():
		}
	}
}

// drain gives the domains of all events that wait, each once.
func (c *connection) drain(first ref) []ref {
	refs := []ref{first}
	for {
		select {
		case r := <-c.events:
			if !slices.ContainsFunc(refs, func(o ref) bool { return o.id == r.id }) {
				refs = append(refs, r)
			}
		default:
			return refs
		}
	}
}

func (c *connection) ping() error {
	return c.call("ping", func() error { _, err := c.rpc.ConnectGetLibVersion(); return err })
}

// domains lists all domains, or only the active ones.
func (c *connection) domains(active bool) ([]ref, error) {
	var flags golibvirt.ConnectListAllDomainsFlags
	if active {
		flags = golibvirt.ConnectListDomainsActive
	}
	var refs []ref
	err := c.call("list domains", func() error {
		doms, _, err := c.rpc.ConnectListAllDomains(1, flags)
		for _, d := range doms {
			refs = append(refs, refOf(d))
		}
		return err
	})
	if err != nil && !errors.Is(err, errConnection) {
		err = fmt.Errorf("%w: %w", errConnection, err) // without a list there is nothing to go on from
	}
	return refs, err
}

// state asks for the state of a domain, and for the direction of its migration if the state needs it.
func (c *connection) state(r ref, needsJob func(state) bool) (state, error) {
	var s state
	err := c.call("get state", func() (err error) {
		s.state, s.reason, err = c.rpc.DomainGetState(r.dom, 0)
		return err
	})
	if err != nil {
		return s, err
	}
	if golibvirt.DomainState(s.state) == golibvirt.DomainShutoff {
		err = c.call("get persistence", func() error {
			yes, err := c.rpc.DomainIsPersistent(r.dom)
			s.persistent = yes != 0
			return err
		})
		return s, err
	}
	if needsJob(s) {
		s.receiving, err = c.receiving(r)
	}
	return s, err
}

// receiving says whether a migration into the domain is going on. libvirt has no query for that; but
// it refuses the statistics of such a job with a code of their own ("available only on the source").
func (c *connection) receiving(r ref) (bool, error) {
	err := c.call("get job", func() error { _, _, err := c.rpc.DomainGetJobStats(r.dom, 0); return err })
	var answer golibvirt.Error
	if errors.As(err, &answer) {
		return golibvirt.ErrorNumber(answer.Code) == golibvirt.ErrOperationUnsupported, nil
	}
	return false, err
}

func (c *connection) xml(r ref) (text string, err error) {
	err = c.call("get XML", func() (err error) {
		text, err = c.rpc.DomainGetXMLDesc(r.dom, 0)
		return err
	})
	return text, err
}

// ready is a dialer whose connection exists already.
type ready struct{ conn net.Conn }

func (r ready) Dial() (net.Conn, error) { return r.conn, nil }

// watchedConn tells when reading from it failed for good.
type watchedConn struct {
	net.Conn
	once sync.Once
	lost chan struct{}
}

func (w *watchedConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.once.Do(func() { close(w.lost) })
	}
	return n, err
}
