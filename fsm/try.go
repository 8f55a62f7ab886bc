package fsm

// Try returns what applying the command to this View would give, and the events it would cause. The
// View stays as it is; nothing is kept. The command's key is ignored. The block id and log index in the
// result are those that the next command would get.
func (v *View) Try(c Command) (Result, []Event) {
	c.Key = ""
	if refused := v.Readable(c.Op); refused != nil {
		return Result{Index: v.index, Err: refused}, nil
	}
	data, err := MarshalCommand(c)
	if err != nil {
		return Result{Index: v.index, Err: asRefusal(err)}, nil
	}
	a := applier{state: v.state, limits: defaultLimits()}
	// The arrays behind these are shared with the writer: a copy that is thrown away must not append
	// to them.
	a.events, a.order, a.eventsAfter = nil, nil, v.index
	a.audit = auditLines{head: v.audit.head}
	result, err := a.entry(Entry{Index: v.index + 1, Data: data})
	if err != nil {
		return Result{Index: v.index, Err: asRefusal(err)}, nil
	}
	return result, a.events
}

func asRefusal(err error) *Error {
	if refused, ok := err.(*Error); ok { //nolint:errorlint // it is returned as it is
		return refused
	}
	return &Error{CodeUnsupported, "", err.Error()}
}
