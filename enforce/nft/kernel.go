// Package nft brings the kernel's nf_tables to the elements that package enforce computes, and reads
// back that they are there. It owns the tables `bridge palisade`, `arp palisade` and `inet palisade`, and while there are
// devices that need it `netdev palisade`, and touches nothing else but XDP programs of its own. Nothing in it removes a
// drop on error, at start or at exit.
package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// Errors that callers tell apart. Any other error of Kernel's methods is the kernel's.
var (
	// ErrNotAdopted is returned before the first Adopt has succeeded.
	ErrNotAdopted = errors.New("the kernel has not been adopted")
	// ErrBackwards refuses a delta with an index below the one that the kernel stands for.
	ErrBackwards = errors.New("the kernel stands for a later log index")

	errNotKept = errors.New("this kernel does not keep what it is given (Linux 6.1 or later is needed)")
)

// Options of a Kernel. The zero value is useful.
type Options struct {
	Logger *slog.Logger // default: none
	Table  string       // of all families; default "palisade"
	// NetNS is a file descriptor of the network namespace to work in; 0 is the caller's. It is used
	// for every dial and must stay open until Close.
	NetNS int
	// ExactSize, MaskedSize and TapSize are how many elements new sets have room for; a set that is
	// full is replaced by one of double size. Defaults 393,216, 16,384 and 4,096. The kernel rounds 4/3
	// of a size up to a power of two and takes 8 bytes of memory for each: an empty exact set has 4 MiB,
	// and there are five. Growing is dear, since each element is copied and read back.
	ExactSize, MaskedSize, TapSize uint32
	// ChunkElements is how many elements one transaction changes at most. Default 1,000: an urgent
	// change of another program then waits about 1 ms for ours.
	ChunkElements int
	// BufferBytes of the socket, each way. Default 4 MiB.
	BufferBytes int
	// Timeout of one exchange with the kernel. Default 10 s.
	Timeout time.Duration
}

