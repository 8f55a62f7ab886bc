package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi"
)

var _ httpapi.Backend = (*rooms)(nil)

func (r *rooms) View() *fsm.View                { return r.store.View() }
func (r *rooms) Watch(from uint64) *fsm.Watcher { return r.store.Watch(from) }
func (r *rooms) Members() []fsm.Member          { return r.cluster.Members() }
func (r *rooms) Status() fsm.Status             { return r.cluster.Status() }

func (r *rooms) Propose(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	return r.cluster.Propose(ctx, c)
}

func (r *rooms) Ask(ctx context.Context, node string, q fsm.Query) (fsm.Report, error) {
	return r.cluster.Ask(ctx, node, q)
}

func (r *rooms) RotateCA(ctx context.Context, actor, from string) error {
	return r.cluster.RotateCA(ctx, actor, from)
}

func (r *rooms) RotateGossipKey(ctx context.Context, actor, from string) error {
	return r.cluster.RotateGossipKey(ctx, actor, from)
}

func (r *rooms) ReadIndex(ctx context.Context) (uint64, error) { return r.cluster.ReadIndex(ctx) }

func (r *rooms) Sighting(vm string) (fsm.Sighting, bool) { return r.sightings.get(r.store.View(), vm) }

// answer is this node's own report, for itself and for its peers.
func (a *Agent) answer(ctx context.Context, r *rooms, q fsm.Query) (fsm.Report, error) {
	view, rep := r.standing(ctx, a.log, q)
	rep.Node, rep.Version = a.cfg.Node.ID, a.version
	rep.Problems = r.watchdog.Problems()
	rep.ClockOffset, rep.ClockKnown = r.clock.Offset()
	rep.Warning = cmp.Or(r.auditor.Warning(), r.pager.Warning(), r.saver.Warning(), asideWarning(r.cluster.Status().Aside))
	if q.AuditFrom != 0 {
		var err error
		if rep.Audit, err = r.auditor.Answer(ctx, q.AuditFrom); err != nil {
			return rep, err
		}
	}
	if q.Sources {
		rep.Sources = r.loader.Statuses()
	}
	if q.Drops != nil {
		rep.Drops = r.enforcer.series.Answer(*q.Drops)
	}
	if q.SourceGuard != "" {
		rep.SourceGuard = r.sources.Report(q.SourceGuard)
	}
	if q.Explain != nil {
		rep.Explained = a.explain(ctx, r, view, *q.Explain)
	}
	return rep, nil
}

// standing reports on the state and the kernel, and returns the view that this is about.
func (r *rooms) standing(ctx context.Context, log *slog.Logger, q fsm.Query) (*fsm.View, fsm.Report) {
	if q.WaitIndex != 0 {
		// A deadline that passes is no failure: the report says how far the kernel is.
		_ = r.enforcer.WaitEnforced(ctx, q.WaitIndex)
		if holdsLists(r.store.View(), q.Blocks) {
			_ = r.lists.WaitEnforced(ctx, q.WaitIndex)
		}
	}
	view := r.store.View()
	rep := fsm.Report{At: time.Now(), Applied: view.Index(), Hash: view.Hash()}
	rep.EnforcedBlocks, rep.Problem = r.enforcer.Standing()
	lists, problem := r.lists.Standing()
	rep.Enforced = min(rep.EnforcedBlocks, lists)
	if problem != "" && rep.Problem == "" {
		rep.Problem = "lists: " + problem
	}
	if _, problem := r.sources.Standing(); problem != "" && rep.Problem == "" {
		rep.Problem = "source guard: " + problem
	}
	if err := r.store.Halted(); err != nil {
		rep.Problem = err.Error()
	}
	rep.Problem = cmp.Or(rep.Problem, r.enforcer.drift.unsolved())
	if len(q.Blocks) == 0 {
		return view, rep
	}
	rep.Blocks = make(map[string]fsm.BlockReport, min(len(q.Blocks), fsm.MaxQueryBlocks))
	for _, id := range q.Blocks[:min(len(q.Blocks), fsm.MaxQueryBlocks)] {
		b, ok := view.Block(id)
		if !ok {
			continue
		}
		if b.Target.List != "" {
			rep.Blocks[id] = r.lists.Receipt(view, b)
			continue
		}
		// Without counters the receipt still stands: it is about what is held, not what was dropped.
		br, err := r.enforcer.Receipt(context.WithoutCancel(ctx), b)
		if err != nil {
			log.Warn("can't read the counters of a block", "block", id, "err", err)
		}
		rep.Blocks[id] = br
	}
	return view, rep
}

// asideWarning tells of the newest store that was set aside, as long as it is there.
func asideWarning(aside []fsm.SetAside) string {
	for _, s := range aside {
		if _, err := os.Lstat(s.Path); err == nil {
			return fmt.Sprintf("a store was set aside at %s (%s); it is in %s, remove it once it has been looked at",
				s.At.Format(time.RFC3339), s.Why, s.Path)
		}
	}
	return ""
}

// sightings keeps what gossip says of VMs until the log says it too.
type sightings struct {
	mu sync.Mutex
	vm map[string]fsm.Sighting
}

// maxSightings bounds the hints kept; each is dropped as soon as a commit has caught up with it.
const maxSightings = 10_000

func newSightings() *sightings { return &sightings{vm: map[string]fsm.Sighting{}} }

func (s *sightings) put(view *fsm.View, seen fsm.Sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.vm[seen.VM]; ok && old.Epoch > seen.Epoch {
		return
	}
	if len(s.vm) >= maxSightings {
		for id, old := range s.vm {
			if known(view, old) {
				delete(s.vm, id)
			}
		}
	}
	if len(s.vm) < maxSightings && !known(view, seen) {
		s.vm[seen.VM] = seen
	}
}

// get returns a sighting that is newer than the registry.
func (s *sightings) get(view *fsm.View, vm string) (fsm.Sighting, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, ok := s.vm[vm]
	if ok && known(view, seen) {
		delete(s.vm, vm)
		return fsm.Sighting{}, false
	}
	return seen, ok
}

// known says that the registry is as new as the sighting.
func known(view *fsm.View, s fsm.Sighting) bool {
	vm, ok := view.VM(s.VM)
	if !ok || vm.Epoch < s.Epoch {
		return false
	}
	// At the same epoch, a VM in flight may have been seen to arrive.
	return vm.Epoch > s.Epoch || s.Phase != fsm.PhaseRunning || vm.Node == s.Node
}
