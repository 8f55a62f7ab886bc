package cluster

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// kind is how an attempt to propose a command ended.
type kind int

const (
	done        kind = iota // committed and applied: the result is known
	notAppended             // certainly in no log: may be tried again by anyone
	unknown                 // may be in a log
	invalid                 // can't be proposed at all
)

type outcome struct {
	kind   kind
	result fsm.Result // if done
	err    error      // if not done
}

func failed(k kind, err error) outcome { return outcome{kind: k, err: err} }

// classify turns what raft says about an entry into an outcome. Whatever is not known to have been
// said before the entry was appended counts as unknown.
func classify(response any, err error) outcome {
	switch {
	case err == nil:
		switch r := response.(type) {
		case fsm.Result:
			return outcome{kind: done, result: r}
		case notApplied:
			return failed(unknown, fmt.Errorf("committed, but this leader's state is halted: %w", r.err))
		default:
			return failed(unknown, fmt.Errorf("raft answered with %T", response))
		}
	case errors.Is(err, raft.ErrNotLeader),
		errors.Is(err, raft.ErrLeadershipTransferInProgress),
		errors.Is(err, raft.ErrEnqueueTimeout):
		return failed(notAppended, err)
	default:
		// ErrLeadershipLost, ErrRaftShutdown (also said after the commit), a failing store.
		return failed(unknown, err)
	}
}

// encode makes the outcome ready for the way to the node that proposed. A result is JSON inside:
// whoever reads it is of the same fleet and decodes it to the same struct.
func (o outcome) encode() *peerpb.Outcome {
	switch o.kind {
	case done:
		data, err := json.Marshal(o.result)
		if err != nil {
			return &peerpb.Outcome{Kind: peerpb.Outcome_KIND_UNKNOWN, Detail: "encode the result: " + err.Error()}
		}
		return &peerpb.Outcome{Kind: peerpb.Outcome_KIND_DONE, Result: data}
	case notAppended:
		return &peerpb.Outcome{Kind: peerpb.Outcome_KIND_NOT_APPENDED, Detail: o.err.Error()}
	case invalid:
		return &peerpb.Outcome{Kind: peerpb.Outcome_KIND_INVALID, Detail: o.err.Error()}
	default:
		return &peerpb.Outcome{Kind: peerpb.Outcome_KIND_UNKNOWN, Detail: o.err.Error()}
	}
}

func decodeOutcome(p *peerpb.Outcome) outcome {
	switch p.GetKind() {
	case peerpb.Outcome_KIND_DONE:
		var r fsm.Result
		if err := json.Unmarshal(p.GetResult(), &r); err != nil {
			return failed(unknown, fmt.Errorf("committed, but the leader's answer can't be read: %w", err))
		}
		return outcome{kind: done, result: r}
	case peerpb.Outcome_KIND_NOT_APPENDED:
		return failed(notAppended, errors.New(p.GetDetail()))
	case peerpb.Outcome_KIND_INVALID:
		return failed(invalid, errors.New(p.GetDetail()))
	default:
		return failed(unknown, errors.New(p.GetDetail()))
	}
}
