package nft

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The kernel counts what lists drop by address, in sets that the packets themselves fill: only a packet that is
// dropped costs more, and memory is needed for addresses that were met, not for those that are listed.
const (
	// hitsSize bounds the addresses of one look and family of tables that are counted at one time. Packets of more are
	// dropped, but not counted.
	hitsSize = 8192
	// hitsTimeout is how long an address is remembered after its last packet. Hits has to be called more often.
	hitsTimeout = time.Minute
)

// Hit is what lists have dropped of an address since Hits was called last.
type Hit struct {
	Address        netip.Addr
	Source         bool // packets from it; else packets to it
	Packets, Bytes uint64
}

// hitKey is one address in one of the sets.
type hitKey struct {
	family family
	look   match
	kind   kind
	key    key
}

// hitSet is the name of the set, and hitChain that of the chain, of what a look finds.
func hitSet(m match, k kind) string { return "hits_" + lookName(m, k) }

func hitChain(m match, k kind) string { return "hit_" + lookName(m, k) }

// hitRules count the address and drop the packet. In a set that is full there is no room, and the first rule ends.
func (c listChain) hitRules() [][]expr.Any {
	count := &expr.Dynset{SrcRegKey: unix.NFT_REG_1, SetName: hitSet(c.look, c.kind), Operation: unix.NFT_DYNSET_OP_UPDATE}
	drop := dropIn(c.family)
	return [][]expr.Any{append([]expr.Any{c.address(), count}, drop...), drop}
}

// hasHits says that the set of a look comes with this chain. Frames with tags are counted in the same sets.
func (c listChain) hasHits() bool { return c.hit && c.depth == outer }

const hitsFlags = unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT

func (w *listWriter) addHitSet(c listChain) {
	w.sent++
	b := base{kind: c.kind}
	name := hitSet(c.look, c.kind)
	a := appendString(nil, unix.NFTA_SET_TABLE, w.table)
	a = appendString(a, unix.NFTA_SET_NAME, name)
	a = appendUint32(a, unix.NFTA_SET_FLAGS, hitsFlags)
	a = appendUint32(a, unix.NFTA_SET_KEY_TYPE, b.keyType())
	a = appendUint32(a, unix.NFTA_SET_KEY_LEN, uint32(b.keyLen()))
	a = appendUint32(a, unix.NFTA_SET_ID, w.sent)
	a = appendUint64(a, unix.NFTA_SET_TIMEOUT, uint64(hitsTimeout.Milliseconds()))
	a, desc := openNest(a, unix.NFTA_SET_DESC)
	a = closeNest(appendUint32(a, unix.NFTA_SET_DESC_SIZE, hitsSize), desc)
	a, counter := openNest(a, attrSetExpr)
	a = appendString(a, unix.NFTA_EXPR_NAME, "counter")
	a, data := openNest(a, unix.NFTA_EXPR_DATA)
	a = closeNest(closeNest(a, data), counter)
	w.batch.add(unix.NFT_MSG_NEWSET, netlink.Create, c.family, fmt.Sprintf("add set %s %s %s", c.family, w.table, name), a)
}

// isHitSet says whether a set is what addHitSet makes.
func (c listChain) isHitSet(s *setState) bool {
	b := base{kind: c.kind}
	return s.flags == hitsFlags && s.keyType == b.keyType() && s.keyLen == uint32(b.keyLen()) && s.counter
}

// Hits returns what lists have dropped since it was called last, by address. After OpenLists that is what the kernel
// has counted for those that sent or got packets within the last minute before.
func (k *Lists) Hits(ctx context.Context) ([]Hit, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var hits []Hit
	if k.have != nil && k.ready {
		var err error
		if hits, err = k.hits(ctx); err != nil {
			return nil, fmt.Errorf("read what lists dropped: %w", k.failed(err))
		}
	}
	if k.devices == nil {
		return hits, nil
	}
	more, err := k.devices.tables.Hits(ctx)
	return append(hits, more...), err
}

func (k *Lists) hits(ctx context.Context) ([]Hit, error) {
	var hits []Hit
	counted := make(map[hitKey][2]uint64, len(k.counted))
	for _, c := range listChains(k.families) {
		if !c.hasHits() {
			continue
		}
		n := base{kind: c.kind}.keyLen()
		request := appendElementList(nil, k.opts.Table, hitSet(c.look, c.kind))
		err := k.wire.dump(ctx, unix.NFT_MSG_GETSETELEM, c.family, request, func(b []byte) {
			eachElement(b, func(e element) {
				at := hitKey{c.family, c.look, c.kind, e.key}
				was := k.counted[at]
				if counted[at] = e.counter; e.counter[0] < was[0] {
					was = [2]uint64{} // it was forgotten in between, and met again
				}
				if e.counter[0] == was[0] {
					return
				}
				addr, _ := netip.AddrFromSlice(e.key[:n])
				hits = append(hits, Hit{addr, c.look == source, e.counter[0] - was[0], e.counter[1] - was[1]})
			})
		})
		if err != nil {
			maps.Copy(k.counted, counted)
			return hits, err
		}
	}
	k.counted = counted
	return hits, nil
}
