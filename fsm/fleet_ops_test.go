package fsm

import (
	"time"

	"pgregory.net/rapid"
)

func forming() FormFleet {
	return FormFleet{
		ID: "f1", CA: CA{ID: "c1", Certificate: []byte("der"), SealedKey: []byte("sealed")},
		GossipKey: GossipKey{ID: "g1", SealedKey: []byte("sealed")}, Node: admission("n1"),
	}
}

func admission(id string) Admission {
	return Admission{
		ID: id, Address: id + ":7701", Gossip: "192.0.2." + id[1:] + ":7702", KeyHash: [32]byte{id[1]},
		NotAfter: time.Unix(1_800_000_000, 0),
	}
}

func creating(id, node string) CreateJoinToken {
	return CreateJoinToken{ID: id, Hash: [32]byte{id[1]}, Node: node, TTL: 15 * time.Minute}
}

func admitting(token, node string) AdmitNode {
	return AdmitNode{Token: token, Hash: [32]byte{token[1]}, Node: admission(node)}
}

func nextCA(id string) CA {
	return CA{ID: id, Certificate: []byte("der"), Cross: []byte("cross"), SealedKey: []byte("sealed")}
}

func genFleetOp(last uint64) *rapid.Generator[Op] {
	node := rapid.SampledFrom([]string{"n1", "n2", "n3", "n4"})
	token := rapid.SampledFrom([]string{"t1", "t2", "t3"})
	zone := rapid.SampledFrom([]string{"", "", "z1", "z2"})
	serial := rapid.Uint64Range(0, last)
	key := rapid.SampledFrom([]string{"g1", "g2", "g3", "g4"})
	authority := rapid.SampledFrom([]string{"c1", "c2", "c3"})
	return rapid.Custom(func(t *rapid.T) Op {
		switch rapid.IntRange(0, 18).Draw(t, "fleet op") {
		case 14:
			return DrainNode{node.Draw(t, "node"), rapid.Bool().Draw(t, "undo")}
		case 15:
			return RetireNode{node.Draw(t, "node"), rapid.Bool().Draw(t, "force")}
		case 16:
			op := BeginEpoch{
				Fleet: rapid.SampledFrom([]string{"f1", "f1", "f1", "f2"}).Draw(t, "fleet"), Epoch: rapid.Uint64Range(1, 6).Draw(t, "epoch"),
				How: rapid.SampledFrom(epochHows()).Draw(t, "how"), Node: node.Draw(t, "node"),
			}
			if rapid.IntRange(0, 2).Draw(t, "moved") == 0 {
				op.Address = op.Node + ":7709"
			}
			if rapid.IntRange(0, 2).Draw(t, "new") == 0 {
				a := admission(node.Draw(t, "admitted"))
				op.Admit = &a
			}
			if rapid.IntRange(0, 2).Draw(t, "keys") == 0 {
				ca := nextCA(rapid.SampledFrom([]string{"c4", "c5"}).Draw(t, "ca"))
				op.CA, op.GossipKeys = &ca, []GossipKey{{ID: "g1", SealedKey: []byte("again"), State: GossipKeyPrimary}}
			}
			op.Retire = rapid.SliceOfN(node, 0, 2).Draw(t, "retire")
			return op
		case 17:
			return SettleEpoch{rapid.Uint64Range(0, 6).Draw(t, "epoch")}
		case 18, 0:
			return forming()
		case 1, 2:
			op := creating(token.Draw(t, "token"), rapid.SampledFrom([]string{"", "n2", "n3"}).Draw(t, "node"))
			op.Again = rapid.IntRange(0, 2).Draw(t, "again") == 0
			op.Zone, op.TTL = zone.Draw(t, "zone"), rapid.SampledFrom([]time.Duration{time.Second, time.Hour}).Draw(t, "ttl")
			return op
		case 3:
			return DeleteJoinToken{token.Draw(t, "token")}
		case 4, 5, 6:
			op := admitting(token.Draw(t, "token"), node.Draw(t, "node"))
			op.Node.Zone = zone.Draw(t, "zone")
			if rapid.IntRange(0, 5).Draw(t, "odd") == 0 {
				other := admission(node.Draw(t, "other"))
				switch rapid.IntRange(0, 2).Draw(t, "oddity") {
				case 0:
					op.Hash = [32]byte{1}
				case 1:
					op.Node.KeyHash = other.KeyHash
				default:
					op.Node.Gossip = other.Gossip
				}
			}
			return op
		case 7:
			return RenewNode{node.Draw(t, "node"), serial.Draw(t, "using"), [32]byte{rapid.Byte().Draw(t, "key"), 1}, time.Unix(1_800_000_000, 0)}
		case 8:
			return ConfirmNode{node.Draw(t, "node"), serial.Draw(t, "serial")}
		case 9:
			return StartCA{nextCA(authority.Draw(t, "ca"))}
		case 10:
			return FinishCA{authority.Draw(t, "ca")}
		case 11:
			if rapid.Bool().Draw(t, "remove") {
				return RemoveGossipKey{key.Draw(t, "gossip key")}
			}
			return AddGossipKey{GossipKey{ID: key.Draw(t, "gossip key"), SealedKey: []byte("sealed")}}
		case 12:
			return UseGossipKey{key.Draw(t, "gossip key")}
		default:
			n := Node{ID: node.Draw(t, "node"), Name: "name"}
			n.Generation = rapid.Uint64Range(0, 3).Draw(t, "generation")
			if rapid.Bool().Draw(t, "moved") {
				n.Address, n.API = n.ID+":7709", "127.0.0.1:8443"
			}
			n.State, n.Serial, n.KeyHash, n.Zone, n.Confirmed = NodeRetired, 99, [32]byte{77}, "forged", 99
			return PutNode{n}
		}
	})
}

