package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/palisade/palisade/internal/hook"
	"github.com/palisade/palisade/inventory"
	"github.com/palisade/palisade/inventory/exec"
	"github.com/palisade/palisade/inventory/libvirt"
	"github.com/palisade/palisade/inventory/openvz"
	"github.com/palisade/palisade/inventory/output"
	"github.com/palisade/palisade/inventory/proxmox"
	"github.com/palisade/palisade/inventory/static"
)

// InventoryConfig says how this node learns which VMs it runs.
type InventoryConfig struct {
	// Driver is the name of one driver, or an array of names for a node with several hypervisors:
	// "libvirt", "openvz", "proxmox", "exec", "static"; or "none" alone. Of a VM that two of them report,
	// the first one's report counts.
	Driver any `toml:"driver"`
	// Trigger is a file; whoever touches it makes the drivers that ask at intervals (openvz, proxmox, exec)
	// ask at once.
	Trigger string `toml:"trigger"`
	Static  struct {
		Dir string `toml:"dir"`
	} `toml:"static"`
	Libvirt LibvirtConfig `toml:"libvirt"`
	// OpenVZ and Exec read what a program prints: at a socket where the service manager runs it, or run by
	// the agent as Command.
	OpenVZ struct {
		Socket   string   `toml:"socket"`
		Command  []string `toml:"command"`
		ConfDir  string   `toml:"conf_dir"` // of the containers' config files
		Prefix   string   `toml:"prefix"`   // before a numeric container id
		Interval duration `toml:"interval"`
		Timeout  duration `toml:"timeout"`
	} `toml:"openvz"`
	Exec struct {
		Socket   string   `toml:"socket"`
		Command  []string `toml:"command"`
		Interval duration `toml:"interval"`
		Timeout  duration `toml:"timeout"`
	} `toml:"exec"`
	Proxmox struct {
		Dir      string   `toml:"dir"`
		Prefix   string   `toml:"prefix"` // before a guest's number
		Interval duration `toml:"interval"`
	} `toml:"proxmox"`
}

func (i *InventoryConfig) setDefaults() {
	if i.Driver == nil || i.Driver == "" {
		i.Driver = "none"
	}
	if i.Trigger == "" {
		i.Trigger = "/run/palisade/look"
	}
	if i.Libvirt.Socket == "" {
		i.Libvirt.Socket = libvirt.DefaultSocket
	}
	if i.Libvirt.HookTimeout.Duration == 0 {
		i.Libvirt.HookTimeout.Duration = hook.DefaultTimeout
	}
	if i.OpenVZ.Socket == "" && len(i.OpenVZ.Command) == 0 {
		i.OpenVZ.Socket = "/run/palisade-inventory/openvz.sock"
	}
	if i.Exec.Socket == "" && len(i.Exec.Command) == 0 {
		i.Exec.Socket = "/run/palisade-inventory/exec.sock"
	}
}

// drivers returns the names of the drivers; none for "none".
func (i *InventoryConfig) drivers() ([]string, error) {
	var names []string
	switch d := i.Driver.(type) {
	case string:
		names = []string{d}
	case []any:
		for _, one := range d {
			name, ok := one.(string)
			if !ok {
				return nil, fmt.Errorf("%v is not the name of a driver", one)
			}
			names = append(names, name)
		}
	default:
		return nil, errors.New("want a name, or an array of names")
	}
	if slices.Equal(names, []string{"none"}) {
		return nil, nil
	}
	known := []string{"libvirt", "openvz", "proxmox", "exec", "static"}
	for n, name := range names {
		switch {
		case !slices.Contains(known, name):
			return nil, fmt.Errorf("%q is none of %s; \"none\" stands alone", name, strings.Join(known, ", "))
		case slices.Contains(names[:n], name):
			return nil, fmt.Errorf("%q is named twice", name)
		}
	}
	if len(names) == 0 {
		return nil, errors.New("is empty; \"none\" says that this node has no inventory")
	}
	return names, nil
}

func (i *InventoryConfig) validate(bad func(key, format string, args ...any)) {
	if d := i.Libvirt.HookTimeout.Duration; d < hook.MinTimeout || d > hook.MaxTimeout {
		bad("inventory.libvirt.hook_timeout", "is %s; give %s to %s", d, hook.MinTimeout, hook.MaxTimeout)
	}
	names, err := i.drivers()
	if err != nil {
		bad("inventory.driver", "%s", err)
		return
	}
	for _, name := range names {
		if name == "static" && i.Static.Dir == "" {
			bad("inventory.static.dir", "is missing; name the directory with one JSON file per VM")
		} else if _, err := i.open(name, slog.Default(), nil); err != nil {
			bad("inventory."+name, "%s", err)
		}
	}
}

// newDriver returns nil when the node has no inventory. hints is called once for each driver that asks at
// intervals.
func (i *InventoryConfig) newDriver(log *slog.Logger, hints func() <-chan struct{}) (inventory.Driver, error) {
	names, err := i.drivers()
	if err != nil {
		return nil, err
	}
	var drivers []inventory.Driver
	for _, name := range names {
		d, err := i.open(name, log, hints)
		if err != nil {
			return nil, err
		}
		drivers = append(drivers, d)
	}
	switch len(drivers) {
	case 0:
		return nil, nil //nolint:nilnil // no driver is a valid choice, and no error
	case 1:
		return drivers[0], nil
	}
	return inventory.Several(log, drivers...), nil
}

// open returns one driver, not started. hints may be nil.
func (i *InventoryConfig) open(name string, log *slog.Logger, hints func() <-chan struct{}) (inventory.Driver, error) {
	hinted := func() <-chan struct{} {
		if hints == nil {
			return nil
		}
		return hints()
	}
	trigger := []string{i.Trigger}
	switch name {
	case "static":
		return static.New(static.Options{Dir: i.Static.Dir, Logger: log})
	case "libvirt":
		return libvirt.New(libvirt.Options{Socket: i.Libvirt.Socket, Logger: log})
	case "openvz":
		return openvz.New(openvz.Options{
			Source: output.Source{Socket: i.OpenVZ.Socket, Command: i.OpenVZ.Command}, ConfDir: i.OpenVZ.ConfDir, Prefix: i.OpenVZ.Prefix, Interval: i.OpenVZ.Interval.Duration,
			Timeout: i.OpenVZ.Timeout.Duration, Hints: hinted(), Watch: trigger, Logger: log,
		})
	case "proxmox":
		return proxmox.New(proxmox.Options{
			Dir: i.Proxmox.Dir, Prefix: i.Proxmox.Prefix, Interval: i.Proxmox.Interval.Duration, Hints: hinted(), Watch: trigger, Logger: log,
		})
	case "exec":
		return exec.New(exec.Options{
			Source: output.Source{Socket: i.Exec.Socket, Command: i.Exec.Command}, Interval: i.Exec.Interval.Duration, Timeout: i.Exec.Timeout.Duration, Hints: hinted(), Watch: trigger, Logger: log,
		})
	}
	return nil, fmt.Errorf("there is no inventory %q", name)
}

// hints returns a channel that says when interfaces come, go or get another name: where containers and VMs
// start, stop and migrate, theirs do. News that come while one waits to be read are one.
func (m *linkMonitor) hints() <-chan struct{} {
	c := make(chan struct{}, 1)
	m.Subscribe(func(changes []linkChange) {
		if !slices.ContainsFunc(changes, func(c linkChange) bool { return c.Before.Name != c.Now.Name || c.Before.Index != c.Now.Index }) {
			return
		}
		signal(c)
	})
	return c
}
