package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/pelletier/go-toml/v2"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/boot"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

// Booted says what Boot did.
type Booted struct {
	// Held says that the kernel had tables of ours, and nothing was read or changed.
	Held bool
	// None says that nothing was ever saved: the node has not been in a fleet yet.
	None     bool
	Elements int    // of blocks that were loaded
	Index    uint64 // the log index that they stand for
	Lists    int    // prefixes of lists that were loaded
}

func (c *Config) bootDir() string { return filepath.Join(c.DataDir, "boot") }

// BootConfig reads of a config file what Boot needs. A file that the agent would refuse is no reason to leave a kernel
// empty: the error tells of it, and the config is still the best that can be had, with the defaults for what can't be read.
func BootConfig(path string) (Config, error) {
	cfg, err := LoadConfig(path)
	if err == nil {
		return cfg, nil
	}
	var lenient struct {
		DataDir string `toml:"data_dir"`
		Node    struct {
			Guards []netip.Prefix `toml:"guards"`
		} `toml:"node"`
	}
	if b, rerr := os.ReadFile(path); rerr == nil && toml.Unmarshal(b, &lenient) != nil {
		lenient.Node.Guards = nil // half read
	}
	cfg = Config{DataDir: lenient.DataDir, Node: NodeConfig{Guards: lenient.Node.Guards}}
	cfg.setDefaults()
	return cfg, err
}

// Boot loads into an empty kernel what this node's kernel enforced before it was started again, from the files that
// the agent keeps. It needs no daemon, no network and no quorum. A kernel that holds one of our tables is left
// alone. What is damaged is told in the log, and as the error if there is nothing to fall back on; what could
// be read is loaded in any case.
func Boot(ctx context.Context, cfg Config, log *slog.Logger) (Booted, error) {
	var done Booted
	kernel, err := nft.Open(nft.Options{Logger: log})
	if err != nil {
		return done, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = kernel.Close() }() // the connection alone
	lists, err := nft.OpenLists(nft.Options{Logger: log})
	if err != nil {
		return done, fmt.Errorf("open nftables for lists: %w", err)
	}
	defer func() { _ = lists.Close() }()
	for _, tables := range []interface {
		Exists(ctx context.Context) (bool, error)
	}{kernel, lists} {
		held, err := tables.Exists(ctx)
		if err != nil {
			return done, fmt.Errorf("look for tables: %w", err)
		}
		if held {
			log.Info("the kernel holds rules of ours: they are left as they are")
			done.Held = true
			return done, nil
		}
	}
	noBlocks, blocksErr := bootBlocks(ctx, cfg, log, kernel, &done)
	noLists, listsErr := bootLists(ctx, cfg, log, lists, &done)
	done.None = noBlocks && noLists
	if done.None {
		log.Info("no ruleset was saved on this node yet: nothing is loaded", "dir", cfg.bootDir())
	}
	return done, errors.Join(blocksErr, listsErr)
}

func bootBlocks(ctx context.Context, cfg Config, log *slog.Logger, kernel *nft.Kernel, done *Booted) (none bool, err error) {
	f, err := boot.ReadBlocks(cfg.bootDir())
	if errors.Is(err, boot.ErrNone) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the saved ruleset: %w", err)
	}
	if f.Damaged != nil {
		log.Error("a part of the saved ruleset is damaged; what was saved before it is loaded", "file", f.File, "index", f.Index, "err", f.Damaged)
	}
	if f.Unknown > 0 {
		log.Error("a newer build saved elements that this one does not know; they are left out", "file", f.File, "elements", f.Unknown)
	}
	if _, err := kernel.Adopt(ctx); err != nil {
		return false, fmt.Errorf("create the tables: %w", err)
	}
	missing, err := kernel.Missing(ctx)
	if err != nil {
		return false, fmt.Errorf("ask the kernel what it can do: %w", err)
	}
	d := enforce.Delta{Index: f.Index, Add: bootable(f.Elements, cfg.Node.Guards, func(k fsm.Kind) bool { return missing[k] != nil })}
	if err := kernel.Apply(ctx, d); err != nil {
		return false, fmt.Errorf("load the saved ruleset: %w", err)
	}
	done.Elements, done.Index = len(d.Add), d.Index
	log.Info("loaded the saved ruleset", "file", f.File, "index", d.Index, "elements", len(d.Add))
	return false, nil
}

func bootLists(ctx context.Context, cfg Config, log *slog.Logger, kernel *nft.Lists, done *Booted) (none bool, err error) {
	f, err := boot.ReadLists(cfg.bootDir(), cfg.Node.Guards)
	if errors.Is(err, boot.ErrNone) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the saved lists: %w", err)
	}
	if f.Damaged != nil {
		log.Error("the newest file of saved lists is damaged; the one before it is loaded", "file", f.File, "err", f.Damaged)
	}
	if f.Lists.Empty() {
		return false, nil
	}
	if err := kernel.Bring(ctx, nft.ListChange{Lists: f.Lists, Index: f.Lists.Index()}); err != nil {
		return false, fmt.Errorf("load the saved lists: %w", err)
	}
	for range f.Lists.All() {
		done.Lists++
	}
	log.Info("loaded the saved lists", "file", f.File, "index", f.Lists.Index(), "prefixes", done.Lists)
	return false, nil
}

// bootable is what of a kernel's elements holds for the next one: no taps, whose names the next guests to start are
// given; nothing that a guard of the config file is in; and a drop where the kernel lacks a kind.
func bootable(held map[enforce.Element]struct{}, guards []netip.Prefix, missing func(fsm.Kind) bool) []enforce.Element {
	kept := make(map[enforce.Element]struct{}, len(held))
	for e := range held {
		t, _ := e.Treatment.Terms()
		lacks := missing(t.Kind) || t.Kind == enforce.Page && missing(fsm.Redirect)
		switch {
		case e.Tap != "":
			continue
		case lacks && (t.Kind == enforce.Page || e == enforce.Element{Treatment: e.Treatment}):
			continue // a chain, or what only helps to answer: it held nothing
		case lacks:
			e.Treatment = enforce.Terms{Kind: fsm.Drop, Direction: t.Direction}.Treatment()
		}
		if !covers(e, guards) {
			kept[e] = struct{}{}
			continue
		}
		for p := range fsm.Carve(e.Prefix, overlapping(e.Prefix, guards)) {
			kept[enforce.Element{Prefix: p, Treatment: e.Treatment}] = struct{}{}
		}
	}
	list := make([]enforce.Element, 0, len(kept))
	for e := range kept {
		list = append(list, e)
	}
	slices.SortFunc(list, enforce.Element.Compare)
	return list
}

func overlapping(p netip.Prefix, guards []netip.Prefix) []netip.Prefix {
	var holes []netip.Prefix
	for _, g := range guards {
		if p.Overlaps(g) {
			holes = append(holes, g)
		}
	}
	slices.SortFunc(holes, comparePrefix)
	return holes
}
