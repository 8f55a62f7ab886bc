package fsm

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func TestCommandsSurviveTheLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		want := Command{
			Time:  time.Unix(0, rapid.Int64Range(1, 1<<62).Draw(t, "time")).UTC(),
			Actor: text.Draw(t, "actor"), Key: text.Draw(t, "key"), Op: genAnyOp(false).Draw(t, "op"),
		}
		data, err := MarshalCommand(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := UnmarshalCommand(data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{}), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-written +read)\n%s", diff)
		}
		again, err := MarshalCommand(got)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("encoded to other bytes the second time: %v", err)
		}
	})
}

func genAnyOp(nested bool) *rapid.Generator[Op] {
	text, number := rapid.String(), rapid.Uint64()
	anyAddr := rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "v4") {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr")))
		}
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr"))).Unmap()
	})
	anyPrefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := anyAddr.Draw(t, "addr")
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")) // host bits and all
	})
	prefixes := rapid.SliceOfN(anyPrefix, 0, 3)
	addrs := rapid.SliceOfN(anyAddr, 0, 3)
	mac := rapid.Custom(func(t *rapid.T) MAC { return MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac")) })
	nic := rapid.Custom(func(t *rapid.T) NIC {
		return NIC{mac.Draw(t, "mac"), text.Draw(t, "tap"), addrs.Draw(t, "addresses"), text.Draw(t, "network")}
	})
	at := rapid.Custom(func(t *rapid.T) time.Time { return fromNanos(rapid.Int64Range(0, 1<<62).Draw(t, "nanos")) })
	ports := rapid.Custom(func(t *rapid.T) PortRange {
		return PortRange{rapid.Byte().Draw(t, "protocol"), rapid.Uint16().Draw(t, "first"), rapid.Uint16().Draw(t, "last")}
	})
	to := rapid.Custom(func(t *rapid.T) netip.AddrPort {
		if rapid.Bool().Draw(t, "none") {
			return netip.AddrPort{}
		}
		return netip.AddrPortFrom(anyAddr.Draw(t, "addr"), rapid.Uint16().Draw(t, "port"))
	})
	anyTarget := rapid.Custom(func(t *rapid.T) Target {
		return Target{text.Draw(t, "vm"), anyPrefix.Draw(t, "prefix"), text.Draw(t, "account"), text.Draw(t, "list")}
	})
	return rapid.Custom(func(t *rapid.T) Op {
		most := 14
		if nested {
			most = 13
		}
		switch rapid.IntRange(0, most).Draw(t, "op") {
		case 0:
			return AddBlock{
				Target:    anyTarget.Draw(t, "target"),
				Kind:      rapid.SampledFrom(append(kinds(), "")).Draw(t, "kind"),
				Direction: rapid.SampledFrom(append(directions(), "")).Draw(t, "direction"),
				Reason:    text.Draw(t, "reason"), Note: text.Draw(t, "note"),
				Rate: Rate{number.Draw(t, "bits"), number.Draw(t, "packets")}, Ports: rapid.SliceOfN(ports, 0, 3).Draw(t, "ports"),
				StartsAt: at.Draw(t, "start"), EndsAt: at.Draw(t, "end"),
				Duration: time.Duration(rapid.Int64().Draw(t, "duration")), ConfirmWithin: time.Duration(rapid.Int64().Draw(t, "confirm")),
				Force: rapid.Bool().Draw(t, "force"), RedirectTo: to.Draw(t, "to"),
			}
		case 7:
			op := PatchBlock{ID: text.Draw(t, "id"), IfRevision: number.Draw(t, "revision"), Confirm: rapid.Bool().Draw(t, "confirm")}
			if rapid.Bool().Draw(t, "all") {
				op.StartsAt, op.EndsAt, op.Note = new(at.Draw(t, "start")), new(at.Draw(t, "end")), new(text.Draw(t, "note"))
			}
			return op
		case 8:
			return FireBlock{text.Draw(t, "id"), number.Draw(t, "revision"), at.Draw(t, "at")}
		case 9:
			return LiftReason{anyTarget.Draw(t, "target"), text.Draw(t, "reason")}
		case 10:
			return PutAccount{text.Draw(t, "id"), at.Draw(t, "until"), text.Draw(t, "note"), number.Draw(t, "revision")}
		case 11:
			return PutSettings{Settings{
				number.Draw(t, "VMs"), number.Draw(t, "addresses"), text.Draw(t, "title"), text.Draw(t, "text"), text.Draw(t, "link"), 0,
				uint32(number.Draw(t, "voters")), time.Duration(number.Draw(t, "after")), rapid.Bool().Draw(t, "source guard"),
			}, number.Draw(t, "revision")}
		case 12:
			return genAnyFleetOp().Draw(t, "fleet")
		case 1:
			return LiftBlock{text.Draw(t, "id"), number.Draw(t, "revision")}
		case 2:
			return DeclareVM{text.Draw(t, "id"), text.Draw(t, "name"), text.Draw(t, "owner"), prefixes.Draw(t, "addresses"), at.Draw(t, "until"), rapid.SampledFrom(sourceGuards()).Draw(t, "source guard"), number.Draw(t, "revision")}
		case 3:
			return ObserveVM{
				ID: text.Draw(t, "id"), Name: string(rapid.SliceOf(rapid.Byte()).Draw(t, "name")),
				Kind: text.Draw(t, "kind"), Node: text.Draw(t, "node"),
				Phase: rapid.SampledFrom(append(phases(), "")).Draw(t, "phase"),
				NICs:  rapid.SliceOfN(nic, 0, 3).Draw(t, "nics"), Epoch: number.Draw(t, "epoch"),
				Migration: rapid.SampledFrom(append(migrationPhases(), "")).Draw(t, "migration"),
			}
		case 4:
			return PutNode{Node{
				text.Draw(t, "id"), text.Draw(t, "name"), addrs.Draw(t, "addresses"), addrs.Draw(t, "gateways"),
				rapid.SliceOfN(mac, 0, 3).Draw(t, "macs"), prefixes.Draw(t, "guards"), text.Draw(t, "version"), number.Draw(t, "revision"),
				rapid.Uint32().Draw(t, "format"),
				Membership{
					Address: text.Draw(t, "address"), Gossip: text.Draw(t, "gossip"), API: text.Draw(t, "api"), Zone: text.Draw(t, "zone"),
					Generation: number.Draw(t, "generation"), KeyHash: genHash().Draw(t, "key"), Serial: number.Draw(t, "serial"),
					Confirmed: number.Draw(t, "confirmed"), NotAfter: at.Draw(t, "end"), JoinedAt: at.Draw(t, "joined"),
					State: rapid.SampledFrom(append(nodeStates(), "")).Draw(t, "state"),
				},
			}}
		case 13:
			return anyAccess().Draw(t, "access")
		case 5:
			return PutGuard{anyPrefix.Draw(t, "prefix"), text.Draw(t, "vm"), text.Draw(t, "note")}
		case 6:
			return DeleteGuard{rapid.SampledFrom([]netip.Prefix{{}, netip.MustParsePrefix("10.0.0.0/8")}).Draw(t, "prefix"), text.Draw(t, "vm")}
		default:
			return Batch{rapid.SliceOfN(genAnyOp(true), 1, 4).Draw(t, "ops"), rapid.Bool().Draw(t, "atomic")}
		}
	})
}

func anyAccess() *rapid.Generator[Op] {
	text, number := rapid.String(), rapid.Uint64()
	hash := rapid.Custom(func(t *rapid.T) [32]byte { return [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hash")) })
	at := rapid.Custom(func(t *rapid.T) time.Time { return fromNanos(rapid.Int64Range(0, 1<<62).Draw(t, "nanos")) })
	scope := rapid.SampledFrom(append(Scopes(), ""))
	return rapid.Custom(func(t *rapid.T) Op {
		switch rapid.IntRange(0, 7).Draw(t, "op") {
		case 0:
			return CreateToken{text.Draw(t, "name"), scope.Draw(t, "scope"), hash.Draw(t, "hash"), at.Draw(t, "end")}
		case 1:
			return DeleteToken{text.Draw(t, "name"), number.Draw(t, "revision")}
		case 2:
			return PutUser{text.Draw(t, "name"), scope.Draw(t, "scope"), text.Draw(t, "password"), number.Draw(t, "revision")}
		case 3:
			return DeleteUser{text.Draw(t, "name"), number.Draw(t, "revision")}
		case 4:
			return CreateSession{
				text.Draw(t, "id"), hash.Draw(t, "hash"), text.Draw(t, "user"), number.Draw(t, "revision"), scope.Draw(t, "scope"),
				at.Draw(t, "end"), time.Duration(rapid.Int64().Draw(t, "idle")), hash.Draw(t, "device"),
			}
		case 5:
			return TouchSession{text.Draw(t, "id")}
		case 6:
			return EndSessions{text.Draw(t, "id"), text.Draw(t, "user")}
		}
		return RefusedLogins{number.Draw(t, "total"), rapid.SliceOfN(rapid.Custom(func(t *rapid.T) RefusedLogin {
			return RefusedLogin{text.Draw(t, "user"), text.Draw(t, "from"), number.Draw(t, "count")}
		}), 0, 3).Draw(t, "logins")}
	})
}

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{
		"198.51.100.7":             "198.51.100.7/32",
		"198.51.100.0/24":          "198.51.100.0/24",
		"2001:db8::1":              "2001:db8::1/128",
		"2001:DB8::/32":            "2001:db8::/32",
		"::ffff:198.51.100.7":      "198.51.100.7/32",
		"::ffff:198.51.100.0/120":  "198.51.100.0/24",
		"0.0.0.0/0":                "0.0.0.0/0", // its width is for Apply to refuse
		"198.51.100.7/32":          "198.51.100.7/32",
		"2001:db8:0:0:0:0:0:0/128": "2001:db8::/128",
	} {
		if got, refused := ParsePrefix("f", in); refused != nil || got.String() != want {
			t.Errorf("%s: got %s, %v", in, got, refused)
		}
	}
	for in, says := range map[string]string{
		"":                    "no IPv4 or IPv6",
		"web":                 "no IPv4 or IPv6",
		"198.51.100":          "no IPv4 or IPv6",
		"198.51.100.7/33":     "no IPv4 or IPv6",
		"198.51.100.07":       "no IPv4 or IPv6",
		" 198.51.100.7":       "no IPv4 or IPv6", //nolint:gocritic // the space is the case
		"198.51.100.7-9":      "no IPv4 or IPv6",
		"198.51.100.7/24":     "198.51.100.0/24",
		"2001:db8::1/64":      "2001:db8::/64",
		"fe80::1%eth0":        "zone",
		"fe80::%eth0/64":      "zone",
		"::ffff:10.0.0.0/90":  "IPv4-mapped",
		"::ffff:10.0.0.1/104": "10.0.0.0/8",
		"\x1b[2J":             `\x1b[2J`,
	} {
		_, refused := ParsePrefix("f", in)
		if refused == nil || refused.Code != CodeInvalid || refused.Field != "f" || !bytes.Contains([]byte(refused.Detail), []byte(says)) {
			t.Errorf("%q: got %v, want %q in it", in, refused, says)
		}
	}
}

func TestBlockIDs(t *testing.T) {
	for _, n := range []uint64{1, 17, 1<<64 - 1} {
		if got, ok := ParseBlockID(FormatBlockID(n)); !ok || got != n {
			t.Errorf("%d became %d", n, got)
		}
	}
	for _, id := range []string{"", "b", "b0", "b01", "17", "B17", "b-1", "b+1", "b1x", "b18446744073709551616"} {
		if n, ok := ParseBlockID(id); ok {
			t.Errorf("%q is read as %d", id, n)
		}
	}
}

func TestTargetString(t *testing.T) {
	for want, target := range map[string]Target{
		"v1": {VM: "v1"}, "198.51.100.7": {Prefix: prefix("198.51.100.7/32")},
		"2001:db8::/32": {Prefix: prefix("2001:db8::/32")}, "": {},
	} {
		if got := target.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
