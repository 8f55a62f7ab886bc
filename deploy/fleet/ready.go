package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// readyLimit is how long a fleet may take to elect a leader and to know its guests.
const readyLimit = 60 * time.Second

// Call makes one request to the API of a node, with its token. in (may be nil) is sent as JSON, out
// (may be nil) is filled from the answer. Any status but 2xx is an error with the problem's text.
func (f *Fleet) Call(ctx context.Context, node, method, path string, in, out any) error {
	n, err := f.Node(node)
	if err != nil {
		return err
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, n.API+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+n.Token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	// A connection of its own: an agent that is killed and started must not meet an old one.
	roots, err := f.Roots()
	if err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots},
	}}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("%s: %s %s: %w", node, method, path, err)
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %s %s: %s: %s", node, method, path, res.Status, bytes.TrimSpace(b))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// AwaitReady waits until every agent that runs is ready: has contact with a leader, is caught up, and
// its kernel stands as the state says.
func (f *Fleet) AwaitReady(ctx context.Context) error {
	for _, n := range f.Nodes() {
		if n.Agent.PID == 0 {
			continue
		}
		if err := f.awaitAgent(ctx, n); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return fmt.Errorf("the agent of %s is not ready: %w; %s", n.Name, err, tail(f.AgentLog(n.Name), 8))
		}
	}
	return nil
}

func (f *Fleet) awaitAgent(ctx context.Context, n Node) error {
	return until(ctx, readyLimit, 20*time.Millisecond, func() error {
		err := f.Call(ctx, n.Name, http.MethodGet, "/readyz", nil, nil)
		if err != nil && !n.Agent.Alive() {
			return permanent{errors.New("it has ended")}
		}
		return err
	})
}

// AwaitGuests declares the addresses of the guests that need it, and waits until every node knows
// every guest where it runs.
func (f *Fleet) AwaitGuests(ctx context.Context) error {
	s := f.snapshot()
	for _, g := range s.VMs {
		if g.Netns == "" {
			if err := f.declare(ctx, g); err != nil {
				return err
			}
		}
	}
	type vm struct {
		Node  string `json:"node"`
		State string `json:"state"`
	}
	runs := map[string]bool{}
	for _, n := range s.Nodes {
		runs[n.Name] = n.Agent.PID != 0
	}
	for _, n := range s.Nodes {
		for _, g := range s.VMs {
			if !runs[n.Name] || !runs[g.Node] {
				continue
			}
			err := until(ctx, readyLimit, 20*time.Millisecond, func() error {
				var got vm
				if err := f.Call(ctx, n.Name, http.MethodGet, "/v1/vms/"+g.VM, nil, &got); err != nil {
					return err
				}
				if got.Node != g.Node || got.State != "running" {
					return fmt.Errorf("%s has guest %s %s on %q, want running on %s", n.Name, g.Name, got.State, got.Node, g.Node)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Status is what "demo status" prints.
type Status struct {
	CA     string        `json:"ca"` // file with the certificates that verify the APIs
	Nodes  []NodeStatus  `json:"nodes"`
	Guests []GuestStatus `json:"guests"`
}

// NodeStatus is one node of a Status.
type NodeStatus struct {
	Name   string `json:"name"`
	Netns  string `json:"netns"`
	API    string `json:"api"`
	Token  string `json:"token"`
	Socket string `json:"socket"`
	PID    int    `json:"pid"` // of the agent, 0 if it does not run
}

// GuestStatus is one guest of a Status.
type GuestStatus struct {
	VM        string   `json:"vm"`
	Name      string   `json:"name"`
	Node      string   `json:"node"`
	Netns     string   `json:"netns"` // empty for a QEMU guest
	Addresses []string `json:"addresses"`
}

// Status tells what is up.
func (f *Fleet) Status() Status {
	s := f.snapshot()
	out := Status{CA: f.CAFile(), Nodes: []NodeStatus{}, Guests: []GuestStatus{}}
	for _, n := range s.Nodes {
		ns := NodeStatus{Name: n.Name, Netns: n.Netns, API: n.API, Token: n.Token, Socket: n.Socket}
		if n.Agent.Alive() {
			ns.PID = n.Agent.PID
		}
		out.Nodes = append(out.Nodes, ns)
	}
	for _, g := range s.VMs {
		out.Guests = append(out.Guests, GuestStatus{VM: g.VM, Name: g.Name, Node: g.Node, Netns: g.Netns, Addresses: g.Addresses})
	}
	return out
}