func (o Options) withDefaults() (Options, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Table == "" {
		o.Table = "palisade"
	}
	if !regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]{0,63}$`).MatchString(o.Table) {
		return o, fmt.Errorf("table name %q: want a letter, then at most 63 letters, digits and _", o.Table)
	}
	for _, size := range []struct {
		v       *uint32
		byNone  uint32
		purpose string
	}{{&o.ExactSize, 393_216, "exact"}, {&o.MaskedSize, 16_384, "masked"}, {&o.TapSize, 4_096, "tap"}} {
		if *size.v == 0 {
			*size.v = size.byNone
		}
		if *size.v > 1<<24 {
			return o, fmt.Errorf("%s size %d: want at most %d", size.purpose, *size.v, 1<<24)
		}
	}
	if o.ChunkElements == 0 {
		o.ChunkElements = 1_000
	}
	if o.BufferBytes == 0 {
		o.BufferBytes = 4 << 20
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.ChunkElements < 0 || o.BufferBytes < 0 || o.Timeout < 0 || o.NetNS < 0 {
		return o, errors.New("a chunk, buffer, timeout or namespace is negative")
	}
	return o, nil
}

// Kernel is the enforcing kernel of one network namespace. Its methods are safe for concurrent use;
// each waits for the one before. Only one Kernel may work on a table.
type Kernel struct {
	opts     Options
	families tables

	mu          sync.Mutex
	wire        *wire // nil: dial first
	bufferBytes int
	adopted     bool
	sets        map[setID]*liveSet
	shadow      map[enforce.Element]struct{} // what the kernel was last seen to hold
	jumps       map[place]enforce.Treatment  // and the chain of each element that has one
	index       uint64                       // and the log index that it stands for
	// want is nil unless a change has failed: then it is what the kernel must hold, and the shadow
	// can't be trusted.
	want    map[enforce.Element]struct{}
	watch   watch
	devices devices
}

// Open connects to the kernel. It changes nothing; call Adopt before anything else.
func Open(o Options) (*Kernel, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	k := &Kernel{opts: o, families: nodeTables(), bufferBytes: o.BufferBytes}
	if _, err := k.connected(); err != nil {
		return nil, err
	}
	return k, nil
}

// Close ends the connection and leaves the kernel enforcing what it holds.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.adopted = false
	return errors.Join(k.hangUp(), k.closeDevices())
}

func (k *Kernel) connected() (*wire, error) {
	if k.wire == nil {
		w, err := dial(k.opts.NetNS, k.bufferBytes, k.opts.Timeout)
		if err != nil {
			return nil, err
		}
		k.wire = w
	}
	return k.wire, nil
}

func (k *Kernel) hangUp() error {
	w := k.wire
	k.wire = nil
	if w == nil {
		return nil
	}
	return w.close()
}

// failed gives up the connection after an error, so that no late answer is taken for another's, and
// says what an operator can do about it.
func (k *Kernel) failed(err error) error {
	if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EMSGSIZE) {
		k.bufferBytes = min(max(k.bufferBytes*16, 4<<20), bufferBytesMost)
	}
	if closing := k.hangUp(); closing != nil {
		err = errors.Join(err, closing)
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (CAP_NET_ADMIN is needed, and the tables must have no other owner)", err)
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("%w (nf_tables with the bridge and inet families is needed: CONFIG_NF_TABLES_BRIDGE, CONFIG_NF_TABLES_INET)", err)
	}
	return err
}

// twice tries again, over a new connection, what changes nothing if it is done once more.
func (k *Kernel) twice(ctx context.Context, try func() error) error {
	err := try()
	if err == nil {
		return nil
	}
	err = k.failed(err)
	if ctx.Err() != nil {
		return err
	}
	k.opts.Logger.WarnContext(ctx, "an exchange with nftables failed, trying again", "error", err)
	if again := try(); again != nil {
		return errors.Join(k.failed(again), err)
	}
	return nil
}

// Exists says whether one of the tables is in the kernel. It changes nothing.
func (k *Kernel) Exists(ctx context.Context) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var exists bool
	err := k.twice(ctx, func() error {
		w, err := k.connected()
		if err != nil {
			return err
		}
		exists, err = w.tableExists(ctx, k.families, k.opts.Table)
		return err
	})
	return exists, err
}

// tableExists says whether a table of that name is in one of the families.
func (w *wire) tableExists(ctx context.Context, families tables, table string) (bool, error) {
	for _, f := range families {
		if _, found, err := w.ask(ctx, unix.NFT_MSG_GETTABLE, f, appendString(nil, unix.NFTA_TABLE_NAME, table)); err != nil || found {
			return found, err
		}
	}
	return false, nil
}

// Held is what a kernel was found to hold.
type Held struct {
	Index    uint64 // the log index that it stands for, 0 if none is recorded
	Elements map[enforce.Element]struct{}
	// Intact says that everything was as a Kernel leaves it: nothing was created, repaired or lost.
	Intact bool
}

// Adopt reads what the kernel holds. If everything is intact it writes nothing. Otherwise it creates
// what is missing and repairs what differs; no drop that stands is absent at any moment. An element
// that was deleted from one table only is restored. The caller owns the result.
func (k *Kernel) Adopt(ctx context.Context) (Held, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var intact bool
	err := k.twice(ctx, func() (err error) {
		if k.families.home() != netdev {
			if err := k.choose(ctx, arp); err != nil {
				return err
			}
		}
		intact, err = k.load(ctx)
		return err
	})
	if err != nil {
		return Held{}, fmt.Errorf("adopt the kernel: %w", err)
	}
	k.adopted, k.want = true, nil
	if k.families.home() != netdev {
		same, err := k.adoptDevices(ctx)
		if err != nil {
			return Held{}, fmt.Errorf("adopt the kernel: %w", err)
		}
		intact = intact && same
	}
	return Held{Index: k.index, Elements: maps.Clone(k.shadow), Intact: intact}, nil
}

// load fills the shadow from the kernel, repairing as Adopt says. It leaves want alone.
func (k *Kernel) load(ctx context.Context) (intact bool, err error) {
	intact = true
	for attempt := 1; ; attempt++ {
		in, err := k.inspect(ctx)
		if err != nil {
			return false, err
		}
		if len(in.problems) == 0 {
			k.sets, k.shadow, k.jumps, k.index = in.sets, in.held, in.jumps, in.index
			return intact && !in.markerLost, nil
		}
		intact = false
		if attempt == 3 {
			return false, fmt.Errorf("%w: %q", errNotKept, in.problems)
		}
		k.opts.Logger.InfoContext(ctx, "repairing nftables", "table", k.opts.Table, "found", in.problems)
		if err := k.repair(ctx, in); err != nil {
			return false, err
		}
	}
}

func (k *Kernel) inspect(ctx context.Context) (inspection, error) {
	w, err := k.connected()
	if err != nil {
		return inspection{}, err
	}
	r, err := w.read(ctx, k.families, k.opts.Table)
	if err != nil {
		return inspection{}, err
	}
	return inspect(k.families, r, k.newSize), nil
}

func (k *Kernel) newSize(b base) uint32 {
	switch {
	case b.kind == kindTap, b.class != "":
		return k.opts.TapSize
	case b.masked():
		return k.opts.MaskedSize
	default:
		return k.opts.ExactSize
	}
}
