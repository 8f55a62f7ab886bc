package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/palisade/palisade/cluster"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi"
	"github.com/palisade/palisade/pki"
)

// InitOptions are what the command line adds to the config of a fleet's first node.
type InitOptions struct {
	Name  string // for people; defaults to that of the config
	Zone  string
	Actor string // who asked for it
}

// Formed is what a new fleet begins with.
type Formed struct {
	Fleet     string    `json:"fleet"`
	Node      string    `json:"node"`
	Authority string    `json:"ca_sha256"` // of the authority's public key, hex
	CAFile    string    `json:"ca_file"`
	NotAfter  time.Time `json:"certificate_until"`
	// Token is the first API token, of scope admin. It is nowhere else.
	Token string `json:"token"`
}

// Init forms a new fleet on this node. The agent may run: it goes on from there by itself.
func Init(cfg Config, o InitOptions, log *slog.Logger) (Formed, error) {
	peer, gossip := cfg.Cluster.advertised()
	token, op := firstToken()
	if o.Name == "" {
		o.Name = cfg.Node.Name
	}
	got, err := cluster.Form(cluster.FormOptions{
		DataDir: cfg.DataDir, Actor: o.Actor, Node: cfg.Node.ID, Name: o.Name, Zone: o.Zone,
		Address: peer, Gossip: gossip, API: cfg.advertisedAPI(), Commands: []fsm.Op{op},
		Lifetime: cfg.Cluster.CertificateLifetime.Duration, Logger: log,
	})
	if err == nil {
		err = handOver(cfg.DataDir)
	}
	if err != nil {
		return Formed{}, err
	}
	return Formed{
		Fleet: got.Fleet, Node: got.Node, Authority: got.Authority, CAFile: cfg.CAFile(), NotAfter: got.NotAfter, Token: token,
	}, nil
}

// JoinOptions are what the command line adds to the config of a node that joins.
type JoinOptions struct {
	Remote string // any member's peer address; without a port, DefaultPeerPort
	Token  string // text of the join token
	Name   string // for people; defaults to that of the config
	Zone   string // defaults to that of the token
}

// DefaultPeerPort is that of cluster.listen in every example.
const DefaultPeerPort = 7420

// Joined is what a node got by joining.
type Joined struct {
	Fleet     string    `json:"fleet"`
	Node      string    `json:"node"`
	Authority string    `json:"ca_sha256"` // of the authority's public key, hex
	NotAfter  time.Time `json:"certificate_until"`
	Index     uint64    `json:"admitted_index"` // log index of the admission
	Peers     int       `json:"members"`        // this node included
	// Again says that this node was a member, and got a new certificate for the key that it has.
	Again bool `json:"again,omitempty"`
}

// ErrToken is wrapped by the error of Join for a text that is no join token.
var ErrToken = pki.ErrToken

// RefusedError is what a fleet said when it did not admit a node, or that the token is of another fleet.
type RefusedError struct{ Err error }

// Error gives what was said.
func (e *RefusedError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// Join has a fleet admit this node. The agent may run: it goes on from there by itself. The same call again is safe, also
// when the answer was lost. The error is a *RefusedError if the fleet was reached and did not admit it.
func Join(ctx context.Context, cfg Config, o JoinOptions) (Joined, error) {
	token, err := pki.ParseJoinToken(o.Token)
	if err != nil {
		return Joined{}, err
	}
	if _, _, err := net.SplitHostPort(o.Remote); err != nil {
		o.Remote = net.JoinHostPort(o.Remote, strconv.Itoa(DefaultPeerPort))
	}
	if o.Name == "" {
		o.Name = cfg.Node.Name
	}
	peer, gossip := cfg.Cluster.advertised()
	got, err := cluster.Join(ctx, cluster.JoinOptions{
		DataDir: cfg.DataDir, Remote: o.Remote, Token: token, Node: cfg.Node.ID, Name: o.Name, Zone: o.Zone,
		Address: peer, Gossip: gossip, API: cfg.advertisedAPI(),
	})
	// What was made must be the agent's also after an error: the key is used again.
	if owned := handOver(cfg.DataDir); err == nil {
		err = owned
	}
	if refused, ok := errors.AsType[*fsm.Error](err); ok {
		return Joined{}, &RefusedError{refused}
	}
	if errors.Is(err, cluster.ErrOtherFleet) {
		return Joined{}, &RefusedError{err}
	}
	if err != nil {
		return Joined{}, err
	}
	return Joined{
		Fleet: got.Fleet, Node: got.Node, Authority: got.Authority, NotAfter: got.NotAfter, Index: got.Index, Peers: got.Peers, Again: got.Again,
	}, nil
}

// firstToken makes the first API token: its text, and the command that makes the fleet know it.
func firstToken() (text string, op fsm.Op) {
	text, hash := httpapi.NewToken()
	return text, fsm.CreateToken{Name: "init", Scope: fsm.ScopeAdmin, Hash: hash}
}
