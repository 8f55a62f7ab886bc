package httpapi

import (
	"context"
	"net/http"

	"github.com/palisade/palisade/httpapi/wire"
)

// scopeLocal marks a route for root on the node itself, by its Unix socket. No token admits to it.
const scopeLocal Scope = "local"

// LibvirtHook is what libvirt's hook tells the agent.
type LibvirtHook = wire.LibvirtHook

// LibvirtAnswer is what the agent answers.
type LibvirtAnswer = wire.LibvirtAnswer

// What the agent knows of a guest that asks to be let in; see wire.
const (
	HookArmed    = wire.HookArmed
	HookNotReady = wire.HookNotReady
	HookRefused  = wire.HookRefused
	HookNoted    = wire.HookNoted
)

func localRoutes() []route {
	return []route{
		{op: operation(http.MethodPost, "/v1/local/libvirt", "libvirt-hook", "Ask whether a guest that migrates to this node is to be let in; on the Unix socket alone, for libvirt's hook", http.StatusOK),
			scope: scopeLocal, add: do((*Server).libvirtHook)},
	}
}

type hookInput struct{ Body wire.LibvirtHook }

type hookOutput struct{ Body wire.LibvirtAnswer }

func (s *Server) libvirtHook(ctx context.Context, in *hookInput) (*hookOutput, error) {
	if s.opts.LibvirtHook == nil {
		return &hookOutput{wire.LibvirtAnswer{Allow: true, State: wire.HookNoted, Reason: "this node does not learn from libvirt which VMs it runs (inventory.driver)"}}, nil
	}
	return &hookOutput{s.opts.LibvirtHook(ctx, in.Body)}, nil
}
