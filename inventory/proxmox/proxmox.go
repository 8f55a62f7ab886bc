// Package proxmox is the inventory of Proxmox VE nodes. It reads the files of the cluster's file system,
// /etc/pve, and which guests run from the sockets that they listen at; it runs nothing.
package proxmox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"time"

	"github.com/palisade/palisade/inventory/poll"
)

// Defaults of Options.
const (
	DefaultDir    = "/etc/pve"
	DefaultPrefix = "pve-"
)

// Options of a driver. The zero value reads the node's own files.
type Options struct {
	// Dir is the cluster's file system. Default DefaultDir.
	Dir string
	// Sockets is the kernel's list of Unix sockets. Default /proc/self/net/unix.
	Sockets string
	// Prefix comes before a guest's number, to make the VM's id. Numbers are unique in one cluster of Proxmox
	// VE: give each its own where a fleet has several. Default DefaultPrefix.
	Prefix   string
	Interval time.Duration   // pause between looks; default 5 s
	Hints    <-chan struct{} // make it look at once; may be nil
	Watch    []string        // files and directories whose changes are hints
	Logger   *slog.Logger    // default slog.Default
}

var prefixForm = regexp.MustCompile(`^[A-Za-z0-9._:-]{0,64}$`)

// New returns a driver that is not started.
func New(o Options) (*poll.Driver, error) {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	if o.Sockets == "" {
		o.Sockets = "/proc/self/net/unix"
	}
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("proxmox inventory: dir: %q is not an absolute path", o.Dir)
	}
	if !prefixForm.MatchString(o.Prefix) {
		return nil, errors.New("proxmox inventory: prefix: want at most 64 of A-Z a-z 0-9 . _ : -")
	}
	n := node{dir: o.Dir, sockets: o.Sockets, prefix: o.Prefix}
	look := func(_ context.Context, list func(poll.Listing) error) error {
		l, err := n.list()
		if err != nil {
			return err
		}
		return list(l)
	}
	return poll.New(poll.Options{Name: "proxmox", Look: look, Interval: o.Interval, Hints: o.Hints, Watch: o.Watch, Logger: o.Logger})
}
