package fsm

// What the audit says of the fleet's identity. Neither secrets nor what they were sealed or hashed to is in it.

func (j *auditJSON) membership(m *Membership) {
	j.text("address", m.Address)
	j.text("gossip", m.Gossip)
	j.text("api", m.API)
	j.text("zone", m.Zone)
	if m.KeyHash != [32]byte{} {
		j.hex("key", m.KeyHash[:])
	}
	j.number("serial", m.Serial)
	j.number("confirmed", m.Confirmed)
	j.time("not_after", m.NotAfter)
	j.number("generation", m.Generation)
	j.text("state", string(m.State))
	j.time("joined_at", m.JoinedAt)
	j.time("retired_at", m.RetiredAt)
}

func (j *auditJSON) fleet(k string, f *Fleet) {
	if f == nil {
		return
	}
	j.open(k, '{')
	j.text("id", f.ID)
	j.number("epoch", f.Epoch)
	j.time("epoch_at", f.Since.At)
	j.text("epoch_node", f.Since.Node)
	j.text("epoch_how", string(f.Since.How))
	j.number("epoch_index", f.Since.Index)
	j.number("epoch_settled", f.Since.Settled)
	j.open("cas", '[')
	for _, c := range f.CAs {
		j.open("", '{')
		j.text("id", c.ID)
		j.text("state", string(c.State))
		j.close('}')
	}
	j.close(']')
	j.open("gossip_keys", '[')
	for _, g := range f.GossipKeys {
		j.open("", '{')
		j.text("id", g.ID)
		j.text("state", string(g.State))
		j.close('}')
	}
	j.close(']')
	j.number("revision", f.Revision)
	j.close('}')
}

func (j *auditJSON) joinToken(k string, t *JoinToken) {
	if t == nil {
		return
	}
	j.open(k, '{')
	j.text("id", t.ID)
	j.text("node", t.Node)
	j.text("zone", t.Zone)
	j.flag("again", t.Again)
	j.time("created_at", t.CreatedAt)
	j.time("expires_at", t.ExpiresAt)
	j.text("actor", t.Actor)
	j.text("used_by", t.UsedBy)
	j.time("used_at", t.UsedAt)
	j.number("revision", t.Revision)
	j.close('}')
}

// askedForFleet is askedFor for ops on the fleet's identity. What nodes renew by themselves is not somebody's.
func askedForFleet(op Op) (action, object string, asked func(*auditJSON)) {
	switch op := op.(type) {
	case FormFleet:
		return "fleet.form", op.ID, nil
	case StartCA:
		return "fleet.start_ca", op.CA.ID, nil
	case AddGossipKey:
		return "fleet.rotate_gossip_key", op.Key.ID, nil
	case CreateJoinToken:
		return "join_token.create", op.ID, func(j *auditJSON) {
			j.open("asked", '{')
			j.text("node", op.Node)
			j.text("zone", op.Zone)
			j.flag("again", op.Again)
			j.duration("ttl", op.TTL)
			j.close('}')
		}
	case DeleteJoinToken:
		return "join_token.delete", op.ID, nil
	case AdmitNode:
		return "node.admit", op.Node.ID, func(j *auditJSON) {
			j.open("asked", '{')
			j.text("token", op.Token)
			j.text("address", op.Node.Address)
			j.text("zone", op.Node.Zone)
			j.close('}')
		}
	}
	return askedToLeave(op)
}

// askedToLeave is askedFor for ops on leaving and going on.
func askedToLeave(op Op) (action, object string, asked func(*auditJSON)) {
	switch op := op.(type) {
	case DrainNode:
		if op.Undo {
			return "node.undrain", op.ID, nil
		}
		return "node.drain", op.ID, nil
	case RetireNode:
		return "node.retire", op.ID, func(j *auditJSON) {
			j.open("asked", '{')
			j.flag("force", op.Force)
			j.close('}')
		}
	case BeginEpoch:
		return "fleet." + string(op.How), op.Fleet, nil
	case SettleEpoch:
		return "fleet.settle", "", nil
	}
	return "", "", nil
}
