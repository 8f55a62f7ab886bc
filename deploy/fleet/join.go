package fleet

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// CAFile holds the certificates (PEM) that verify the APIs of all nodes. The agent of the first node keeps it in step
// with the fleet; a client that has read it goes on to trust over one rotation of the fleet's authority.
func (f *Fleet) CAFile() string {
	return filepath.Join(Node{Dir: filepath.Join(f.dir, nodeName(1))}.identity(), "ca.pem")
}

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

// enroll makes a node a member: the first by palisade init, the others by palisade join with a token that a member's
// agent gives.
func (f *Fleet) enroll(ctx context.Context, node string) error {
	n, err := f.Node(node)
	if err != nil || n.enrolled() {
		return err
	}
	s := f.snapshot()
	if n.Name != nodeName(1) {
		return f.join(ctx, n)
	}
	out, err := tool(ctx, "", n.enter(s.Binary, "init", "--config", n.configFile(), "-o", "json")...)
	if err == nil {
		err = f.keepToken(out)
	}
	if err != nil {
		return fmt.Errorf("form the fleet on %s: %w", node, err)
	}
	return nil
}

// keepToken notes the token that palisade init printed: it works on every node.
func (f *Fleet) keepToken(printed []byte) error {
	var formed struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(printed, &formed); err != nil || formed.Token == "" {
		return errors.New("palisade init printed no token")
	}
	return f.update(func(s *state) {
		for i := range s.Nodes {
			s.Nodes[i].Token = formed.Token
		}
	})
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
