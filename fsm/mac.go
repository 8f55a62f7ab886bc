package fsm

import (
	"fmt"
	"net"
)

// MAC is an Ethernet hardware address; comparable, so that it can be a map key.
type MAC [6]byte

// ParseMAC reads "52:54:00:12:34:56" or the dash and dot forms of net.ParseMAC, 6 bytes only.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return MAC{}, err
	}
	if len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("MAC %q has %d bytes, want 6", s, len(hw))
	}
	return MAC(hw), nil
}

// String gives the colon form in lower case.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText gives the colon form.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads any form that ParseMAC reads.
func (m *MAC) UnmarshalText(b []byte) error {
	v, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}
