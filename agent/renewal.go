package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
	"github.com/palisade/palisade/pki"
)

// renewer keeps this node's certificates: that by which its peers know it, and that of its API. Both are renewed at two
// thirds of their life, and at once when the fleet has a new authority.
type renewer struct {
	log     *slog.Logger
	store   *fsm.Store
	cluster certificates
	api     *fleetCertificate // nil if the admin gave files
	names   func() ([]string, []netip.Addr)
	now     func() time.Time
	timing  renewalTiming

	file   string // gets the authorities that are trusted, for clients of the API; empty: none
	failed int    // in a row
	waited bool
}

// certificates is what the renewer needs of the cluster.
type certificates interface {
	Certificate() pki.Member
	AuthorityChanged() bool
	Renew(ctx context.Context) error
	Reload() (bool, error)
	ServingCertificate(ctx context.Context, request []byte, names []string, addrs []netip.Addr) ([][]byte, error)
}

type renewalTiming struct {
	look    time.Duration // how often it looks without a reason
	try     time.Duration // of one try
	again   time.Duration // after a failure, doubled with each more
	longest time.Duration // between two tries
	// spread for each member is how long at most a node waits after a new authority, so that not all ask at once.
	spread, spreadMost time.Duration
}

func defaultRenewalTiming() renewalTiming {
	return renewalTiming{
		look: time.Minute, try: 30 * time.Second, again: time.Second, longest: 5 * time.Minute,
		spread: 20 * time.Millisecond, spreadMost: 30 * time.Second,
	}
}

// Run renews until ctx ends.
func (r *renewer) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		index := r.store.View().Index()
		pause := r.tend(ctx)
		if r.now().Before(r.cluster.Certificate().NotAfter) {
			r.await(ctx, index, pause)
		} else {
			r.awaitCertificate(ctx, pause)
		}
	}
	return nil
}

// tend does what is due and says after which pause to look again at the latest.
func (r *renewer) tend(ctx context.Context) time.Duration {
	f, ok := r.store.View().Fleet()
	if !ok {
		return r.timing.again // the log is being read
	}
	if err := r.keepAuthorities(f); err != nil {
		r.log.Warn("the file with the fleet's authorities can't be written", "file", r.file, "err", err)
	}
	reason := r.due()
	if reason == "" {
		r.waited = false
	}
	if reason == authorityChanged && !r.waited {
		r.waited = true
		return max(time.Millisecond, r.spread())
	}
	var err error
	if reason != "" {
		err = r.renew(ctx, reason)
	}
	err = errors.Join(err, r.serve(ctx, f))
	if err == nil {
		r.failed = 0
		return r.untilDue()
	}
	pause := min(r.timing.again<<min(r.failed, 16), r.timing.longest)
	r.failed++
	r.report(ctx, err, pause)
	return pause
}

const authorityChanged = "the fleet has a new authority"

func (r *renewer) due() string {
	if !r.now().Before(r.cluster.Certificate().RenewAt()) {
		return "it ends soon"
	}
	if r.cluster.AuthorityChanged() {
		return authorityChanged
	}
	return ""
}

func (r *renewer) renew(ctx context.Context, reason string) error {
	r.log.Debug("renewing this node's certificate", "why", reason)
	try, cancel := context.WithTimeout(ctx, r.timing.try)
	defer cancel()
	return r.cluster.Renew(try)
}

// keepAuthorities keeps the file of the trusted authorities in step with the fleet.
func (r *renewer) keepAuthorities(f *fsm.Fleet) error {
	if r.file == "" {
		return nil
	}
	var trusted [][]byte
	for _, ca := range f.CAs {
		trusted = append(trusted, ca.Certificate)
	}
	text := pki.EncodeChain(trusted)
	if was, err := os.ReadFile(r.file); err == nil && bytes.Equal(was, text) {
		return nil
	}
	return files.ReplaceBytes(r.file, text)
}

