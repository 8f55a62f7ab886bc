package fleet

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// CAFile holds the certificates (PEM) that verify the APIs of all nodes, as they were when the fleet was formed.
// A client that trusts them goes on to do so over one rotation of the fleet's authority.
func (f *Fleet) CAFile() string { return filepath.Join(f.dir, caName) }

// Roots are the certificates in CAFile.
func (f *Fleet) Roots() (*x509.CertPool, error) {
	pem, err := os.ReadFile(f.CAFile())
	if err != nil {
		return nil, fmt.Errorf("the fleet is not formed yet: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", f.CAFile())
	}
	return pool, nil
}

func (n Node) identity() string { return filepath.Join(n.Dir, "data", "identity") }

// enrolled says whether a node belongs to a fleet.
func (n Node) enrolled() bool {
	_, err := os.Stat(filepath.Join(n.identity(), "fleet.json"))
	return err == nil
}

// PeerAddress is where the other nodes reach the agent of this one.
func (n Node) PeerAddress() string {
	return netip.AddrPortFrom(netip.MustParseAddr(n.Addresses[0]), peerPort).String()
}

// enroll makes a node a member: by palisade init if no node is one, else by palisade join with a token
// that a member's agent gives.
func (f *Fleet) enroll(ctx context.Context, node string) error {
	n, err := f.Node(node)
	if err != nil || n.enrolled() {
		return err
	}
	s := f.snapshot()
	if _, err := os.Stat(f.CAFile()); errors.Is(err, fs.ErrNotExist) {
		if _, err := tool(ctx, "", n.enter(s.Binary, "init", "--config", n.configFile(), "-o", "json")...); err != nil {
			return fmt.Errorf("form the fleet on %s: %w", node, err)
		}
		pem, err := os.ReadFile(filepath.Join(n.identity(), "ca.pem"))
		if err != nil {
			return err
		}
		return writeFile(f.CAFile(), pem)
	}
	return f.join(ctx, n)
}

func (f *Fleet) join(ctx context.Context, n Node) error {
	token, at, err := f.JoinToken(ctx, n.Name)
	if err != nil {
		return err
	}
	argv := n.enter(f.snapshot().Binary, "join", at, "--config", n.configFile(), "--token-file", "-", "--wait", "0", "-o", "json")
	if _, err := tool(ctx, token+"\n", argv...); err != nil {
		return fmt.Errorf("join %s: %w", n.Name, err)
	}
	return nil
}

// JoinToken has the fleet make a join token for a node id (any if it is empty), and returns it with the peer address of the
// member that made it. It waits until a member can.
func (f *Fleet) JoinToken(ctx context.Context, node string) (token, address string, err error) {
	err = until(ctx, readyLimit, 50*time.Millisecond, func() error {
		err := errors.New("no agent of the fleet runs that could admit another node")
		for _, n := range f.Nodes() {
			if !n.enrolled() || !n.Agent.Alive() {
				continue
			}
			var got struct {
				Token string `json:"token"`
			}
			if err = f.Call(ctx, n.Name, http.MethodPost, "/v1/join-tokens", map[string]string{"node": node}, &got); err == nil {
				token, address = got.Token, n.PeerAddress()
				return nil
			}
		}
		return err
	})
	return token, address, err
}

func (n Node) configFile() string { return filepath.Join(n.Dir, "agent.toml") }

// startAll starts the agents of a new fleet and lets each join as soon as it can.
func (f *Fleet) startAll(ctx context.Context, nodes []Node) error {
	for _, n := range nodes {
		if err := f.StartAgent(ctx, n.Name); err != nil {
			return err
		}
	}
	return nil
}
