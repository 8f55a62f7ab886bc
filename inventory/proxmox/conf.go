package proxmox

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// conf is what matters of a guest's config file.
type conf struct {
	name string
	lock string // "migrate", "backup", …; "" for none
	nics []fsm.NIC
}

// line is "key: value"; sections ([PENDING], snapshots) come after all lines that are in force.
var line = regexp.MustCompile(`^([a-z][a-z_-]*[0-9]*):\s*(.+?)\s*$`)

// parse reads a config file up to its first section. What can't be understood is odd, and the rest is taken.
func parse(data []byte, typ, vmid string) (c conf, odd []string) {
	nets, addresses := map[int]string{}, map[int]string{}
	for raw := range bytes.Lines(data) {
		text := strings.TrimRight(string(raw), "\r\n")
		if strings.HasPrefix(text, "[") {
			break
		}
		m := line.FindStringSubmatch(text)
		if m == nil {
			continue // a comment
		}
		key, value := m[1], m[2]
		switch key {
		case "lock":
			c.lock = value
		case "name", "hostname":
			c.name = value
		default:
			if n, ok := numbered(key, "net"); ok {
				nets[n] = value
			}
			if n, ok := numbered(key, "ipconfig"); ok && typ == "qemu" {
				addresses[n] = value
			}
		}
	}
	if c.name == "" {
		c.name = vmid
	}
	port := map[string]string{"qemu": "tap", "lxc": "veth"}[typ]
	left := fsm.MaxVMAddresses
	for i := range fsm.MaxNICs { // in order; Proxmox VE has net0 to net31
		value, ok := nets[i]
		if !ok {
			continue
		}
		nic, problems := network(value+","+addresses[i], typ)
		for _, p := range problems {
			odd = append(odd, fmt.Sprintf("net%d: %s", i, p))
		}
		if nic.Tap = fmt.Sprintf("%s%si%d", port, vmid, i); inventory.CheckTap(nic.Tap) != nil {
			nic.Tap = ""
		}
		nic.Addresses = nic.Addresses[:min(left, len(nic.Addresses))]
		left -= len(nic.Addresses)
		c.nics = append(c.nics, nic)
	}
	return c, odd
}

// numbered reads "net7" as 7.
func numbered(key, word string) (int, bool) {
	digits, ok := strings.CutPrefix(key, word)
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n >= 0
}

// network reads the parameters of an interface: of QEMU "virtio=MAC,bridge=…" and "ip=192.0.2.7/24,ip6=auto"
// from ipconfig, of LXC "name=eth0,hwaddr=MAC,ip=…".
func network(params, typ string) (nic fsm.NIC, odd []string) {
	for param := range strings.SplitSeq(params, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(param), "=")
		isMAC := key == "hwaddr" && typ == "lxc" || typ == "qemu" && (key == "macaddr" || slices.Contains(models(), key))
		switch {
		case isMAC:
			mac, err := fsm.ParseMAC(value)
			if err != nil {
				odd = append(odd, err.Error())
			}
			nic.MAC = mac
		case key == "ip" || key == "ip6":
			if slices.Contains([]string{"", "dhcp", "auto", "manual"}, value) {
				continue
			}
			text, _, _ := strings.Cut(value, "/")
			a, err := inventory.Address(text)
			if err != nil {
				odd = append(odd, err.Error())
				continue
			}
			nic.Addresses = append(nic.Addresses, a)
		}
	}
	return nic, odd
}

// models are the network cards whose name is the key of the MAC.
func models() []string {
	return []string{
		"virtio", "e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b", "i82559er",
		"ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "vmxnet3",
	}
}
