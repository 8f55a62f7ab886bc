package agent

import (
	"context"
	"errors"
	"slices"

	"github.com/palisade/palisade/httpapi"
	"github.com/palisade/palisade/inventory/libvirt"
)

// libvirtHook answers the hook; nil if this node does not learn from libvirt which VMs it runs.
func (a *Agent) libvirtHook(o *observer) func(context.Context, httpapi.LibvirtHook) httpapi.LibvirtAnswer {
	names, _ := a.cfg.Inventory.drivers() // they were validated
	if o == nil || !slices.Contains(names, "libvirt") {
		return nil
	}
	log := a.log.With("room", "hook")
	conf := a.cfg.Inventory.Libvirt
	return func(ctx context.Context, call httpapi.LibvirtHook) httpapi.LibvirtAnswer {
		vm, err := libvirt.Announced(call.XML)
		switch {
		case call.Operation != "migrate" && err == nil:
			o.Dismiss(vm.ID)
			return httpapi.LibvirtAnswer{Allow: true, State: httpapi.HookNoted}
		case call.Operation != "migrate":
			return httpapi.LibvirtAnswer{Allow: true, State: httpapi.HookNoted, Reason: err.Error()}
		case err != nil:
			log.Warn("refused a migration to here: the guest can't be read", "guest", call.Guest, "err", err)
			return httpapi.LibvirtAnswer{State: httpapi.HookRefused, Reason: err.Error()}
		}
		// The answer must be there before the hook gives up.
		ctx, cancel := context.WithTimeout(ctx, conf.HookTimeout.Duration*8/10) //nolint:mnd // of the hook's own time
		defer cancel()
		err = o.Expect(ctx, vm)
		notReady := errors.Is(err, errNotReady)
		switch {
		case err == nil:
			return httpapi.LibvirtAnswer{Allow: true, State: httpapi.HookArmed}
		case notReady && !conf.HookStrict:
			// Open on purpose: the kernel holds what was known last, and goes on enforcing it.
			log.Warn("let a guest in without being sure that all that is blocked is known here", "vm", vm.ID, "guest", call.Guest, "err", err)
			return httpapi.LibvirtAnswer{Allow: true, State: httpapi.HookNotReady, Reason: err.Error()}
		}
		o.Dismiss(vm.ID)
		log.Warn("refused a migration to here", "vm", vm.ID, "guest", call.Guest, "err", err)
		state := httpapi.HookRefused
		if notReady {
			state = httpapi.HookNotReady
		}
		return httpapi.LibvirtAnswer{State: state, Reason: err.Error()}
	}
}
