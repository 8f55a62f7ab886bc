package nft

import (
	"testing"
)

func TestSmoke(t *testing.T) {
	n := newNetNS(t)
	k := open(t, n)
	h := adopt(t, k)
	if h.Intact {
		t.Fatal("intact")
	}
	t.Log(n.run("nft", "list", "ruleset"))
	apply(t, k, 7, elements(tap("vnet0"), mac("52:54:00:00:00:01"), prefix("10.7.0.2"), prefix("fd07::2"), prefix("10.9.0.0/24"), prefix("fd09::/64")), nil)
	t.Log(n.run("nft", "list", "ruleset"))
	verify(t, k)
	g := generation(t, k)
	k2 := open(t, n)
	h = adopt(t, k2)
	t.Log(h, generation(t, k2) == g)
	apply(t, k, 8, nil, elements(prefix("10.9.0.0/24"), prefix("fd09::/64")))
	t.Log(n.run("nft", "list", "ruleset"))
	verify(t, k)
}
