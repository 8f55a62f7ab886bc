package wire

// RetireRequest ends a node's membership.
type RetireRequest struct {
	Force bool `json:"force,omitempty" doc:"Also if it was not drained: for a node that is gone for good"`
}

// SettleRequest lets nodes let go of what only their kernels hold.
type SettleRequest struct {
	Epoch uint64 `json:"epoch" minimum:"1" doc:"The fleet's epoch, as it is shown: what another recovery leaves is another question"`
}

// Settled says up to which epoch that is so.
type Settled struct {
	Epoch uint64 `json:"epoch"`
}
