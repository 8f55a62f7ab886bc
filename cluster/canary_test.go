package cluster

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// leaks names the secrets that are in a text: as they are, in hex, and in base64 wherever in it they begin.
func leaks(text []byte, secrets map[string][]byte) (found []string) {
	flat := strings.NewReplacer("\n", "", "\r", "", `\n`, "").Replace(string(text)) // PEM breaks lines
	for what, secret := range secrets {
		forms := [][]byte{secret, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret)))}
		for skip := range 3 { // at another place of a group of three the text is another one
			inner := secret[(3-skip)%3:]
			inner = inner[:len(inner)/3*3]
			forms = append(forms, []byte(base64.RawStdEncoding.EncodeToString(inner)), []byte(base64.RawURLEncoding.EncodeToString(inner)))
		}
		for _, form := range forms {
			if bytes.Contains(text, form) || strings.Contains(flat, string(form)) {
				found = append(found, what)
				break
			}
		}
	}
	return found
}

// TestKeysAreInTheirFilesOnly: through the life of a fleet the keys are in the files that docs/security.md names, and
// nowhere else on the nodes' disks or in their logs.
func TestKeysAreInTheirFilesOnly(t *testing.T) {
	var log lockedLog
	f, base := formed(t)
	first := f.nodes[0]
	f.stop()
	for _, n := range f.nodes {
		opts := n.opts
		n.opts = func(n *node) (Options, world) {
			o, _ := opts(n)
			o.Logger = log.logger()
			return o, &realWorld{opts: o}
		}
	}
	f.start().ready()
	secrets := map[string][]byte{}
	note := func() {
		state, _ := first.store.View().Fleet()
		seal := first.c.identity.SealKey()
		secrets["the seal key"] = seal
		for _, ca := range state.CAs {
			if len(ca.SealedKey) == 0 {
				continue // an authority that signs no more has none
			}
			key, err := pki.Open(seal, pki.AuthorityPurpose(state.ID, ca.ID), ca.SealedKey)
			if err != nil {
				t.Fatal(err)
			}
			secrets["the key of authority "+ca.ID] = key
		}
		keys, err := openKeys(state, seal)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range keys.Keys {
			secrets["gossip key "+g.ID] = g.Key
		}
		for _, n := range f.nodes {
			if n.alive() {
				secrets["the key of "+n.id] = n.c.identity.cur.Load().key.D.Bytes() //nolint:staticcheck // the bytes themselves
			}
		}
	}
	note()
	token := f.token()
	secrets["a join token"] = token.Secret()
	o := f.joinOptions(base, "n2", first, token)
	if _, err := Join(within(t, 30*time.Second), o); err != nil {
		t.Fatal(err)
	}
	f.add(Peer{ID: "n2", Address: o.Address, Gossip: o.Gossip}, base, func(_ string, o *Options) { o.Logger = log.logger() }).start()
	f.voters = 1
	f.ready()
	_, err := Join(within(t, 30*time.Second), f.joinOptions(base, "n2", first, token)) // refused
	if err == nil {
		t.Error("joined twice")
	}
	errs := []string{err.Error()}
	if err := f.nodes[1].c.Renew(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, rotate := range []func(context.Context, string, string) error{first.c.RotateGossipKey, first.c.RotateCA} {
		if err := rotate(within(t, 10*time.Second), "test", ""); err != nil {
			t.Fatal(err)
		}
		note()
	}
	feed := []byte("0123456789feed-key")
	secrets["the key of a feed"] = feed
	url := "https://feeds.example/drop.txt?key=" + string(feed)
	f.nodes[1].propose(fsm.Command{Actor: "test", Op: fsm.BeginList{Upload: "u", Name: "feed"}})
	f.nodes[1].propose(fsm.Command{Actor: "test", Key: "commit", Op: fsm.CommitList{Upload: "u"}})
	f.nodes[1].propose(fsm.Command{Actor: "test", Op: fsm.DescribeList{Name: "feed", Source: listSource(url)}})
	for _, bad := range []string{"gopher" + url, url + "\x7f", "https://" + string(feed) + "%zz/"} {
		if f.nodes[1].refusal(fsm.DescribeList{Name: "feed", Source: listSource(bad)}) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if l, _, _ := first.store.View().List("feed"); l == nil || l.Source.Sealed == "" {
		t.Errorf("the list is %+v", l)
	}
	if err := first.c.running.Load().raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	f.nodes[1].crash()
	first.propose(fsm.Command{Actor: "test", Op: fsm.RetireNode{ID: "n2", Force: true}})
	note()
	f.stop()

	// What is looked for can be found: in its own file, and in what a careless line would have leaked.
	own := map[string]int{}
	if got := leaks([]byte(base64.StdEncoding.EncodeToString(append([]byte("x"), secrets["the seal key"]...))), secrets); len(got) != 1 {
		t.Errorf("a leak on purpose was not found: %q", got)
	}
	err = filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, what := range leaks(text, secrets) {
			switch name := filepath.Base(path); {
			case name == sealFile && what == "the seal key", name == keyringFile && strings.HasPrefix(what, "gossip key"), name == keyFile && strings.HasPrefix(what, "the key of n"):
				own[name]++
			default:
				t.Errorf("%s has %s", path, what)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{sealFile, keyringFile, keyFile} {
		if own[name] == 0 {
			t.Errorf("no secret was found in %s: the search is blind", name)
		}
	}
	for _, what := range leaks([]byte(log.String()+strings.Join(errs, "\n")), secrets) {
		t.Errorf("a log or an error has %s", what)
	}
	if len(log.String()) < 1000 {
		t.Error("there is no log")
	}
}
