package cluster

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

// prover asks the leader, through the sources, what is current now. What comes in the stream can't tell: if this node is
// too slow for it, the leader's words wait in it with the entries.
type prover struct {
	*follower
	asked time.Time // when the last proof was asked for
	last  uint64    // this node's index then
}

// unproven is how many entries may come without a proof: the few that an idle fleet writes need none.
const unproven = 16

// due says whether a proof is needed: after each silence, while entries come, and when nothing was heard for so long that
// a beat should have come.
func (p *prover) due(k *known) bool {
	limit := p.c.timing.Heartbeat
	switch {
	case !k.attached:
		return false
	case k.proof == 0:
		return k.fresh(limit)
	case time.Since(p.asked) > 2*limit && p.log.last.Load().index >= p.last+unproven:
		return true
	default:
		return !k.fresh(limit/2) && time.Since(p.asked) > limit/2
	}
}

// prove asks whenever it is due, until ctx ends.
func (f *follower) prove(ctx context.Context) {
	p := &prover{follower: f}
	tick := time.NewTicker(f.c.timing.Heartbeat / 2)
	defer tick.Stop()
	for pause := searchFirst; ; {
		k := f.know.now()
		if p.due(&k) {
			begin, last := time.Now(), f.log.last.Load().index
			call, cancel := context.WithTimeout(ctx, helloTime)
			resp, err := f.c.rpc.readIndex(call, k.source(), &peerpb.ReadIndexRequest{Hops: maxHops})
			cancel()
			if err == nil {
				f.know.prove(resp.GetIndex(), k.gap, resp.GetLeader(), begin)
				p.asked, p.last, pause = begin, last, searchFirst
				continue
			}
			select {
			case <-time.After(pause/2 + rand.N(pause)):
				pause = min(2*pause, searchMost)
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-k.changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
