package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

const (
	// retryFirst and retryMost are the pauses between attempts to reach a leader.
	retryFirst = 5 * time.Millisecond
	retryMost  = 50 * time.Millisecond
	// noLeaderKnown is the least time a proposal waits for a leader, also where there was none for long.
	noLeaderKnown = 250 * time.Millisecond
	// ownApply bounds how long a committed proposal waits for this node's own store.
	ownApply = time.Second
	// enqueueTime bounds how long a proposal waits for its turn at the leader.
	enqueueTime = 2 * time.Second
)

var errNoLeader = errors.New("no leader is known")

// Propose writes a command to the replicated log, on whichever node it is called, and returns what
// applying it gave. It blocks until then or until ctx ends; a ctx without a deadline gets
// Timing.Propose. It is safe for concurrent use: concurrent proposals share disk writes.
//
// With a nil error the command is committed, or refused because a node can't read it yet (fsm.CodeUpgrade; then
// Result.Index is 0 and nothing was written). Result.Err holds the state machine's refusal if there is one, and this node's own Store has applied Result.Index unless it lags by more than a second.
// Otherwise the error tells what happened: fsm.ErrUnavailable means that the command is certainly in
// no log; fsm.ErrUnknown, that it may be; any other error, that it can't be proposed at all.
//
// A command with a Key is tried again through changes of the leader until ctx ends, which the state
// machine makes harmless. One without a Key is never sent again once it may have been appended.
// Command.Time is ignored: the leader stamps it.
func (c *Cluster) Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error) {
	begin := time.Now()
	res, err := c.propose(ctx, cmd)
	c.metrics.proposed(time.Since(begin), err)
	return res, err
}

func (c *Cluster) propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error) {
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	cmd.Time = time.Time{}
	data, err := fsm.MarshalCommand(cmd)
	if err == nil && len(data) > MaxCommandBytes {
		err = fmt.Errorf("it has %d bytes, at most %d are allowed", len(data), MaxCommandBytes)
	}
	if err != nil {
		return fsm.Result{}, fmt.Errorf("encode the command: %w", err)
	}

	patience := time.Now().Add(c.patience())
	maybe := false // an earlier attempt may have been appended
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		o := c.attempt(ctx, cmd, data)
		switch o.kind {
		case done:
			c.waitOwn(ctx, o.result.Index)
			return o.result, nil
		case invalid:
			// A leader whose build is older than this one's can't tell what it would take.
			if refused := c.store.View().Readable(cmd.Op); refused != nil {
				return fsm.Result{Err: refused}, nil
			}
			return fsm.Result{}, fmt.Errorf("the leader can't take the command: %w", o.err)
		case unknown:
			if cmd.Key == "" {
				return fsm.Result{}, fmt.Errorf("%w: %w", fsm.ErrUnknown, o.err)
			}
			maybe = true
		case notAppended:
			if !maybe && time.Now().After(patience) {
				return fsm.Result{}, fmt.Errorf("%w: %w", fsm.ErrUnavailable, o.err)
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		case <-c.stopping:
			return fsm.Result{}, ended(maybe, fmt.Errorf("this node stops: %w", o.err))
		}
		if ctx.Err() != nil {
			return fsm.Result{}, ended(maybe, fmt.Errorf("%w: %w", ctx.Err(), o.err))
		}
	}
}

func ended(maybe bool, cause error) error {
	if maybe {
		return fmt.Errorf("%w: %w", fsm.ErrUnknown, cause)
	}
	return fmt.Errorf("%w: %w", fsm.ErrUnavailable, cause)
}

func (c *Cluster) withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, c.timing.Propose)
}

// patience is how long a proposal waits for a leader: the time of an election, and hardly at all
// where there has been no leader for longer than that.
func (c *Cluster) patience() time.Duration {
	return max(c.timing.NoLeader-time.Since(c.leaderSeen()), noLeaderKnown)
}

// attempt tries once, at whoever leads now.
func (c *Cluster) attempt(ctx context.Context, cmd fsm.Command, data []byte) outcome {
	switch id := c.leaderHint(); id {
	case "":
		return failed(notAppended, errNoLeader)
	case c.id:
		return c.submit(ctx, []fsm.Command{cmd})[0]
	default:
		f := c.forward.to(id)
		if f == nil {
			return failed(notAppended, fmt.Errorf("the leader %q is not known to this node yet", id))
		}
		return f.do(ctx, data)
	}
}

// waitOwn makes a write visible on the node where it was asked for.
func (c *Cluster) waitOwn(ctx context.Context, index uint64) {
	ctx, cancel := context.WithTimeout(ctx, ownApply)
	defer cancel()
	_ = c.applier.wait(ctx, index) // the write is committed either way
}

// onPropose serves the proposals that another node forwards.
func (c *Cluster) onPropose(ctx context.Context, from string, req *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error) {
	in := req.GetCommands()
	resp := &peerpb.ProposeResponse{Outcomes: make([]*peerpb.Outcome, len(in))}
	if err := c.knows(from); err != nil {
		for i := range in {
			resp.Outcomes[i] = failed(notAppended, err).encode()
		}
		return resp, nil
	}
	cmds := make([]fsm.Command, 0, len(in))
	at := make([]int, 0, len(in))
	for i, data := range in {
		cmd, err := fsm.UnmarshalCommand(data)
		if err != nil {
			resp.Outcomes[i] = failed(invalid, err).encode()
			continue
		}
		cmds, at = append(cmds, cmd), append(at, i)
	}
	for i, o := range c.submit(ctx, cmds) {
		resp.Outcomes[at[i]] = o.encode()
	}
	return resp, nil
}

// hintAgain is how often a node that hears no leader asks the others who leads.
const hintAgain = time.Second

// leaderHint is the leader, or while none is heard whom another member named last. A hint may be wrong: it is good
// for a call that the called node refuses unless it leads.
func (c *Cluster) leaderHint() string {
	if id := c.leader(); id != "" {
		return id
	}
	if p := c.hint.Load(); p != nil {
		return *p
	}
	return ""
}

// seekLeader keeps asking the others who leads while this node hears nobody, until ctx ends. The leader can't reach
// a node that moved to another address before that node has told it.
func (c *Cluster) seekLeader(ctx context.Context) {
	tick := time.NewTicker(hintAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c.leader() != "" || time.Since(c.leaderSeen()) < c.timing.Heartbeat {
			c.hint.Store(nil)
			continue
		}
		for _, id := range c.dir.now().others(c.id) {
			call, cancel := context.WithTimeout(ctx, helloTime)
			resp, err := c.rpc.hello(call, id, &peerpb.HelloRequest{Node: c.id})
			cancel()
			if err == nil && resp.GetLeader() != "" {
				c.hint.Store(&resp.Leader)
				break
			}
		}
	}
}
