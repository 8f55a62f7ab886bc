package cluster

import (
	"errors"
	"fmt"
	"net/url"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// hidden stands for what is not shown of an URL, as in url.URL.Redacted.
const hidden = "xxxxx"

// shown is an URL without what may be a secret: a password, and the query, in which feeds expect their keys.
func shown(u *url.URL) string {
	s := *u
	if s.RawQuery != "" {
		s.RawQuery = hidden
	}
	return s.Redacted()
}

// sealSource returns an op with the URL of a list's source sealed, if there is a secret in it. Neither the log nor the state
// has it in clear: they are on every node, the key that opens it is on voters alone. An URL as it is shown, of the same list,
// keeps its secret. What can't be loaded from is refused here, since a refused command is in the log too.
func (c *Cluster) sealSource(op fsm.DescribeList) (sealed fsm.DescribeList, refused *fsm.Error, err error) {
	if op.Source == nil || *op.Source == (fsm.ListSource{}) || op.Source.Sealed != "" || c.identity == nil {
		return op, nil, nil
	}
	if refused := op.Source.Check(); refused != nil {
		return op, refused, nil
	}
	no := func(detail string) (fsm.DescribeList, *fsm.Error, error) {
		return op, &fsm.Error{Code: fsm.CodeInvalid, Field: "source.url", Detail: detail}, nil
	}
	u, err := url.Parse(op.Source.URL)
	if err != nil {
		return no("can't be read as an URL") // the error has the URL
	}
	password, _ := u.User.Password()
	switch {
	case password == "" && u.RawQuery == "":
		return op, nil, nil
	case password == hidden || u.RawQuery == hidden: // as it is shown
		l, _, ok := c.store.View().List(op.Name)
		if !ok || l.Source.Sealed == "" || l.Source.URL != op.Source.URL {
			return no("has " + hidden + " in place of its secret: give the whole URL")
		}
		op.Source = &fsm.ListSource{URL: l.Source.URL, Sealed: l.Source.Sealed, Interval: op.Source.Interval, MaxBytes: op.Source.MaxBytes}
		return op, nil, nil
	}
	f, formed := c.store.View().Fleet()
	key := c.identity.SealKey()
	if !formed || key == nil {
		return op, nil, errNoSeal
	}
	whole, err := pki.SealSame(key, pki.SourcePurpose(f.ID, op.Name), []byte(op.Source.URL))
	if err != nil {
		return op, nil, err
	}
	op.Source = &fsm.ListSource{URL: shown(u), Sealed: string(whole), Interval: op.Source.Interval, MaxBytes: op.Source.MaxBytes}
	return op, nil, nil
}

// SourceURL is the whole URL of a list's source, on a node with the seal key, as every leader is. It has secrets.
func (c *Cluster) SourceURL(list string, s fsm.ListSource) (string, error) {
	if s.Sealed == "" {
		return s.URL, nil
	}
	f, formed := c.store.View().Fleet()
	if !formed || c.identity == nil || c.identity.SealKey() == nil {
		return "", errNoSeal
	}
	whole, err := pki.Open(c.identity.SealKey(), pki.SourcePurpose(f.ID, list), []byte(s.Sealed))
	if err != nil {
		return "", fmt.Errorf("the URL of the source (set it again): %w", err)
	}
	if u, err := url.Parse(string(whole)); err != nil || shown(u) != s.URL {
		return "", errors.New("the sealed URL of the source is another one than is shown: set it again")
	}
	return string(whole), nil
}
