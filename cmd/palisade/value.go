package main

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/palisade/palisade/httpapi/wire"
)

// moment is a time on the command line: relative to now, or absolute.
type moment struct{ time.Time }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *moment) UnmarshalText(b []byte) error {
	s := string(b)
	if s == "now" {
		m.Time = time.Now()
		return nil
	}
	if after, ok := strings.CutPrefix(s, "+"); ok {
		d, err := wire.ParseDuration(after)
		if err != nil {
			return fmt.Errorf(`%q is no time: want for example "+2h" or "+7d" from now`, s)
		}
		m.Time = time.Now().Add(d)
		return nil
	}
	for _, layout := range []string{time.RFC3339, localLayout} {
		if t, err := time.Parse(layout, s); err == nil {
			m.Time = t
			return nil
		}
	}
	return fmt.Errorf(`%q is no time: want for example "+2h" from now, or "2026-01-31T08:00:00+01:00" with its time zone`, s)
}

// span is a duration on the command line, with days; it is sent as it was typed.
type span string

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *span) UnmarshalText(b []byte) error {
	if _, err := wire.ParseDuration(string(b)); err != nil {
		return err
	}
	*d = span(b)
	return nil
}

func (d span) duration() time.Duration {
	out, _ := wire.ParseDuration(string(d)) // it was checked when it was read
	return out
}

// rate is what passes a second.
type rate wire.Rate

func (r *rate) given() bool { return *r != rate{} }

var rateForm = regexp.MustCompile(`^([0-9]+)(k|m|g)?(bit|pps)$`)

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *rate) UnmarshalText(b []byte) error {
	m := rateForm.FindStringSubmatch(strings.ToLower(string(b)))
	if m == nil {
		return fmt.Errorf(`%q is no rate: want for example "10mbit", "512kbit" or "5000pps"`, b)
	}
	n, err := strconv.ParseUint(m[1], 10, 64)
	unit := map[string]uint64{"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[m[2]]
	if err != nil || n > math.MaxUint64/unit {
		return fmt.Errorf("%q is too large", b)
	}
	*r = rate{BitsPerSecond: n * unit}
	if m[3] == "pps" {
		*r = rate{PacketsPerSecond: n * unit}
	}
	return nil
}

// rateText is a rate as it is typed.
func rateText(r *wire.Rate) string {
	n, unit := r.BitsPerSecond, "bit"
	if n == 0 {
		n, unit = r.PacketsPerSecond, "pps"
	}
	prefix := ""
	for _, p := range []string{"k", "m", "g"} {
		if n == 0 || n%1000 != 0 {
			break
		}
		n, prefix = n/1000, p
	}
	return strconv.FormatUint(n, 10) + prefix + unit
}

// port is a protocol and its ports.
type port wire.Port

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *port) UnmarshalText(b []byte) error {
	v, err := wire.ParsePort(string(b))
	*p = port(v)
	return err
}
