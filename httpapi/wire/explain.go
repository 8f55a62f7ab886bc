package wire

import "time"

// Explanation says what the nodes do with a packet, or what holds a VM.
type Explanation struct {
	Nodes []NodeExplanation `json:"nodes,omitempty" nullable:"false" doc:"Of a packet: what each node does with it if it comes by there"`
	// Silent are the nodes that did not say.
	Silent []SilentNode    `json:"silent,omitempty" nullable:"false" doc:"Nodes that did not answer"`
	VM     string          `json:"vm,omitempty" doc:"Of a VM: its id"`
	Holds  []ExplainedHold `json:"holds,omitempty" nullable:"false" doc:"Of a VM: what holds it, with the counters of all nodes that answered"`
	Guards []string        `json:"guards,omitempty" nullable:"false" doc:"Of a VM: why holds do not treat it, or some of its addresses"`
	// GuardedSource is what else drops packets of a VM: those that it sends from addresses of others.
	GuardedSource *SourceGuard `json:"guarded_source,omitempty" doc:"Of a VM: what it is bound to, if it is to be bound: what it sends from other addresses is dropped"`
}

// NodeExplanation is what one node does with a packet that comes by.
type NodeExplanation struct {
	Node     string          `json:"node"`
	Verdict  string          `json:"verdict" enum:"pass,drop,reject,redirect,limit"`
	Why      string          `json:"why" doc:"For people"`
	Holds    []ExplainedHold `json:"holds" nullable:"false" doc:"Blocks that match the packet, the strictest first"`
	Guards   []string        `json:"guards,omitempty" nullable:"false" doc:"Why blocks do not match that else would"`
	Applied  uint64          `json:"applied_index" doc:"Log index of the state that it answered from"`
	Enforced uint64          `json:"enforced_index" doc:"Log index in its kernel"`
}

// ExplainedHold is one block that matches.
type ExplainedHold struct {
	Block     string    `json:"block" example:"b17"`
	Target    Target    `json:"target"`
	Reason    string    `json:"reason"`
	Kind      string    `json:"kind" doc:"As it is carried out there: drop for what a kernel can't do"`
	Direction string    `json:"direction" doc:"Of a packet: in or out, seen from the target. Of a VM: that of the block"`
	By        string    `json:"by" doc:"Why it matches" example:"192.0.2.7 of VM vm-1"`
	Treats    bool      `json:"treats" doc:"false: it matches, but its ports are not those of the packet"`
	Decides   bool      `json:"decides,omitempty" doc:"It is the strictest"`
	Started   bool      `json:"started,omitempty" doc:"This node has started it on its own clock, without quorum"`
	Since     time.Time `json:"since"`
	Counters  Counters  `json:"counters" doc:"Discarded for the block"`
}

// SilentNode is a node that did not answer.
type SilentNode struct {
	Node string `json:"node"`
	Why  string `json:"why"`
}
