package pki

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"
)

func TestOnlyTheAuthorityBeginsAnEpoch(t *testing.T) {
	now := time.Now()
	authority := func(fleet string) (*Authority, *x509.Certificate) {
		a, err := NewAuthority(fleet, now)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(a.Certificate())
		if err != nil {
			t.Fatal(err)
		}
		return a, cert
	}
	a, cert := authority("f1")
	other, otherCert := authority("f1")
	trust := Trust{Fleet: "f1", Authorities: []*x509.Certificate{otherCert, cert}}
	good, err := a.SignEpoch("f1", 2, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := trust.VerifyEpoch(2, "n1", good); err != nil {
		t.Error(err)
	}
	foreign, _ := other.SignEpoch("f1", 2, "n1")
	for name, err := range map[string]error{
		"another epoch":        trust.VerifyEpoch(3, "n1", good),
		"another node":         trust.VerifyEpoch(2, "n2", good),
		"another fleet":        Trust{"f2", trust.Authorities}.VerifyEpoch(2, "n1", good),
		"moved boundary":       Trust{"f1n", trust.Authorities}.VerifyEpoch(2, "1", good),
		"an unknown authority": Trust{"f1", []*x509.Certificate{cert}}.VerifyEpoch(2, "n1", foreign),
		"nobody's":             trust.VerifyEpoch(2, "n1", nil),
		"changed":              trust.VerifyEpoch(2, "n1", append(good[:len(good)-1:len(good)-1], good[len(good)-1]^1)),
	} {
		if !errors.Is(err, ErrEpoch) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
