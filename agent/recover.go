package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/palisade/palisade/cluster"
	"github.com/palisade/palisade/fsm"
)

// RecoverPlan is what Recover would do, for people to look at.
type RecoverPlan struct {
	Fleet string `json:"fleet"`
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"` // that would begin
	// Index is that of the last entry on this node's disk. Others may have had later ones.
	Index  uint64 `json:"index"`
	Blocks int    `json:"active_blocks"`
	VMs    int    `json:"vms"`
	// Voters are those that the store knows of, and Members all nodes of the fleet; both with this one.
	Voters  []string `json:"voters"`
	Members []string `json:"members"`
	// Gated says that the store was not filled since it was lost: it may lack what this node once had.
	Gated bool `json:"gated,omitempty"`

	cfg Config
	off *cluster.Offline
	log *slog.Logger
}

// storeDir is where the cluster keeps the store.
func (c *Config) storeDir() string { return filepath.Join(c.DataDir, "raft") }

// PlanRecover reads what this node has. No agent may run on its data directory.
func PlanRecover(cfg Config, log *slog.Logger) (*RecoverPlan, error) {
	id, err := cluster.LoadIdentity(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	off, err := cluster.ReadOffline(cfg.storeDir(), log)
	if err != nil {
		return nil, fmt.Errorf("this node's store can't be used: %w", err)
	}
	view := off.State.View()
	f, ok := view.Fleet()
	if !ok {
		return nil, errors.New("this node's store holds no state: it was lost, or never filled; recover on another node, or restore a backup")
	}
	if n, known := view.Node(id.Node()); !known || !n.Member() {
		return nil, fmt.Errorf("node %s is no member of the fleet by its own state", id.Node())
	}
	p := &RecoverPlan{
		Fleet: f.ID, Node: id.Node(), Epoch: max(f.Epoch, id.Epoch()) + 1, Index: off.Index, Blocks: view.CountActive(), VMs: view.CountVMs(),
		Voters: off.Voters, Members: []string{}, Gated: off.Gated, cfg: cfg, off: off, log: log,
	}
	for n := range view.Members() {
		p.Members = append(p.Members, n.ID)
	}
	return p, nil
}

// Lost are the other voters.
func (p *RecoverPlan) Lost() []string {
	return slices.DeleteFunc(slices.Clone(p.Voters), func(id string) bool { return id == p.Node })
}

// Do makes this node the only voter of its fleet, under a new epoch.
func (p *RecoverPlan) Do(ctx context.Context, actor string, sealKey []byte) (cluster.Refounded, error) {
	peer, gossip := p.cfg.Cluster.advertised()
	out, err := cluster.Refound(ctx, cluster.RefoundOptions{
		DataDir: p.cfg.DataDir, Actor: actor, How: fsm.EpochRecovered, View: p.off.State.View(), Index: p.off.Index, Term: p.off.Term,
		SealKey: sealKey, Node: p.Node, Address: peer, Gossip: gossip, API: p.cfg.advertisedAPI(),
		Why: fmt.Sprintf("the fleet was recovered on this node as epoch %d, from log index %d", p.Epoch, p.Index), Logger: p.log,
	})
	return out, errors.Join(err, handOver(p.cfg.DataDir))
}
