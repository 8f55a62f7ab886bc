package backup

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"
)

// MaxRecipients bounds for how many one backup is encrypted.
const MaxRecipients = 16

// minPassphrase is the fewest characters of a passphrase. scrypt slows guessing down, but not for a short one.
const minPassphrase = 16

// Recipients are who can read a backup.
type Recipients struct{ list []age.Recipient }

// ParseRecipients reads age recipients ("age1…"). Errors name the one that is wrong.
func ParseRecipients(texts []string) (Recipients, error) {
	var out Recipients
	switch {
	case len(texts) == 0:
		return out, errors.New("a backup needs a recipient")
	case len(texts) > MaxRecipients:
		return out, fmt.Errorf("%d recipients are too many, %d are allowed", len(texts), MaxRecipients)
	}
	for _, text := range texts {
		got, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil || len(got) != 1 {
			return Recipients{}, fmt.Errorf("%.80q is no age recipient; one begins with age1 and is made by age-keygen", text)
		}
		out.list = append(out.list, got[0])
	}
	return out, nil
}

// ForPassphrase makes a backup readable with a passphrase. A trailing line break is no part of it.
func ForPassphrase(text []byte) (Recipients, error) {
	pass := passphrase(text)
	if len(pass) < minPassphrase {
		return Recipients{}, fmt.Errorf("the passphrase has %d bytes; who has the file can guess a short one, take %d or more", len(pass), minPassphrase)
	}
	r, err := age.NewScryptRecipient(pass)
	if err != nil {
		return Recipients{}, errors.New("the passphrase can't be used")
	}
	return Recipients{[]age.Recipient{r}}, nil
}

func passphrase(text []byte) string { return string(bytes.TrimRight(text, "\r\n")) }

// Key opens backups.
type Key struct{ list []age.Identity }

// ParseKey reads a file of age identities ("AGE-SECRET-KEY-1…"), as age-keygen writes it.
func ParseKey(text []byte) (Key, error) {
	ids, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		return Key{}, errors.New("this is no file of age identities; age-keygen makes one") // the error could quote it
	}
	return Key{ids}, nil
}

// FromPassphrase is the key of a backup that was made ForPassphrase. A wrong passphrase, a short one too, is told by Read: it
// does not open the backup.
func FromPassphrase(text []byte) (Key, error) {
	id, err := age.NewScryptIdentity(passphrase(text))
	if err != nil {
		return Key{}, errors.New("the passphrase is empty")
	}
	return Key{[]age.Identity{id}}, nil
}

// Courier is a key for one way: a node encrypts a backup for it, and who asked for the backup reads, checks and encrypts it
// anew. So a node is never told a passphrase, and nothing travels that others could read.
type Courier struct{ id *age.X25519Identity }

// NewCourier makes a key that is in memory alone.
func NewCourier() (Courier, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return Courier{}, fmt.Errorf("make a key: %w", err)
	}
	return Courier{id}, nil
}

// Recipient is what the node is told.
func (c Courier) Recipient() string { return c.id.Recipient().String() }

// Key opens what was written for the courier.
func (c Courier) Key() Key { return Key{[]age.Identity{c.id}} }
