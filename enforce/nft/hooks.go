package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// hooks gives devices their base chains in one table of family netdev. It has a connection of its own and is not safe
// for concurrent use.
type hooks struct {
	opts   Options
	called func(Device) (ingress, egress string) // the chains that those of a device call
	links  links

	wire  *wire            // nil: dial first
	list  []Device         // nil: not known yet
	loose map[string]error // devices that can't be enforced, and why
	right uint32           // the generation at which the chains were last found as they should be
}

func newHooks(o Options, called func(Device) (ingress, egress string)) hooks {
	return hooks{opts: o, called: called, links: links{netNS: o.NetNS, timeout: o.Timeout}}
}

func (h *hooks) connected() error {
	if h.wire != nil {
		return nil
	}
	w, err := dial(h.opts.NetNS, h.opts.BufferBytes, h.opts.Timeout)
	h.wire = w
	return err
}

// failed gives up the connection, so that no late answer is taken for another's.
func (h *hooks) failed(err error) error { return errors.Join(err, h.close()) }

func (h *hooks) close() error {
	w := h.wire
	h.wire, h.right = nil, 0
	if w == nil {
		return nil
	}
	return w.close()
}

// chains are the base chains of a device, each with the chain that it calls.
func (h *hooks) chains(d Device) map[string]chain {
	hooked := func(hook uint32, to string) chain {
		return chain{
			family: netdev, name: deviceChain(hook, d.Index), sort: "filter", hook: hook, priority: priorityFirst, device: d.Name,
			list: func(chain, setList) []rule { return []rule{{do: goTo, chain: to}} }, needed: always,
		}
	}
	ingress, egress := h.called(d)
	in, out := hooked(hookIngress, ingress), hooked(hookEgress, egress)
	return map[string]chain{in.name: in, out.name: out}
}

// read returns all chains of the table.
func (h *hooks) read(ctx context.Context) (map[string]*chainState, error) {
	if err := h.connected(); err != nil {
		return nil, err
	}
	t := &tableState{chains: make(map[string]*chainState), sets: make(map[string]*setState)}
	if err := h.wire.readChains(ctx, netdev, h.opts.Table, t); err != nil {
		return nil, err
	}
	return t.chains, h.wire.readRules(ctx, netdev, h.opts.Table, t)
}

// bring gives every device its base chains, and removes those of devices that are gone. Devices that the kernel refuses
// are in loose then; those that have vanished are not in list any more.
func (h *hooks) bring(ctx context.Context) error {
	h.loose = make(map[string]error)
	for attempt := 1; ; attempt++ {
		have, err := h.read(ctx)
		if err != nil {
			return h.failed(err)
		}
		fixes := h.fixes(have)
		for d := range fixes {
			if h.loose[d.Name] != nil {
				delete(fixes, d)
			}
		}
		if len(fixes) == 0 {
			return nil
		}
		if attempt == 4 {
			return fmt.Errorf("chains of %d devices: %w", len(fixes), errNotKept)
		}
		if err := h.fix(ctx, fixes); err != nil {
			return err
		}
	}
}

// fix fixes all chains in one transaction, or, if the kernel refuses that because of one device, each by itself.
func (h *hooks) fix(ctx context.Context, fixes map[Device][]chainFix) error {
	commit := func(list []chainFix) error {
		if err := h.connected(); err != nil {
			return err
		}
		b := writer{table: h.opts.Table, families: deviceTables()}
		if err := b.fixChains(list, nil); err != nil {
			return err
		}
		if err := h.wire.commit(ctx, &b.batch); err != nil {
			return h.failed(err)
		}
		return nil
	}
	err := commit(slices.Concat(slices.Collect(maps.Values(fixes))...))
	if refused := (*refusedError)(nil); err == nil || !errors.As(err, &refused) {
		return err
	}
	for d, list := range fixes {
		err := commit(list)
		if err == nil || d == (Device{}) {
			continue // what is left over of no device is looked at again
		}
		l, found, looking := h.links.look(d.Index)
		switch {
		case looking != nil:
			return errors.Join(err, looking)
		case !found || l.name != d.Name: // whoever says which devices there are has not heard of it yet
			h.list = slices.DeleteFunc(h.list, func(o Device) bool { return o == d })
		default:
			h.loose[d.Name] = err
		}
	}
	return nil
}

// check returns what is wrong with the chains of devices that are there, unless no program has changed any rules since
// nothing was.
func (h *hooks) check(ctx context.Context) (problems []string, err error) {
	if err := h.connected(); err != nil {
		return nil, err
	}
	generation, err := h.wire.generation(ctx)
	if err != nil {
		return nil, h.failed(err)
	}
	if generation == h.right {
		return nil, nil
	}
	have, err := h.read(ctx)
	if err != nil {
		return nil, h.failed(err)
	}
	for d := range h.fixes(have) {
		if d == (Device{}) || h.loose[d.Name] != nil {
			continue
		}
		l, found, err := h.links.look(d.Index)
		if err != nil {
			return nil, err
		}
		if found && l.name == d.Name { // else its chains went with it
			problems = append(problems, "chains of device "+d.Name+" are missing or not as they should be")
		}
	}
	if len(problems) == 0 {
		h.right = generation
	}
	return problems, nil
}

// fixes are what must be done to the base chains of devices, by device; those of no device have the zero Device.
func (h *hooks) fixes(have map[string]*chainState) map[Device][]chainFix {
	fixes := make(map[Device][]chainFix)
	wanted := make(map[string]bool)
	for _, d := range h.list {
		for name, c := range h.chains(d) {
			wanted[name] = true
			switch s := have[name]; {
			case s == nil:
				fixes[d] = append(fixes[d], chainFix{chain: c, create: true})
			case !c.sameHook(s) || !slices.Equal(s.devices, []string{d.Name}):
				fixes[d] = append(fixes[d], chainFix{chain: c, discard: true, create: true})
			case !c.sameRules(nil, s.rules):
				fixes[d] = append(fixes[d], chainFix{chain: c})
			}
		}
	}
	for name := range have {
		if deviceChainName.MatchString(name) && !wanted[name] {
			fixes[Device{}] = append(fixes[Device{}], chainFix{chain: chain{family: netdev, name: name}, remove: true})
		}
	}
	return fixes
}
