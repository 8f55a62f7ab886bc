package wire

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Rate is what a block of kind limit lets pass in one direction: exactly one field is set.
type Rate struct {
	BitsPerSecond    uint64 `json:"bits_per_second,omitempty" doc:"Counted with the network header"`
	PacketsPerSecond uint64 `json:"packets_per_second,omitempty"`
}

// Port is a protocol and a range of its destination ports. Its numbers may be out of range: who decodes
// one checks it.
type Port struct {
	Protocol string `json:"protocol" maxLength:"16" example:"tcp" doc:"tcp, udp, sctp, icmp, icmpv6, gre, esp, or an IP protocol number"`
	From     int    `json:"from,omitempty" example:"25" doc:"First port; absent: every packet of the protocol"`
	To       int    `json:"to,omitempty" example:"25" doc:"Last port; from if absent"`
}

// PortPattern is a regular expression of the short form of a Port.
const PortPattern = `^[a-z0-9]{1,16}(/[0-9]{1,5}(-[0-9]{1,5})?)?$`

var portForm = regexp.MustCompile(PortPattern)

// ParsePort reads the short form: "tcp/25", "udp/1000-2000", "icmp". It does not check that the protocol is
// known nor that the ports are in range. It refuses a number alone: who means port 25 would drop IP protocol 25.
func ParsePort(s string) (Port, error) {
	if !portForm.MatchString(s) {
		return Port{}, fmt.Errorf(`%q is no port: want for example "tcp/25", "udp/1000-2000" or "icmp"`, s)
	}
	protocol, ports, some := strings.Cut(s, "/")
	if _, err := strconv.Atoi(protocol); err == nil && !some {
		return Port{}, fmt.Errorf(`%q could be a port or a protocol: want "tcp/%s", or {"protocol": "%s"}`, s, s, s)
	}
	p := Port{Protocol: protocol}
	if !some {
		return p, nil
	}
	from, to, isRange := strings.Cut(ports, "-")
	if !isRange {
		to = from
	}
	// The pattern leaves only digits, and few of them.
	p.From, _ = strconv.Atoi(from)
	p.To, _ = strconv.Atoi(to)
	if p.From == 0 || p.To == 0 {
		return Port{}, fmt.Errorf("%q: ports start at 1", s)
	}
	return p, nil
}

// String gives the short form.
func (p Port) String() string {
	switch {
	case p.From == 0 && p.To == 0:
		return p.Protocol
	case p.From == p.To || p.To == 0:
		return fmt.Sprintf("%s/%d", p.Protocol, p.From)
	}
	return fmt.Sprintf("%s/%d-%d", p.Protocol, p.From, p.To)
}

// UnmarshalJSON takes an object or the short form.
func (p *Port) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		var err error
		*p, err = ParsePort(s)
		return err
	}
	type plain Port
	return json.Unmarshal(b, (*plain)(p))
}

var days = regexp.MustCompile(`^([0-9]{1,6})d`)

// ParseDuration reads a positive duration in the syntax of Go with days in front: "90s", "72h", "7d", "1d12h".
func ParseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf(`%q is no duration: want for example "10m", "72h" or "7d"`, s)
	var whole time.Duration
	rest := s
	if m := days.FindStringSubmatch(s); m != nil {
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil || n > math.MaxInt64/int64(24*time.Hour) {
			return 0, bad
		}
		whole, rest = time.Duration(n)*24*time.Hour, s[len(m[0]):]
	}
	var part time.Duration
	if rest != "" || whole == 0 {
		var err error
		if part, err = time.ParseDuration(rest); err != nil || part < 0 || strings.ContainsAny(rest, "+-") {
			return 0, bad
		}
	}
	d := whole + part
	if d <= 0 { // also an overflow
		return 0, bad
	}
	return d, nil
}
