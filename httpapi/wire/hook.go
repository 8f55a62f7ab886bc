package wire

// LibvirtHook is what libvirt's hook tells the agent of its node, on the Unix socket.
type LibvirtHook struct {
	Guest     string `json:"guest" maxLength:"255" doc:"Name of the domain"`
	Operation string `json:"operation" enum:"migrate,release" doc:"migrate: the guest asks to be let in. release: it is gone from here, or never came"`
	XML       string `json:"xml" maxLength:"900000" doc:"The domain, as libvirt gives it"`
}

// What the agent knows of a guest that asks to be let in.
const (
	HookArmed    = "armed"     // the kernel holds all that applies, read back
	HookNotReady = "not_ready" // the node can't tell whether it knows all that is blocked
	HookRefused  = "refused"   // the kernel does not hold what applies, or the guest can't be read
	HookNoted    = "noted"     // nothing was asked
)

// LibvirtAnswer says whether the guest is to be let in.
type LibvirtAnswer struct {
	Allow  bool   `json:"allow"`
	State  string `json:"state" enum:"armed,not_ready,refused,noted" doc:"armed: the kernel holds all that applies, read back. not_ready: the node can't tell whether it knows all that is blocked; its configuration says whether that is enough. refused: the kernel does not hold what applies, or the guest can't be read"`
	Reason string `json:"reason,omitempty" doc:"For people"`
}
