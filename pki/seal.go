package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// KeyBytes is the length of seal keys and gossip keys.
const KeyBytes = 32

const nonceBytes = 12 // of AES-GCM

// ErrSealed is the error of Open for what was not sealed with this key and for this purpose, or was changed.
var ErrSealed = errors.New("the sealed secret can't be opened: it was sealed with another key, for another purpose, or was changed")

// Seal encrypts a secret with AES-256-GCM. The purpose is not secret; Open needs the same, so that one sealed
// secret can't stand in the place of another. With random nonces a key serves for far more secrets than a
// fleet ever has (2^32).
func Seal(key []byte, purpose string, secret []byte) ([]byte, error) {
	nonce := make([]byte, nonceBytes)
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal a secret: %w", err)
	}
	return seal(key, nonce, purpose, secret)
}

// SealSame is Seal for a secret that may be sealed again and has to give the same then, as for a write that is repeated: who
// sees two sealed secrets of one purpose can tell whether they are the same, and nothing else. The nonce is made of purpose and
// secret with a key of its own, after the idea of RFC 5297 (SIV).
func SealSame(key []byte, purpose string, secret []byte) ([]byte, error) {
	sub, err := hkdf.Key(sha256.New, key, nil, "palisade nonces", KeyBytes)
	if err != nil {
		return nil, fmt.Errorf("derive the key of nonces: %w", err)
	}
	mac := hmac.New(sha256.New, sub)
	_ = binary.Write(mac, binary.BigEndian, uint64(len(purpose))) // a hash takes everything
	mac.Write([]byte(purpose))
	mac.Write(secret)
	return seal(key, mac.Sum(nil)[:nonceBytes], purpose, secret)
}

func seal(key, nonce []byte, purpose string, secret []byte) ([]byte, error) {
	aead, err := gcm(key)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nonce, nonce, secret, []byte(purpose)), nil
}

// Open decrypts what Seal made. Any other error than of a key of the wrong length is ErrSealed.
func Open(key []byte, purpose string, sealed []byte) ([]byte, error) {
	aead, err := gcm(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) < nonceBytes {
		return nil, ErrSealed
	}
	secret, err := aead.Open(nil, sealed[:nonceBytes], sealed[nonceBytes:], []byte(purpose))
	if err != nil {
		return nil, ErrSealed
	}
	return secret, nil
}

func gcm(key []byte) (cipher.AEAD, error) {
	if len(key) != KeyBytes {
		return nil, fmt.Errorf("a seal key has %d bytes, not %d", KeyBytes, len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make a cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make a cipher: %w", err)
	}
	return aead, nil
}

// AuthorityPurpose is the purpose under which an authority's key is sealed.
func AuthorityPurpose(fleet, id string) string { return "palisade authority " + fleet + " " + id }

// GossipPurpose is the purpose under which a gossip key is sealed.
func GossipPurpose(fleet, id string) string { return "palisade gossip key " + fleet + " " + id }

// SourcePurpose is the purpose under which the URL that a list is loaded from is sealed.
func SourcePurpose(fleet, list string) string { return "palisade list source " + fleet + " " + list }

// NewSecret makes a seal key or a gossip key.
func NewSecret() ([]byte, error) {
	b := make([]byte, KeyBytes)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return b, nil
}

// NewID makes the id of a fleet or of a gossip key: 16 hex digits.
func NewID() (string, error) {
	b := make([]byte, 8)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("make an id: %w", err)
	}
	return hex.EncodeToString(b), nil
}
