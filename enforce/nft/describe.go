package nft

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
)

// describedElements is how many elements Describe lists.
const describedElements = 2_000

// Describe writes, for people, what the kernel holds in our tables: chains with how many rules they have and what they
// discarded, sets with their sizes, and the first of the elements that the kernel was last seen to hold. It takes
// some milliseconds.
func (k *Kernel) Describe(ctx context.Context, w io.Writer) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.adopted {
		return ErrNotAdopted
	}
	if _, err := k.connected(); err != nil {
		return fmt.Errorf("describe the kernel: %w", err)
	}
	families := k.families
	if k.devices.kernel != nil {
		families = append(slices.Clone(families), deviceTables()...)
	}
	if err := k.wire.describe(ctx, w, families, k.opts.Table); err != nil {
		return fmt.Errorf("describe the kernel: %w", k.failed(err))
	}
	fmt.Fprintf(w, "%d elements at log index %d\n", len(k.shadow), k.index)
	lines := make([]string, 0, len(k.shadow))
	for e := range k.shadow {
		lines = append(lines, e.String())
	}
	slices.Sort(lines)
	for _, l := range lines[:min(len(lines), describedElements)] {
		fmt.Fprintln(w, "  "+l)
	}
	return nil
}

// Describe writes, for people, what the kernel holds in the tables of lists, without elements.
func (k *Lists) Describe(ctx context.Context, w io.Writer) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.connected(); err != nil {
		return fmt.Errorf("describe the lists in the kernel: %w", err)
	}
	families := k.families
	if k.devices.inUse() {
		families = append(slices.Clone(families), deviceTables()...)
	}
	if err := k.wire.describe(ctx, w, families, k.opts.Table); err != nil {
		return fmt.Errorf("describe the lists in the kernel: %w", k.failed(err))
	}
	fmt.Fprintf(w, "log index %d\n", k.marker.index)
	return nil
}

func (w *wire) describe(ctx context.Context, to io.Writer, families tables, table string) error {
	for _, f := range families {
		t, err := w.readBareTable(ctx, f, table)
		if err != nil {
			return err
		}
		if !t.exists {
			fmt.Fprintf(to, "table %s %s is missing\n", f, table)
			continue
		}
		fmt.Fprintf(to, "table %s %s, flags %#x\n", f, table, t.flags)
		for _, name := range slices.Sorted(maps.Keys(t.chains)) {
			c := t.chains[name]
			base := ""
			if c.sort != "" {
				base = fmt.Sprintf(", %s, hook %d, priority %d, policy %d", c.sort, c.hook, c.prio, c.policy)
			}
			fmt.Fprintf(to, "  chain %s%s: %d rules, counted %d packets, %d bytes\n", name, base, len(c.rules), c.counter[0], c.counter[1])
		}
		for _, name := range slices.Sorted(maps.Keys(t.sets)) {
			s := t.sets[name]
			fmt.Fprintf(to, "  set %s: room for %d, keys of %d bytes, flags %#x, counters %t\n", name, s.size, s.keyLen, s.flags, s.counter)
		}
	}
	return nil
}
