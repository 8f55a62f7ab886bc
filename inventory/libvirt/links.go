package libvirt

import (
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// links hints at network interfaces that appear or change in this network namespace. Only a hint: if
// the kernel does not give them, arriving guests are seen with libvirt's first event.
type links struct {
	conn    *netlink.Conn
	changed chan struct{} // of capacity 1
	group   sync.WaitGroup
}

func watchLinks() *links {
	l := &links{changed: make(chan struct{}, 1)}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: unix.RTMGRP_LINK})
	if err != nil {
		return l
	}
	l.conn = conn
	l.group.Go(func() {
		for {
			// An overflow (ENOBUFS) is as good a hint as what it lost.
			if _, err := conn.Receive(); err != nil && !errors.Is(err, syscall.ENOBUFS) {
				return
			}
			select {
			case l.changed <- struct{}{}:
			default:
			}
		}
	})
	return l
}

func (l *links) close() {
	if l.conn != nil {
		_ = l.conn.Close()
	}
	l.group.Wait()
}

// retries looks again a few times after a hint: the tap exists some milliseconds before libvirt lists
// its domain.
type retries struct {
	timer *time.Timer
	left  int
}

const (
	retryAfter = 20 * time.Millisecond
	retryTimes = 5 // the pause doubles each time: the last look is 620 ms after the hint
)

func newRetries() *retries {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &retries{timer: t}
}

func (r *retries) begin() {
	r.left = retryTimes
	r.timer.Reset(retryAfter)
}

func (r *retries) next() <-chan time.Time {
	if r.left == 0 {
		return nil
	}
	return r.timer.C
}

// spent is called after a look; it sets the next one.
func (r *retries) spent() {
	if r.left--; r.left > 0 {
		r.timer.Reset(retryAfter << (retryTimes - r.left))
	}
}

func (r *retries) stop() { r.timer.Stop() }
