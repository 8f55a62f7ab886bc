package fsm

import (
	"iter"
	"time"
)

// DrainNode takes all voter duty from a node, or with Undo gives it back. What runs on the node stays there.
type DrainNode struct {
	ID   string
	Undo bool
}

// RetireNode ends the membership of a node for ever: its certificates are refused, and its id is never
// admitted again. The VMs that were last seen there become lost. It is refused with CodeConflict unless the
// node is drained or Force is set, and for the last member.
type RetireNode struct {
	ID    string
	Force bool
}

// Epoch says when and how the fleet went on without what it lost. The zero value is that of a fleet that never did.
type Epoch struct {
	At   time.Time
	Node string // that it went on from
	// Index is the log index of its first entry: what a kernel holds of a lower one is from before.
	Index uint64
	How   EpochHow
	// Settled is the epoch up to which nodes may let go of what their kernels hold from before it and the
	// state does not know.
	Settled uint64
}

// EpochHow says what a fleet went on from.
type EpochHow string

// What a fleet can go on from.
const (
	EpochRecovered EpochHow = "recover" // one node that was left
	EpochRestored  EpochHow = "restore" // a backup
)

// EpochBlockGap is how many numbers of blocks a new epoch skips: those that were given to blocks in the lost
// time, and told to people, must not come to mean others.
const EpochBlockGap = 100_000

// EpochIndexGap is how many log indexes a new epoch skips, for the same reason.
const EpochIndexGap = 1_000_000

// BeginEpoch is the first entry of a fleet that goes on from one node. It is never proposed: who founds the fleet
// anew applies it to the state that it begins with. Join tokens end with it.
type BeginEpoch struct {
	Fleet string // must be the fleet's id
	Epoch uint64 // must be higher than the fleet's
	How   EpochHow
	Node  string // a member, or the one that Admit admits
	// Address, Gossip and API are where Node is reached, if that is not as it was.
	Address, Gossip, API string
	// Admit, if not nil, makes Node a member.
	Admit *Admission
	// CA and GossipKeys, if given, take the place of those whose secrets nobody can open any more. Certificates
	// of the authorities before stay trusted.
	CA         *CA
	GossipKeys []GossipKey
	// Retire are nodes that are known to have been retired in the lost time.
	Retire []string
}

// SettleEpoch lets all nodes let go of what their kernels hold from before the epoch and the state does not
// know. It is refused with CodeConflict unless Epoch is the fleet's.
type SettleEpoch struct{ Epoch uint64 }

func (DrainNode) isOp()   {}
func (RetireNode) isOp()  {}
func (BeginEpoch) isOp()  {}
func (SettleEpoch) isOp() {}

// Lost walks the VMs that were last seen on nodes which were retired.
func (v *View) Lost() iter.Seq[*VM] {
	return func(yield func(*VM) bool) {
		for n := range v.nodes.all() {
			if n.Member() {
				continue
			}
			for vm := range v.VMsOn(n.ID) {
				if vm.State == VMLost && !yield(vm) {
					return
				}
			}
		}
	}
}
