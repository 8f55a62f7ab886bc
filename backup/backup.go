// Package backup reads and writes backups of a fleet: one file, encrypted with age, that holds the state at one
// log index and the seal key that opens the secrets in it. Inside of the encryption, which also tells
// whether the file is whole, are a line that names the format, a line of JSON (Header), a line of JSON with the
// secrets, and a snapshot of the state.
package backup

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"filippo.io/age"

	"github.com/palisade/palisade/fsm"
)

const (
	magic   = "PALISADE-BACKUP"
	version = 1
	// maxLine bounds the lines before the state.
	maxLine = 1 << 16
)

// Header says what a backup is of.
type Header struct {
	Fleet string `json:"fleet"`
	Epoch uint64 `json:"epoch"`
	// Index is the log index of the state, Hash its hash there.
	Index uint64    `json:"index"`
	Hash  string    `json:"state_hash"`
	At    time.Time `json:"at"`   // by the clock of Node
	Node  string    `json:"node"` // that made it
	Build string    `json:"version"`
}

// secrets are in a backup only because all of it is encrypted.
type secrets struct {
	SealKey []byte `json:"seal_key"`
}

// Content is what a backup was found to hold. Its Store is no part of any fleet.
type Content struct {
	Header
	SealKey []byte
	Store   *fsm.Store
}

// Write streams a backup of a state to w, for the recipients. h.Index and h.Hash are set here. It blocks as w does; an
// error leaves something in w that is no backup, and can be read by nobody as one.
func Write(w io.Writer, to Recipients, h Header, sealKey []byte, view *fsm.View) error {
	h.Index, h.Hash = view.Index(), view.Hash()
	out, err := age.Encrypt(w, to.list...)
	if err != nil {
		return fmt.Errorf("encrypt the backup: %w", err)
	}
	if _, err := fmt.Fprintf(out, "%s %d\n", magic, version); err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	if err := errors.Join(enc.Encode(h), enc.Encode(secrets{sealKey})); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if err := view.WriteSnapshot(out); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	return out.Close()
}

// Read reads a whole backup and returns it only if all of it is as it was written.
func Read(r io.Reader, key Key) (*Content, error) {
	plain, err := age.Decrypt(r, key.list...)
	if err != nil {
		if _, none := errors.AsType[*age.NoIdentityMatchError](err); none {
			return nil, errors.New("the backup is encrypted for another key or with another passphrase")
		}
		return nil, fmt.Errorf("this is no backup, or it is damaged: %w", err)
	}
	c, err := read(plain)
	if err != nil {
		return nil, fmt.Errorf("the backup can't be used: %w", err)
	}
	return c, nil
}

func read(plain io.Reader) (*Content, error) {
	in := bufio.NewReaderSize(plain, maxLine)
	first, err := line(in)
	if err != nil {
		return nil, err
	}
	var format int
	if n, err := fmt.Sscanf(string(first), magic+" %d", &format); n != 1 || err != nil {
		return nil, errors.New("it does not begin as a backup does")
	}
	if format != version {
		return nil, fmt.Errorf("it has the format %d, this version of palisade reads %d", format, version)
	}
	c := &Content{Store: fsm.NewStore()}
	if err := jsonLine(in, &c.Header); err != nil {
		return nil, fmt.Errorf("its header: %w", err)
	}
	var s secrets
	if err := jsonLine(in, &s); err != nil {
		return nil, errors.New("its secrets can't be read") // the error could quote them
	}
	c.SealKey = s.SealKey
	if err := c.Store.Restore(in); err != nil {
		return nil, fmt.Errorf("its state: %w", err)
	}
	// The end of the encryption says that nothing was cut off.
	switch n, err := io.Copy(io.Discard, in); {
	case err != nil:
		return nil, err
	case n != 0:
		return nil, fmt.Errorf("%d bytes follow its state", n)
	}
	view := c.Store.View()
	if view.Index() != c.Index || view.Hash() != c.Hash {
		return nil, fmt.Errorf("its state is that of index %d, hash %.16s; its header says %d, %.16s", view.Index(), view.Hash(), c.Index, c.Hash)
	}
	return c, nil
}

func line(in *bufio.Reader) ([]byte, error) {
	b, err := in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, errors.New("a line is too long")
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	return bytes.TrimSuffix(b, []byte("\n")), nil
}

func jsonLine(in *bufio.Reader, into any) error {
	b, err := line(in)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// Pass reads a backup that was written for a Courier, and writes it for the recipients who are to keep it. It
// returns what was passed on only if that is a whole backup. Otherwise what is in w must be thrown away.
func Pass(w io.Writer, to Recipients, r io.Reader, from Courier) (*Content, error) {
	plain, err := age.Decrypt(r, from.id)
	if err != nil {
		return nil, fmt.Errorf("what came is no backup: %w", err)
	}
	out, err := age.Encrypt(w, to.list...)
	if err != nil {
		return nil, fmt.Errorf("encrypt the backup: %w", err)
	}
	c, err := read(io.TeeReader(plain, out))
	if err != nil {
		return nil, fmt.Errorf("what came is no whole backup: %w", err)
	}
	return c, out.Close()
}
