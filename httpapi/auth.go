package httpapi

import (
	"context"
	"crypto/sha256"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// scopeOpen marks a route that needs no caller.
const scopeOpen Scope = "open"

// scopeAny marks a route for every caller that is known.
const scopeAny Scope = "any"

// caller is who sent a request.
type caller struct {
	actor string // "token:NAME", "unix:UID", "" if nobody was asked for
	scope Scope
	from  string // "local" on the Unix socket, else the address; for the audit
	local bool   // root on the Unix socket
	// What admitted the caller, if it is in the state.
	token   *fsm.Token
	session *fsm.Session
}

// allows says whether a caller with the scope may use a route that needs another.
func allows(granted, needed Scope) bool {
	switch needed {
	case scopeOpen:
		return true
	case scopeAny:
		return slices.Contains(fsm.Scopes(), granted)
	case ScopeMetrics, ScopeViewer:
		return granted == ScopeAdmin || granted == ScopeOperator || granted == ScopeViewer || granted == needed
	case ScopeOperator:
		return granted == ScopeAdmin || granted == ScopeOperator
	case ScopeAdmin:
		return granted == ScopeAdmin
	case ScopeBilling: // no route needs it: what it may use is said there
	}
	return false // fail closed
}

// admits says whether a caller with the scope may use the route.
func (rt *route) admits(granted Scope) bool {
	return allows(granted, rt.scope) || rt.billing && granted == ScopeBilling
}

// peerKey carries the peer of a Unix connection in its context.
type peerKey struct{}

// peer is the process at the other end of a Unix connection.
type peer struct {
	uid uint32
	err error // why the kernel did not say
}

// connContext notes who is at the other end of a Unix connection. TCP connections have no peer.
func connContext(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	var p peer
	raw, err := uc.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			var cred *unix.Ucred
			if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				p.uid = cred.Uid
			}
		})
		if err == nil {
			err = cerr
		}
	}
	p.err = err
	return context.WithValue(ctx, peerKey{}, p)
}

// identify finds out who calls. A caller on the Unix socket is known by the kernel and needs no token.
func (s *Server) identify(r *http.Request) (caller, *wire.Problem) {
	if p, ok := r.Context().Value(peerKey{}).(peer); ok {
		return identifyPeer(p)
	}
	h := r.Header.Get("Authorization")
	if h == "" {
		if c, err := r.Cookie(sessionCookie); err == nil {
			return s.identifySession(r, c.Value)
		}
		return caller{}, problem(wire.CodeUnauthorized, "send the header Authorization: Bearer TOKEN, or log in")
	}
	scheme, token, _ := strings.Cut(h, " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return caller{}, problem(wire.CodeUnauthorized, "the Authorization header is not of the form: Bearer TOKEN")
	}
	sum := sha256.Sum256([]byte(token))
	if t, ok := s.opts.Backend.View().TokenByHash(sum); ok {
		if t.Expired(s.clock()) {
			return caller{}, problem(wire.CodeUnauthorized, "the token %s has expired at %s", t.Name, t.ExpiresAt.Format(time.RFC3339))
		}
		return caller{actor: "token:" + t.Name, scope: t.Scope, from: remote(r), token: t}, nil
	}
	if !s.opts.Backend.Status().CaughtUp {
		// It may be known to the fleet: the caller should try again, here or elsewhere, and not give up.
		return caller{}, problem(wire.CodeNotReady, "this node does not have the fleet's state yet, and does not know the token")
	}
	return caller{}, problem(wire.CodeUnauthorized, "the token is not known to the fleet")
}

// remote is the address that a request came from.
func remote(r *http.Request) string {
	if from, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return from
	}
	return r.RemoteAddr
}

func identifyPeer(p peer) (caller, *wire.Problem) {
	if p.err != nil {
		return caller{}, problem(wire.CodeForbidden, "the kernel did not tell who calls on the Unix socket")
	}
	if p.uid != 0 && p.uid != uint32(os.Geteuid()) { // Linux uids fit
		return caller{}, problem(wire.CodeForbidden, "uid %d may not call on the Unix socket; only root may", p.uid)
	}
	return caller{actor: "unix:" + strconv.FormatUint(uint64(p.uid), 10), scope: ScopeAdmin, from: "local", local: true}, nil
}

// authorize admits a request to a route or says why not.
func (s *Server) authorize(r *http.Request, rt *route) (caller, *wire.Problem) {
	if rt.scope == scopeOpen {
		if changes(r) && rt.add != nil { // a login
			return caller{from: remote(r)}, sameOrigin(r)
		}
		return caller{from: remote(r)}, nil
	}
	c, p := s.identify(r)
	if p != nil {
		return caller{}, p
	}
	if c.session != nil && changes(r) {
		if p := sameOrigin(r); p != nil {
			return caller{}, p
		}
	}
	if rt.scope == scopeLocal && c.local {
		return c, nil
	}
	if !rt.admits(c.scope) {
		return caller{}, problem(wire.CodeForbidden, "%s has scope %q; this needs %q", c.actor, c.scope, rt.scope)
	}
	return c, nil
}
