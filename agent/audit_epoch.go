package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/palisade/palisade/audit"
	"github.com/palisade/palisade/fsm"
)

// auditAside marks an audit that was set aside, with the time.
const auditAside = ".aside-"

// fork settles a disk that has another audit than the fleet because it has records of a time that the fleet has given up: of
// an epoch before. What is there is kept beside; the records that both have are copied, and the rest is fetched as ever. It
// returns mismatch if that is not why they differ.
func (a *auditor) fork(ctx context.Context, disk *audit.Log, mismatch error) error {
	view := a.store.View()
	f, ok := view.Fleet()
	if !ok || f.Since.Index == 0 {
		return mismatch
	}
	last, err := recordIndex(ctx, disk)
	if err != nil || last >= f.Since.Index {
		return errors.Join(mismatch, err)
	}
	state, _ := view.AuditSince(0)
	if len(state) == 0 {
		return mismatch
	}
	joint, err := fsm.AuditFrom(state[0])
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.disk != disk {
		return mismatch // settled meanwhile
	}
	aside := a.opts.Dir + auditAside + time.Now().UTC().Format("20060102T150405.000Z")
	if err := errors.Join(disk.Close(), os.Rename(a.opts.Dir, aside)); err != nil {
		return fmt.Errorf("set the audit of an epoch before aside: %w", err)
	}
	a.disk = nil
	fresh, err := audit.Open(a.opts)
	if err != nil {
		return err
	}
	a.disk = fresh
	a.log.Warn("this node's audit has records of a time that the fleet has given up: it is set aside, and what both have is copied", "kept", aside, "epoch", f.Epoch)
	old := a.opts
	old.Dir = aside
	from, err := audit.Open(old)
	if err != nil {
		return err
	}
	return errors.Join(copyUpTo(ctx, from, fresh, joint), from.Close())
}

// copyUpTo copies records as long as they are those of the fleet: up to where its state begins, if that is reached with the
// same hash, else none but what is certain to come before.
func copyUpTo(ctx context.Context, from, to *audit.Log, joint fsm.AuditChain) error {
	if joint.Seq == 0 || from.Head().Seq < joint.Seq {
		return nil // there is nothing before the state, or it can't be told to be the fleet's
	}
	var lines [][]byte
	same := false
	if err := from.Read(ctx, joint.Seq-1, func(line []byte) bool {
		chain, err := fsm.AuditFrom(line)
		same = err == nil && chain.Next(line) == nil && chain == joint
		return false
	}); err != nil || !same {
		return err
	}
	first := true
	var failed error
	flush := func() bool {
		if first && len(lines) > 0 {
			first, failed = false, to.AppendAfterGap(lines) // the oldest may have been forgotten
		} else if len(lines) > 0 {
			failed = to.Append(lines)
		}
		lines = nil
		return failed == nil
	}
	const most = 1_000
	err := from.Read(ctx, 0, func(line []byte) bool {
		if before, err := fsm.AuditFrom(line); err != nil || before.Seq >= joint.Seq {
			return false
		}
		lines = append(lines, slices.Clone(line))
		return len(lines) < most || flush()
	})
	if err == nil && failed == nil {
		flush()
	}
	return errors.Join(err, failed)
}

// recordIndex is the log index of the newest record on the disk.
func recordIndex(ctx context.Context, disk *audit.Log) (uint64, error) {
	head := disk.Head().Seq
	var record struct {
		Index uint64 `json:"index"`
	}
	var bad error
	err := disk.Read(ctx, max(head, 1)-1, func(line []byte) bool {
		bad = json.Unmarshal(bytes.TrimSpace(line), &record)
		return true
	})
	return record.Index, errors.Join(err, bad)
}
