package httpapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/login"
)

// Scope is what a caller may do.
type Scope = fsm.Scope

// The scopes; package fsm says what each may do.
const (
	ScopeAdmin    = fsm.ScopeAdmin
	ScopeOperator = fsm.ScopeOperator
	ScopeBilling  = fsm.ScopeBilling
	ScopeViewer   = fsm.ScopeViewer
	ScopeMetrics  = fsm.ScopeMetrics
)

// Options configure a Server. Backend is required; zero limits take the defaults named.
type Options struct {
	Backend Backend
	Audit   Audit   // what the state keeps of it, if nil
	Backups Backups // none, if nil
	// DebugBundle writes a debug bundle, a gzipped tar without secrets; nil if there is none.
	DebugBundle func(ctx context.Context, w io.Writer) error
	// LibvirtHook says whether a guest is to be let in, within the time that the node's configuration gives; nil lets in all.
	LibvirtHook func(ctx context.Context, call LibvirtHook) LibvirtAnswer
	// UI answers GET and HEAD of every path that is no route and not under /v1, without a caller; nil if there is none.
	UI       http.Handler
	OIDC     *login.OIDC          // logs users in by an identity provider, if not nil
	Registry *prometheus.Registry // of /metrics; a new one if nil
	Logger   *slog.Logger         // discards if nil
	Version  string               // of the build
	Now      func() time.Time     // time.Now if nil

	MaxBodyBytes       int64         // 1 MiB
	MaxBulkBytes       int64         // of a bulk request, 64 MiB
	MaxListBytes       int64         // of a list that is put in place, 128 MiB
	MaxHeaderBytes     int           // 16 KiB
	MaxConns           int           // open TCP connections, 1024; the Unix socket is not counted
	MaxConnsPerSource  int           // of them, from one address or IPv6 /64 network, 256
	MaxStreams         int           // event streams, 256
	ReadHeaderTimeout  time.Duration // 5 s
	ReadTimeout        time.Duration // of a whole request, 10 s
	WriteTimeout       time.Duration // of an answer, without the time it waits for receipts, 30 s
	IdleTimeout        time.Duration // 2 min
	ProposeTimeout     time.Duration // 10 s
	AskTimeout         time.Duration // for receipts and counters in reads, 300 ms
	Heartbeat          time.Duration // of event streams, 15 s
	StreamWriteTimeout time.Duration // of one write to an event stream, 10 s
	SessionIdle        time.Duration // ends a session that was not used for so long, 1 h
	SessionLifetime    time.Duration // of a session, however it is used, 12 h
	ShutdownTimeout    time.Duration // for requests in flight when Serve's context ends, 5 s
}

func (o *Options) setDefaults() {
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	if o.Backups == nil {
		o.Backups = noBackups{}
	}
	if o.Audit == nil {
		o.Audit = stateAudit{o.Backend}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	def(&o.MaxBodyBytes, 1<<20)
	def(&o.MaxBulkBytes, 64<<20)
	def(&o.MaxListBytes, fsm.MaxListBytes)
	def(&o.MaxHeaderBytes, 16<<10)
	def(&o.MaxConns, 1024)
	def(&o.MaxConnsPerSource, 256)
	def(&o.MaxStreams, 256)
	def(&o.ReadHeaderTimeout, 5*time.Second)
	def(&o.ReadTimeout, 10*time.Second)
	def(&o.WriteTimeout, 30*time.Second)
	def(&o.IdleTimeout, 2*time.Minute)
	def(&o.ProposeTimeout, 10*time.Second)
	def(&o.AskTimeout, 300*time.Millisecond)
	def(&o.Heartbeat, 15*time.Second)
	def(&o.StreamWriteTimeout, 10*time.Second)
	def(&o.SessionIdle, time.Hour)
	def(&o.SessionLifetime, 12*time.Hour)
	def(&o.ShutdownTimeout, 5*time.Second)
}

func def[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (o *Options) validate() error {
	if o.Backend == nil {
		return errors.New("httpapi: Options.Backend is missing")
	}
	return nil
}