func genHash() *rapid.Generator[[32]byte] {
	return rapid.Custom(func(t *rapid.T) [32]byte {
		return [32]byte{rapid.Byte().Draw(t, "first"), 31: rapid.Byte().Draw(t, "last")}
	})
}

// genAnyFleetOp has any values, also impossible ones.
func genAnyFleetOp() *rapid.Generator[Op] {
	text, number, blob := rapid.String(), rapid.Uint64(), rapid.SliceOfN(rapid.Byte(), 0, 5)
	at := rapid.Custom(func(t *rapid.T) time.Time { return fromNanos(rapid.Int64Range(0, 1<<62).Draw(t, "nanos")) })
	node := rapid.Custom(func(t *rapid.T) Admission {
		return Admission{
			text.Draw(t, "id"), text.Draw(t, "name"), text.Draw(t, "zone"), text.Draw(t, "address"), text.Draw(t, "gossip"),
			text.Draw(t, "api"), genHash().Draw(t, "key"), at.Draw(t, "end"), rapid.Uint32().Draw(t, "format"),
		}
	})
	ca := rapid.Custom(func(t *rapid.T) CA {
		return CA{
			text.Draw(t, "id"), blob.Draw(t, "der"), blob.Draw(t, "cross"), blob.Draw(t, "key"),
			rapid.SampledFrom(append(caStates(), "")).Draw(t, "state"), number.Draw(t, "index"),
		}
	})
	key := rapid.Custom(func(t *rapid.T) GossipKey {
		return GossipKey{
			text.Draw(t, "id"), blob.Draw(t, "key"), rapid.SampledFrom(append(gossipKeyStates(), "")).Draw(t, "state"), number.Draw(t, "index"),
		}
	})
	return rapid.Custom(func(t *rapid.T) Op {
		switch rapid.IntRange(0, 14).Draw(t, "fleet op") {
		case 11:
			return DrainNode{text.Draw(t, "id"), rapid.Bool().Draw(t, "undo")}
		case 12:
			return RetireNode{text.Draw(t, "id"), rapid.Bool().Draw(t, "force")}
		case 13:
			op := BeginEpoch{
				Fleet: text.Draw(t, "fleet"), Epoch: number.Draw(t, "epoch"), How: rapid.SampledFrom(epochHows()).Draw(t, "how"),
				Node: text.Draw(t, "node"), Address: text.Draw(t, "address"), Gossip: text.Draw(t, "gossip"), API: text.Draw(t, "api"),
				GossipKeys: rapid.SliceOfN(key, 0, 2).Draw(t, "keys"), Retire: rapid.SliceOfN(text, 0, 2).Draw(t, "retire"),
			}
			if rapid.Bool().Draw(t, "admits") {
				a := node.Draw(t, "node")
				op.Admit = &a
			}
			if rapid.Bool().Draw(t, "has a ca") {
				c := ca.Draw(t, "ca")
				op.CA = &c
			}
			return op
		case 14:
			return SettleEpoch{number.Draw(t, "epoch")}
		case 0:
			return FormFleet{text.Draw(t, "id"), ca.Draw(t, "ca"), key.Draw(t, "gossip key"), node.Draw(t, "node")}
		case 1:
			return CreateJoinToken{
				text.Draw(t, "id"), genHash().Draw(t, "hash"), text.Draw(t, "node"), text.Draw(t, "zone"),
				time.Duration(rapid.Int64().Draw(t, "ttl")), rapid.Bool().Draw(t, "again"),
			}
		case 2:
			return DeleteJoinToken{text.Draw(t, "id")}
		case 3:
			return AdmitNode{text.Draw(t, "token"), genHash().Draw(t, "hash"), node.Draw(t, "node")}
		case 4:
			return RenewNode{text.Draw(t, "id"), number.Draw(t, "using"), genHash().Draw(t, "key"), at.Draw(t, "end")}
		case 5:
			return ConfirmNode{text.Draw(t, "id"), number.Draw(t, "serial")}
		case 6:
			return StartCA{ca.Draw(t, "ca")}
		case 7:
			return FinishCA{text.Draw(t, "id")}
		case 8:
			return AddGossipKey{key.Draw(t, "gossip key")}
		case 9:
			return UseGossipKey{text.Draw(t, "id")}
		default:
			return RemoveGossipKey{text.Draw(t, "id")}
		}
	})
}
