// Package openvz is the inventory of OpenVZ and Virtuozzo nodes. It reads what their own tools list: vzlist
// (OpenVZ 6, and containers of OpenVZ 7) or prlctl (OpenVZ 7 and Virtuozzo: containers and VMs).
package openvz

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"time"

	"github.com/palisade/palisade/inventory"
	"github.com/palisade/palisade/inventory/output"
	"github.com/palisade/palisade/inventory/poll"
)

// Defaults of Options.
const (
	DefaultConfDir = "/etc/vz/conf"
	DefaultPrefix  = "ct-"
)

// Options of a driver.
type Options struct {
	// Source prints the list: "vzlist -a -j -o ctid,name,ip,status" or "prlctl list -a -i -j". Which one it
	// was is seen in what it prints.
	Source output.Source
	// ConfDir holds the containers' config files: vzlist does not tell of veth interfaces, they do.
	// Default DefaultConfDir.
	ConfDir string
	// Prefix comes before a numeric container id, to make the VM's id. Default DefaultPrefix.
	Prefix   string
	Interval time.Duration   // pause between looks; default 5 s
	Timeout  time.Duration   // for the list to be printed; default 30 s
	Hints    <-chan struct{} // make it look at once; may be nil
	Watch    []string        // files and directories whose changes are hints, beside ConfDir
	Logger   *slog.Logger    // default slog.Default
}

var prefixForm = regexp.MustCompile(`^[A-Za-z0-9._:-]{0,64}$`)

// New returns a driver that is not started.
func New(o Options) (*poll.Driver, error) {
	if err := o.Source.Validate(); err != nil {
		return nil, fmt.Errorf("openvz inventory: %w", err)
	}
	if o.ConfDir == "" {
		o.ConfDir = DefaultConfDir
	}
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	switch {
	case !filepath.IsAbs(o.ConfDir):
		return nil, fmt.Errorf("openvz inventory: conf dir: %q is not an absolute path", o.ConfDir)
	case !prefixForm.MatchString(o.Prefix):
		return nil, errors.New("openvz inventory: prefix: want at most 64 of A-Z a-z 0-9 . _ : -")
	case o.Timeout < 0:
		return nil, fmt.Errorf("openvz inventory: timeout is %v, want 0 for the default or more", o.Timeout)
	}
	look := func(ctx context.Context, list func(poll.Listing) error) error {
		data, err := o.Source.All(ctx, o.Timeout)
		if err != nil {
			return err
		}
		l, err := parse(data, o.Prefix, confDir(o.ConfDir).read)
		if err != nil {
			return err
		}
		return list(l)
	}
	return poll.New(poll.Options{
		Name: "openvz", Look: look, Interval: o.Interval, Hints: o.Hints, Watch: append([]string{o.ConfDir}, o.Watch...), Logger: o.Logger,
	})
}

// parse reads what either tool printed. conf returns the config file of a container, nil if it has none.
// An element that can't be told apart from others makes the listing incomplete: an error. What is wrong with
// an address or an interface of one VM is odd, and the rest of it is taken.
func parse(data []byte, prefix string, conf func(ctid string) ([]byte, error)) (poll.Listing, error) {
	var elements []json.RawMessage
	if len(bytes.TrimSpace(data)) == 0 {
		return poll.Listing{}, errors.New("nothing was printed")
	}
	if err := json.Unmarshal(data, &elements); err != nil {
		return poll.Listing{}, fmt.Errorf("not the JSON of vzlist -j or prlctl -j: %w", err)
	}
	if len(elements) > inventory.MaxVMs {
		return poll.Listing{}, fmt.Errorf("more than %d VMs", inventory.MaxVMs)
	}
	var l poll.Listing
	for i, e := range elements {
		var which struct {
			CTID *json.RawMessage `json:"ctid"`
			ID   *string          `json:"ID"`
		}
		if err := json.Unmarshal(e, &which); err != nil {
			return poll.Listing{}, fmt.Errorf("element %d: %w", i, err)
		}
		var seen inventory.Seen
		var odd []string
		var err error
		switch {
		case which.CTID != nil:
			seen, odd, err = container(e, prefix, conf)
		case which.ID != nil:
			seen, odd, err = environment(e)
		default:
			err = errors.New("it has neither the ctid of vzlist nor the ID of prlctl -i")
		}
		if err != nil {
			return poll.Listing{}, fmt.Errorf("element %d: %w", i, err)
		}
		l.VMs, l.Odd = append(l.VMs, seen), append(l.Odd, odd...)
	}
	releaseShared(l.VMs)
	return l, nil
}

// releaseShared takes from stopped VMs the names of interfaces that others have as well. Names are made of ids, so
// a stopped container keeps its own and is bound to it before it starts or has arrived; but an operator may
// give one name to several.
func releaseShared(vms []inventory.Seen) {
	users := make(map[string]int)
	for _, v := range vms {
		for _, n := range v.NICs {
			users[n.Tap]++
		}
	}
	for _, v := range vms {
		for i := range v.NICs {
			if !v.Here() && users[v.NICs[i].Tap] > 1 {
				v.NICs[i].Tap = ""
			}
		}
	}
}