// serve gets the API a certificate if it needs one.
func (r *renewer) serve(ctx context.Context, f *fsm.Fleet) error {
	if r.api == nil {
		return nil
	}
	ca, _ := f.CurrentCA()
	names, addrs := r.names()
	reason := r.api.due(r.now(), ca.ID, names, addrs)
	if reason == "" {
		return nil
	}
	request, err := pki.Request(r.api.key)
	if err != nil {
		return err
	}
	try, cancel := context.WithTimeout(ctx, r.timing.try)
	defer cancel()
	chain, err := r.cluster.ServingCertificate(try, request, names, addrs)
	if err != nil {
		return err
	}
	if err := r.api.put(chain, wanted(names, addrs)); err != nil {
		return err
	}
	r.log.Info("the API has a new certificate", "why", reason, "until", r.api.cur.Load().Leaf.NotAfter)
	return nil
}

// report says what failed, the louder the less time is left; nothing if it is because ctx has ended.
func (r *renewer) report(ctx context.Context, err error, pause time.Duration) {
	if ctx.Err() != nil {
		return
	}
	m := r.cluster.Certificate()
	left := m.NotAfter.Sub(r.now())
	level, msg := slog.LevelWarn, "a certificate can't be renewed now"
	switch {
	case r.failed == 1 && left > 0:
		level = slog.LevelInfo // no leader for a moment, as at the start
	case left <= 0:
		level, msg = slog.LevelError, "this node's certificate has ended: its peers refuse it; the kernel goes on enforcing. "+
			"\"palisade join-token create --node ID --again\" on a member, and \"palisade join\" here with that token, give it a new one"
	case left < m.NotAfter.Sub(m.NotBefore)/6:
		level, msg = slog.LevelError, "this node's certificate can't be renewed and ends soon: then its peers refuse it"
	}
	r.log.Log(ctx, level, msg, "err", err, "until", m.NotAfter, "again_in", pause)
}

// untilDue is the time until something is due by the clock, at most the time to look again.
func (r *renewer) untilDue() time.Duration {
	at := r.cluster.Certificate().RenewAt()
	if r.api != nil {
		if cert := r.api.cur.Load(); cert != nil {
			if t := pki.RenewAt(cert.Leaf.NotBefore, cert.Leaf.NotAfter); t.Before(at) {
				at = t
			}
		}
	}
	return min(max(at.Sub(r.now()), time.Millisecond), r.timing.look)
}

// spread is a random part of the time in which all nodes should have asked.
func (r *renewer) spread() time.Duration {
	members := 0
	for range r.store.View().Members() {
		members++
	}
	most := min(time.Duration(members)*r.timing.spread, r.timing.spreadMost)
	return time.Duration(rand.Int64N(int64(most) + 1)) //nolint:gosec // no secret
}

// await returns after the pause, or once the fleet's keys have changed after the log index.
func (r *renewer) await(ctx context.Context, index uint64, pause time.Duration) {
	wait, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	for w := r.store.Watch(index); ; {
		_, events, err := w.Next(wait)
		if err != nil { // the pause is over, or the feed was cut
			return
		}
		for i := range events {
			if events[i].Fleet != nil && r.failed == 0 {
				return
			}
		}
	}
}

// awaitCertificate returns after the pause, or once "palisade join" has put a certificate on the disk: none can be asked for with one
// that has ended.
func (r *renewer) awaitCertificate(ctx context.Context, pause time.Duration) {
	for end := r.now().Add(pause); r.now().Before(end); {
		if !sleep(ctx, min(r.timing.again, pause)) {
			return
		}
		changed, err := r.cluster.Reload()
		if err != nil {
			r.log.Error("the certificate on the disk can't be used", "err", err)
			return
		}
		if changed {
			r.failed = 0
			return
		}
	}
}

// apiNames are the names and addresses by which this node's API may be called.
func (a *Agent) apiNames(r *registrar) ([]string, []netip.Addr) {
	names := []string{a.cfg.Node.ID, a.cfg.Node.Name, "localhost"}
	addrs := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	for _, s := range []string{a.cfg.API.Listen, a.cfg.advertisedAPI()} {
		if ap, err := netip.ParseAddrPort(s); err == nil && !ap.Addr().IsUnspecified() {
			addrs = append(addrs, ap.Addr().Unmap())
		}
	}
	if host, _, err := net.SplitHostPort(a.cfg.API.Advertise); err == nil {
		if _, err := netip.ParseAddr(host); err != nil {
			names = append(names, host)
		}
	}
	if n, err := r.self(); err == nil { // without them the rest is served all the same
		addrs = append(addrs, n.Addresses...)
	}
	return sortedUnique(names, strings.Compare), sortedUnique(addrs, netip.Addr.Compare)
}
