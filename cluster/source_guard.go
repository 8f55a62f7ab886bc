package cluster

import (
	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

func encodeSourceReport(r *fsm.SourceReport) *peerpb.SourceReport {
	if r == nil {
		return nil
	}
	return &peerpb.SourceReport{Macs: r.MACs, Addresses: r.Addresses, Why: r.Why, Packets: r.Packets, Bytes: r.Bytes}
}

func decodeSourceReport(m *peerpb.SourceReport) *fsm.SourceReport {
	if m == nil {
		return nil
	}
	return &fsm.SourceReport{MACs: m.GetMacs(), Addresses: m.GetAddresses(), Why: m.GetWhy(), Packets: m.GetPackets(), Bytes: m.GetBytes()}
}
