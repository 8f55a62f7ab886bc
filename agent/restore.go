package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"github.com/palisade/palisade/backup"
	"github.com/palisade/palisade/cluster"
	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/canary"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/recovery"
)

// RestorePlan is what Restore would do, for people to look at.
type RestorePlan struct {
	backup.Header
	NewEpoch uint64 // that would begin
	Node     string // id of this node
	New      bool   // this node would become a member
	// Losses are what would cease to hold or be agreed: of the state on this node's disk, and of its kernel. Returns is what
	// the state on this disk says was taken back, or has ended, and would be there again.
	Losses  []recovery.Loss
	Returns []recovery.Return
	// Retired are members of the backup that the state on this disk knows as retired. They stay retired.
	Retired []string
	// DiskIndex is the log index of the state on this node's disk, 0 if there is none. Kernel is how many elements its kernel holds.
	DiskIndex uint64
	Kernel    int

	cfg     Config
	content *backup.Content
	off     *cluster.Offline
	log     *slog.Logger
}

// PlanRestore compares a backup with what is on this node. No agent may run on its data directory.
func PlanRestore(ctx context.Context, cfg Config, content *backup.Content, log *slog.Logger) (*RestorePlan, error) {
	to := content.Store.View()
	f, ok := to.Fleet()
	if !ok {
		return nil, errors.New("the backup is of no fleet")
	}
	p := &RestorePlan{Header: content.Header, NewEpoch: f.Epoch + 1, Node: cfg.Node.ID, cfg: cfg, content: content, log: log}
	id, err := cluster.LoadIdentity(cfg.DataDir)
	switch {
	case errors.Is(err, cluster.ErrNoIdentity):
		p.New = true
	case err != nil:
		return nil, err
	case id.Fleet() != f.ID:
		return nil, fmt.Errorf("this node belongs to the fleet %s, the backup is of the fleet %s", id.Fleet(), f.ID)
	default:
		p.NewEpoch = max(p.NewEpoch, id.Epoch()+1)
	}
	if _, known := to.Node(cfg.Node.ID); known && p.New {
		return nil, fmt.Errorf("node %s is in the backup, but this machine has no identity of it: ids are never used again; set node.id to a new one, and retire %s later", cfg.Node.ID, cfg.Node.ID)
	}
	from, err := p.readDisk(f.ID)
	if err != nil {
		return nil, err
	}
	if from != nil {
		p.Losses, p.Returns, p.Retired = recovery.Losses(from, to), recovery.Returns(from, to), recovery.Retired(from, to)
	}
	losses, err := p.readKernel(ctx, from, to)
	if err != nil {
		return nil, fmt.Errorf("what this node's kernel holds can't be read, so nobody knows what would be unblocked: %w", err)
	}
	p.Losses = append(p.Losses, losses...)
	return p, recovery.Try(to, p.Losses)
}

// readDisk returns the state on this node's disk, nil if there is none of this fleet. A damaged one is none.
func (p *RestorePlan) readDisk(fleet string) (*fsm.View, error) {
	off, err := cluster.ReadOffline(p.cfg.storeDir(), p.log)
	if errors.Is(err, cluster.ErrInUse) {
		return nil, err
	}
	if err != nil {
		p.log.Warn("the state on this node's disk can't be read, only its kernel is compared", "err", err)
		p.off = &cluster.Offline{}
		return nil, nil //nolint:nilnil // what can't be read is not there
	}
	p.off = off
	view := off.State.View()
	if f, ok := view.Fleet(); !ok || f.ID != fleet {
		return nil, nil //nolint:nilnil // likewise
	}
	p.DiskIndex = view.Index()
	return view, nil
}

// readKernel returns what this node's kernel holds, the backup would not, and the state on the disk does not explain.
func (p *RestorePlan) readKernel(ctx context.Context, from, to *fsm.View) ([]recovery.Loss, error) {
	kernel, err := nft.Open(nft.Options{Logger: p.log})
	if err != nil {
		return nil, err
	}
	defer func() { _ = kernel.Close() }() // the connection alone
	local := enforce.Local{Node: p.Node, Guards: p.cfg.Node.Guards}
	var out []recovery.Loss
	exists, err := kernel.Exists(ctx)
	if err != nil {
		return nil, err
	}
	if exists {
		missing, err := kernel.Missing(ctx)
		if err != nil {
			return nil, err
		}
		for kind := range missing {
			local.Missing = append(local.Missing, kind)
		}
		held, err := kernel.Adopt(ctx)
		if err != nil {
			return nil, err
		}
		for _, el := range canary.Elements() {
			delete(held.Elements, el) // of nobody's blocks
		}
		p.Kernel = len(held.Elements)
		out = recovery.KernelLosses(maps.Keys(held.Elements), from, to, local)
	}
	lists, err := nft.OpenLists(nft.Options{Logger: p.log})
	if err != nil {
		return nil, err
	}
	defer func() { _ = lists.Close() }()
	switch exists, err := lists.Exists(ctx); {
	case err != nil:
		return nil, err
	case exists && from == nil && enforce.CompileLists(to, local).Empty():
		index, err := lists.Index(ctx)
		if err != nil {
			return nil, err
		}
		if index > 0 {
			out = append(out, recovery.Loss{What: "the lists in this node's kernel: no block on a list is in the backup", Unkept: "put the lists there, and block them again"})
		}
	}
	return out, nil
}

// Do makes this node the only voter of the fleet of the backup, under a new epoch. With keep, what can be carried over of
// the losses is.
func (p *RestorePlan) Do(ctx context.Context, actor, name, zone string, keep bool) (cluster.Refounded, error) {
	peer, gossip := p.cfg.Cluster.advertised()
	o := cluster.RefoundOptions{
		DataDir: p.cfg.DataDir, Actor: actor, How: fsm.EpochRestored, View: p.content.Store.View(), Index: max(p.off.Index, p.DiskIndex), Term: p.off.Term,
		SealKey: p.content.SealKey, Node: p.Node, Name: name, Zone: zone, Address: peer, Gossip: gossip, API: p.cfg.advertisedAPI(),
		Retire: p.Retired, Lifetime: p.cfg.Cluster.CertificateLifetime.Duration,
		Why: fmt.Sprintf("a backup of log index %d, made at %s, was restored as epoch %d", p.Index, p.At.Format("2006-01-02 15:04:05Z"), p.NewEpoch), Logger: p.log,
	}
	if name == "" {
		o.Name = p.cfg.Node.Name
	}
	if keep {
		o.Commands = recovery.Keep(p.Losses)
	}
	out, err := cluster.Refound(ctx, o)
	return out, errors.Join(err, handOver(p.cfg.DataDir))
}

// Lost are the losses that remain: all of them, or with keep those that can't be carried over.
func (p *RestorePlan) Lost(keep bool) []recovery.Loss {
	if !keep {
		return p.Losses
	}
	var out []recovery.Loss
	for _, l := range p.Losses {
		if l.Unkept != "" {
			out = append(out, l)
		}
	}
	return out
}
