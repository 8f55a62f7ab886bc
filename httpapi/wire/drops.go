package wire

import "time"

// Drops is what was dropped in each step of a time, for plots.
type Drops struct {
	Step   int          `json:"step" doc:"Seconds"`
	From   time.Time    `json:"from" doc:"Beginning of the first step"`
	Points int          `json:"points" doc:"Steps"`
	Series []DropSeries `json:"series" nullable:"false" doc:"By node, then by reason or block; one in which nothing was dropped is left out"`
	Known  []KnownDrops `json:"known" nullable:"false" doc:"Nodes that answered, and from when on they know what they dropped"`
	Silent []SilentNode `json:"silent" nullable:"false" doc:"Nodes that did not answer: what they dropped is not known"`
}

// DropSeries is what was dropped by a node for a reason or a block, per second in each step; null is not known.
type DropSeries struct {
	Node    string     `json:"node" doc:"Empty: the sum of those that dropped less than the nodes that are listed"`
	Reason  string     `json:"reason,omitempty" doc:"Reasons that are none of ours are other"`
	Block   string     `json:"block,omitempty"`
	Packets []*float64 `json:"packets" nullable:"false"`
	Bytes   []*float64 `json:"bytes" nullable:"false"`
}

// KnownDrops is a node that answered.
type KnownDrops struct {
	Node string    `json:"node"`
	From time.Time `json:"from" doc:"By the node's clock; before, its agent did not run"`
}
