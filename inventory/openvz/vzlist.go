package openvz

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

var (
	ctidForm = regexp.MustCompile(`^[1-9][0-9]{0,9}$`)
	uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

// container reads one element of vzlist's list.
func container(data []byte, prefix string, conf func(string) ([]byte, error)) (inventory.Seen, []string, error) {
	var ct struct {
		CTID         json.RawMessage `json:"ctid"` // a number in OpenVZ 6, a string in OpenVZ 7
		Name         *string         `json:"name"`
		Hostname     *string         `json:"hostname"`
		Status       string          `json:"status"`
		IP           []string        `json:"ip"`
		ConfiguredIP []string        `json:"configured_ip"` // OpenVZ 7
	}
	if err := json.Unmarshal(data, &ct); err != nil {
		return inventory.Seen{}, nil, err
	}
	ctid := strings.ToLower(strings.Trim(string(ct.CTID), `"`))
	vm := inventory.VM{ID: ctid, Kind: "openvz"}
	switch {
	case ctidForm.MatchString(ctid):
		vm.ID = prefix + ctid
	case !uuidForm.MatchString(ctid):
		return inventory.Seen{}, nil, fmt.Errorf("ctid: %q is neither a number nor a UUID", ctid)
	}
	vm.Name = vm.ID
	for _, name := range []*string{ct.Hostname, ct.Name} {
		if name != nil && *name != "" {
			vm.Name = *name
		}
	}
	var odd []string
	switch ct.Status {
	case "running":
		vm.Phase = fsm.PhaseRunning
	case "stopped", "mounted", "suspended":
		vm.Phase = fsm.PhaseStopped
	default:
		// What can't be understood is taken as running: that binds its interfaces.
		vm.Phase = fsm.PhaseRunning
		odd = append(odd, fmt.Sprintf("%s: status %q is not known", vm.ID, ct.Status))
	}
	text, err := conf(ctid)
	if err != nil {
		return inventory.Seen{}, nil, err
	}
	nics, problems := interfaces(text, ctid)
	for _, p := range problems {
		odd = append(odd, vm.ID+": NETIF: "+p)
	}
	// The list is of venet; that of OpenVZ 7 also has the addresses of veth interfaces.
	var venet fsm.NIC
	for _, text := range append(ct.IP, ct.ConfiguredIP...) {
		a, err := address(text)
		if err != nil {
			odd = append(odd, fmt.Sprintf("%s: ip: %s", vm.ID, err))
			continue
		}
		if !slices.Contains(venet.Addresses, a) && !slices.ContainsFunc(nics, func(n fsm.NIC) bool { return slices.Contains(n.Addresses, a) }) {
			venet.Addresses = append(venet.Addresses, a)
		}
	}
	if len(venet.Addresses) > 0 {
		nics = append([]fsm.NIC{venet}, nics...)
	}
	vm.NICs = nics
	odd = append(odd, bound(&vm)...)
	return inventory.Seen{VM: vm}, odd, nil
}

// bound cuts what the state machine would refuse.
func bound(vm *inventory.VM) (odd []string) {
	if len(vm.NICs) > fsm.MaxNICs {
		odd = append(odd, fmt.Sprintf("%s: more than %d interfaces", vm.ID, fsm.MaxNICs))
		vm.NICs = vm.NICs[:fsm.MaxNICs]
	}
	left := fsm.MaxVMAddresses
	for i := range vm.NICs {
		n := &vm.NICs[i]
		if len(n.Addresses) > left {
			odd = append(odd, fmt.Sprintf("%s: more than %d addresses", vm.ID, fsm.MaxVMAddresses))
			n.Addresses = n.Addresses[:left]
		}
		left -= len(n.Addresses)
	}
	return odd
}

// address reads an address with or without a mask: "192.0.2.7", "192.0.2.7/255.255.255.0", "2001:DB8::7/64".
func address(s string) (netip.Addr, error) {
	s, _, _ = strings.Cut(s, "/")
	return inventory.Address(s)
}

// tapName refuses interfaces that are not of one container alone.
func tapName(s string) (string, error) {
	if strings.HasPrefix(s, "venet") {
		return "", nil // shared by all containers of the node
	}
	return s, inventory.CheckTap(s)
}

const maxConf = 256 << 10 // bytes of a config file

// netifLine is the line of a config file that names the veth interfaces. The file is a piece of shell, of
// which the tools write, and read, only this form.
var netifLine = regexp.MustCompile(`(?m)^[ \t]*NETIF=(?:"([^"\n]*)"|'([^'\n]*)'|([^"'\s#]*))`)

// interfaces reads the veth interfaces of a container from its config file:
//
//	NETIF="ifname=eth0,bridge=vzbr0,mac=00:18:51:01:02:03,host_ifname=veth101.0,host_mac=…;ifname=eth1,…"
//
// Where host_ifname is not given, the tools name the interface after container and number.
func interfaces(conf []byte, ctid string) (nics []fsm.NIC, odd []string) {
	matches := netifLine.FindAllSubmatch(conf, -1)
	if len(matches) == 0 {
		return nil, nil
	}
	last := matches[len(matches)-1] // as in the shell
	for one := range strings.SplitSeq(string(slices.Concat(last[1:]...)), ";") {
		if strings.TrimSpace(one) == "" {
			continue
		}
		var nic fsm.NIC
		var inside, tap string
		for param := range strings.SplitSeq(one, ",") {
			key, value, _ := strings.Cut(strings.TrimSpace(param), "=")
			var err error
			switch key {
			case "ifname":
				inside = value
			case "host_ifname":
				tap = value
			case "mac":
				nic.MAC, err = fsm.ParseMAC(value)
			case "ip":
				var a netip.Addr
				if a, err = address(value); err == nil {
					nic.Addresses = append(nic.Addresses, a)
				}
			}
			if err != nil {
				odd = append(odd, fmt.Sprintf("%s: %s", key, err))
			}
		}
		if tap == "" {
			tap = "veth" + ctid + "." + digits(inside)
		}
		var err error
		if nic.Tap, err = tapName(tap); err != nil {
			odd = append(odd, "host_ifname: "+err.Error())
			nic.Tap = ""
		}
		nics = append(nics, nic)
	}
	return nics, odd
}

// digits returns the number at the end of an interface's name, as vzctl does: 0 if there is none.
func digits(ifname string) string {
	n := ifname[len(strings.TrimRight(ifname, "0123456789")):]
	if n = strings.TrimLeft(n, "0"); n == "" {
		return "0"
	}
	return n
}

// confDir is the directory of the containers' config files.
type confDir string

// read returns the config file of a container, nil if it has none. A file that exists and can't be read is an
// error: its container may have interfaces that nothing else tells of.
func (d confDir) read(ctid string) ([]byte, error) {
	path := filepath.Join(string(d), ctid+".conf")
	// Without O_NONBLOCK a FIFO of this name would stop the driver.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is not a regular file", path))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConf+1))
	if err == nil && len(data) > maxConf {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxConf)
	}
	return data, err
}
