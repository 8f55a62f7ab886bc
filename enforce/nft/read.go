package nft

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// ruleset is what the kernel holds of our tables.
type ruleset map[family]*tableState

type tableState struct {
	exists bool
	flags  uint32
	chains map[string]*chainState
	sets   map[string]*setState
}

type chainState struct {
	sort    string // "filter" or "nat", "" if it is no base chain
	hook    uint32
	prio    int32
	policy  uint32
	devices []string // of a base chain of family netdev
	rules   [][]byte // as parseRule gives them
	// counter is the sum of those in the rules: packets, bytes.
	counter [2]uint64
}

type setState struct {
	keyType, keyLen uint32
	flags           uint32
	size            uint32
	counter         bool
	elements        []element
}

// readAttempts bounds how often reading starts again because someone changed a ruleset meanwhile.
const readAttempts = 4

// read returns what the kernel holds. It reads again if any program committed a transaction
// meanwhile; on a host where that happens all the time it settles for the last reading, which can
// only be wrong if the other program changed our own tables.
func (w *wire) read(ctx context.Context, families tables, table string) (ruleset, error) {
	return w.readParts(ctx, families, table, func(string) bool { return true })
}

// readParts is read, without the elements of the sets that are not wanted.
func (w *wire) readParts(ctx context.Context, families tables, table string, elements func(set string) bool) (ruleset, error) {
	before, err := w.generation(ctx)
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		r := make(ruleset)
		for _, f := range families {
			if r[f], err = w.readTable(ctx, f, table, elements); err != nil {
				return nil, fmt.Errorf("read table %s %s: %w", f, table, err)
			}
		}
		after, err := w.generation(ctx)
		if err != nil {
			return nil, err
		}
		if after == before || attempt == readAttempts {
			return r, nil
		}
		before = after
	}
}

// readBareTable reads a table without the elements of its sets.
func (w *wire) readBareTable(ctx context.Context, f family, table string) (*tableState, error) {
	t := &tableState{chains: make(map[string]*chainState), sets: make(map[string]*setState)}
	answer, found, err := w.ask(ctx, unix.NFT_MSG_GETTABLE, f, appendString(nil, unix.NFTA_TABLE_NAME, table))
	if err != nil || !found {
		return t, err
	}
	t.exists = true
	for typ, v := range attrs(answer) {
		if typ == unix.NFTA_TABLE_FLAGS {
			t.flags = attrUint32(v)
		}
	}
	for _, read := range []func(context.Context, family, string, *tableState) error{w.readChains, w.readRules, w.readSets} {
		if err := read(ctx, f, table, t); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (w *wire) readTable(ctx context.Context, f family, table string, elements func(set string) bool) (*tableState, error) {
	t, err := w.readBareTable(ctx, f, table)
	if err != nil {
		return nil, err
	}
	for name, s := range t.sets {
		if _, _, ours := parseName(name); !ours && name != markerSet || !elements(name) {
			continue
		}
		request := appendElementList(nil, table, name)
		err := w.dump(ctx, unix.NFT_MSG_GETSETELEM, f, request, func(b []byte) {
			eachElement(b, func(e element) { s.elements = append(s.elements, e) })
		})
		if err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	return t, nil
}

func (w *wire) readChains(ctx context.Context, f family, table string, t *tableState) error {
	request := appendString(nil, unix.NFTA_CHAIN_TABLE, table)
	return w.dump(ctx, unix.NFT_MSG_GETCHAIN, f, request, func(b []byte) {
		var of, name string
		var c chainState
		for typ, v := range attrs(b) {
			switch typ {
			case unix.NFTA_CHAIN_TABLE:
				of = attrText(v)
			case unix.NFTA_CHAIN_NAME:
				name = attrText(v)
			case unix.NFTA_CHAIN_TYPE:
				c.sort = attrText(v)
			case unix.NFTA_CHAIN_POLICY:
				c.policy = attrUint32(v)
			case unix.NFTA_CHAIN_HOOK:
				for typ, v := range attrs(v) {
					switch typ {
					case unix.NFTA_HOOK_HOOKNUM:
						c.hook = attrUint32(v)
					case unix.NFTA_HOOK_PRIORITY:
						c.prio = int32(attrUint32(v))
					case unix.NFTA_HOOK_DEV:
						c.devices = []string{attrText(v)}
					}
				}
			}
		}
		if of == table {
			t.chains[name] = &c
		}
	})
}

func (w *wire) readRules(ctx context.Context, f family, table string, t *tableState) error {
	return w.dumpRules(ctx, f, table, appendString(nil, unix.NFTA_RULE_TABLE, table), t)
}

// readChain returns the rules of one chain, none if there is no such chain.
func (w *wire) readChain(ctx context.Context, f family, table, chain string) (*chainState, error) {
	t := &tableState{chains: map[string]*chainState{chain: {}}}
	request := appendString(nil, unix.NFTA_RULE_TABLE, table)
	err := w.dumpRules(ctx, f, table, appendString(request, unix.NFTA_RULE_CHAIN, chain), t)
	return t.chains[chain], err
}

func (w *wire) dumpRules(ctx context.Context, f family, table string, request []byte, t *tableState) error {
	return w.dump(ctx, unix.NFT_MSG_GETRULE, f, request, func(b []byte) {
		var of, name string
		var rule []byte
		var counter [2]uint64
		for typ, v := range attrs(b) {
			switch typ {
			case unix.NFTA_RULE_TABLE:
				of = attrText(v)
			case unix.NFTA_RULE_CHAIN:
				name = attrText(v)
			case unix.NFTA_RULE_EXPRESSIONS:
				rule, counter = parseRule(f, v)
			}
		}
		if c := t.chains[name]; of == table && c != nil {
			c.rules = append(c.rules, rule)
			c.counter[0] += counter[0]
			c.counter[1] += counter[1]
		}
	})
}

func (w *wire) readSets(ctx context.Context, f family, table string, t *tableState) error {
	request := appendString(nil, unix.NFTA_SET_TABLE, table)
	return w.dump(ctx, unix.NFT_MSG_GETSET, f, request, func(b []byte) {
		var of, name string
		var s setState
		for typ, v := range attrs(b) {
			switch typ {
			case unix.NFTA_SET_TABLE:
				of = attrText(v)
			case unix.NFTA_SET_NAME:
				name = attrText(v)
			case unix.NFTA_SET_FLAGS:
				s.flags = attrUint32(v)
			case unix.NFTA_SET_KEY_TYPE:
				s.keyType = attrUint32(v)
			case unix.NFTA_SET_KEY_LEN:
				s.keyLen = attrUint32(v)
			case unix.NFTA_SET_DESC:
				for typ, v := range attrs(v) {
					if typ == unix.NFTA_SET_DESC_SIZE {
						s.size = attrUint32(v)
					}
				}
			case attrSetExpr:
				for typ, v := range attrs(v) {
					if typ == unix.NFTA_EXPR_NAME {
						s.counter = attrText(v) == "counter"
					}
				}
			}
		}
		if of == table {
			t.sets[name] = &s
		}
	})
}
