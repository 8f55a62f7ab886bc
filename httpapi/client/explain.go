package client

import (
	"context"
	"net/url"
	"strconv"

	"github.com/palisade/palisade/httpapi/wire"
)

// The documents of explain.
//
//nolint:revive // wire documents each of them
type (
	Explanation   = wire.Explanation
	ExplainedHold = wire.ExplainedHold
)

// Packet is what Explain is asked about; what is empty is unknown.
type Packet struct {
	Src, Dst      string // addresses
	Protocol      string // "tcp", "udp", "icmp", or a number
	Port, SrcPort uint16
	Node          string // ask only this node
}

// Explain says what each node does with a packet that comes by, and why.
func (c *Client) Explain(ctx context.Context, p Packet) (Explanation, error) {
	q := url.Values{}
	set(q, "src", p.Src)
	set(q, "dst", p.Dst)
	set(q, "proto", p.Protocol)
	set(q, "node", p.Node)
	if p.Port != 0 {
		q.Set("port", strconv.Itoa(int(p.Port)))
	}
	if p.SrcPort != 0 {
		q.Set("sport", strconv.Itoa(int(p.SrcPort)))
	}
	return get[Explanation](ctx, c, "/v1/explain", q)
}

// ExplainVM lists what holds a VM, by id or unique name.
func (c *Client) ExplainVM(ctx context.Context, vm string) (Explanation, error) {
	return get[Explanation](ctx, c, "/v1/explain", url.Values{"vm": {vm}})
}
