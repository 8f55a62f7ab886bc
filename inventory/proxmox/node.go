package proxmox

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
	"github.com/palisade/palisade/inventory/poll"
)

// node reads one node's files.
type node struct {
	dir, sockets, prefix string
}

const (
	maxVMList = 16 << 20 // bytes of the list of all guests of a cluster
	maxConf   = 1 << 20  // bytes of a config file; its snapshots are in it
	maxReads  = 3        // of files that change meanwhile
)

// guest is an entry of the cluster's list.
type guest struct {
	Node string `json:"node"`
	Type string `json:"type"` // "qemu", "lxc"
}

// errMoved says that the cluster's files changed while they were read.
var errMoved = errors.New("the list and the files of guests don't agree")

// list returns the guests that are on this node or in flight to it. Files that can't be read are an error: the
// cluster's file system may not be mounted.
func (n node) list() (poll.Listing, error) {
	for i := 1; ; i++ {
		l, err := n.once()
		if !errors.Is(err, errMoved) || i == maxReads {
			return l, err
		}
	}
}

func (n node) once() (poll.Listing, error) {
	self, err := os.Readlink(filepath.Join(n.dir, "local")) // "nodes/NAME"
	if err != nil {
		return poll.Listing{}, err
	}
	self = filepath.Base(self)
	data, err := read(filepath.Join(n.dir, ".vmlist"), maxVMList)
	if err != nil {
		return poll.Listing{}, err
	}
	var all struct {
		Version *uint64          `json:"version"`
		IDs     map[string]guest `json:"ids"` // missing if the cluster has no guest
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return poll.Listing{}, fmt.Errorf(".vmlist: %w", err)
	}
	if all.Version == nil {
		return poll.Listing{}, errors.New(".vmlist: no version")
	}
	// A guest that migrates is listed at its source, and its process here waits for it. If its file moved
	// since the list was read, it is not found below.
	active, err := n.active()
	if err != nil {
		return poll.Listing{}, err
	}
	var l poll.Listing
	for id, g := range all.IDs {
		if g.Node != self && !active[id] || g.Type != "qemu" && g.Type != "lxc" {
			continue
		}
		if !vmidForm.MatchString(id) || !nodeForm.MatchString(g.Node) {
			return poll.Listing{}, fmt.Errorf(".vmlist: entry %q of node %q", id, g.Node)
		}
		sub := map[string]string{"qemu": "qemu-server", "lxc": "lxc"}[g.Type]
		data, err := read(filepath.Join(n.dir, "nodes", g.Node, sub, id+".conf"), maxConf)
		if errors.Is(err, fs.ErrNotExist) {
			return poll.Listing{}, fmt.Errorf("%w: %s/%s of node %s", errMoved, sub, id, g.Node)
		}
		if err != nil {
			return poll.Listing{}, err
		}
		c, odd := parse(data, g.Type, id)
		seen := inventory.Seen{VM: inventory.VM{ID: n.prefix + id, Name: c.name, Kind: kind(g.Type), NICs: c.nics, Phase: fsm.PhaseStopped}}
		switch {
		case active[id] && g.Node != self:
			seen.Phase = fsm.PhaseIncoming
		case active[id]:
			seen.Phase = fsm.PhaseRunning
			seen.Moving = c.lock == "migrate"
		}
		l.VMs = append(l.VMs, seen)
		for _, o := range odd {
			l.Odd = append(l.Odd, id+": "+o)
		}
	}
	slices.Sort(l.Odd)
	return l, nil
}

func kind(typ string) string {
	if typ == "qemu" {
		return "kvm"
	}
	return typ
}

var (
	vmidForm = regexp.MustCompile(`^[1-9][0-9]{2,8}$`)
	nodeForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$`)
	// What a running guest listens at: QEMU's monitor, and the command socket of LXC (abstract).
	socketForm = regexp.MustCompile(` (?:(?:/var)?/run/qemu-server/([0-9]+)\.qmp|@/var/lib/lxc/([0-9]+)/command)$`)
)

// active returns the numbers of the guests whose processes run here. The kernel forgets a socket with the
// last process that has it open, whatever becomes of pid files.
func (n node) active() (map[string]bool, error) {
	f, err := os.Open(n.sockets)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	active := make(map[string]bool)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if m := socketForm.FindStringSubmatch(lines.Text()); m != nil {
			active[m[1]+m[2]] = true
		}
	}
	return active, lines.Err()
}

// read returns a file of at most limit bytes.
func read(path string, limit int64) ([]byte, error) {
	// Without O_NONBLOCK a FIFO of this name would stop the driver.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errors.New(path + " is larger than " + strconv.FormatInt(limit, 10) + " bytes")
	}
	return data, err
}
