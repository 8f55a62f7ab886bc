package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrEpoch is the error of VerifyEpoch for what no trusted authority has signed.
var ErrEpoch = errors.New("no trusted authority has signed for this epoch")

// SignEpoch signs that a fleet goes on under an epoch, from a node. Members give up what they hold of the epochs before
// for such a signature; a certificate of a node is not enough.
func (a *Authority) SignEpoch(fleet string, epoch uint64, node string) ([]byte, error) {
	hash := epochHash(fleet, epoch, node)
	signature, err := ecdsa.SignASN1(rand.Reader, a.key, hash[:])
	if err != nil {
		return nil, fmt.Errorf("sign an epoch: %w", err)
	}
	return signature, nil
}

// VerifyEpoch checks a signature of SignEpoch by any trusted authority.
func (t Trust) VerifyEpoch(epoch uint64, node string, signature []byte) error {
	hash := epochHash(t.Fleet, epoch, node)
	for _, c := range t.Authorities {
		if key, ok := c.PublicKey.(*ecdsa.PublicKey); ok && ecdsa.VerifyASN1(key, hash[:], signature) {
			return nil
		}
	}
	return ErrEpoch
}

// epochHash can't be that of a certificate, which begins with another byte; lengths keep the parts apart.
func epochHash(fleet string, epoch uint64, node string) [32]byte {
	text := []byte("palisade epoch 1\x00")
	for _, part := range []string{fleet, node} {
		text = binary.BigEndian.AppendUint64(text, uint64(len(part)))
		text = append(text, part...)
	}
	return sha256.Sum256(binary.BigEndian.AppendUint64(text, epoch))
}
