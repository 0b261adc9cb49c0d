package security

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"

	"kvferry/core/reload"
)

// From a secret to a certificate:
//
//  1. HKDF-SHA256 of the secret gives the seed of an Ed25519 key. So all engines with the secret have the same key, and
//     nobody else has.
//  2. That key is a certificate authority, the cluster's. Its certificate is never sent: each engine makes it for itself, and
//     compares only the name and the public key in it.
//  3. Each engine makes a key of its own, at random and only in memory, and signs a certificate for it with each secret of
//     its file. The certificate says the engine's identity.
//  4. An engine sends all its certificates. The first is what TLS has it prove the possession of; the others are of the
//     same key. The peer looks for one that a secret of its own file vouches for.
//
// Because of 4, a secret can be replaced in two steps, in any order of the engines: the new secret is put in front of the
// old one everywhere, and then the old one is taken out. Engines that have taken neither step, or one, or both, always
// share a secret with those that are one step away. The obvious alternative, one certificate and a certificate of one
// authority's key by the other, would let a thief of the old secret in for ever.
//
// It is sound that the certificates are valid for all time, and that no clock is asked: a certificate is worth nothing
// without the engine's key, which ends with the process. To withdraw trust is to remove the secret.
//
// A stranger who connects to an engine sees a signature by the cluster's key, and can then try secrets without asking
// anybody. So a secret must not be guessable: parseSecrets refuses those that a person would think of.

const (
	minSecret  = 32   // characters
	maxSecret  = 1024 // characters
	maxSecrets = 8
	// minDistinct is how many different characters a secret has at least. Thirty-two random hexadecimal digits have fewer once
	// in a million times.
	minDistinct = 8

	howToMakeOne = "`openssl rand -hex 32` makes one"

	// authorityInfo separates the key of the cluster's authority from whatever else may be derived from a secret one day.
	authorityInfo = "kvferry cluster authority 1"
	// authorityName begins the name of a cluster's authority. The cluster's ID follows.
	authorityName = "kvferry cluster "
	// identityScheme begins the URI that says an engine's identity.
	identityScheme = "kvferry:engine:"
)

// The certificates' validity, and a time within. The last one is how RFC 5280 says that a certificate does not expire.
var (
	validFrom  = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
	validUntil = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	anyTime    = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
)

// parseSecrets reads a secret file: a secret on each line. Empty lines, and those that begin with #, are left out, and so is
// white space around a secret. An error names the line and never what is in it.
func parseSecrets(content []byte) ([]string, error) {
	var secrets []string
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		secret := strings.Trim(line, " \t\r\n")
		if secret == "" || secret[0] == '#' || slices.Contains(secrets, secret) {
			continue
		}
		if err := checkSecret(secret); err != nil {
			return nil, fmt.Errorf("line %d %w", number, err)
		}
		secrets = append(secrets, secret)
	}
	switch {
	case len(secrets) == 0:
		return nil, errors.New("there is no secret in it: " + howToMakeOne)
	case len(secrets) > maxSecrets:
		return nil, fmt.Errorf("there are %d secrets in it, more than %d", len(secrets), maxSecrets)
	}
	return secrets, nil
}

// checkSecret refuses what is no secret or can be guessed.
func checkSecret(secret string) error {
	var distinct [256]bool
	count := 0
	for _, c := range []byte(secret) {
		if c <= ' ' || c > '~' {
			return errors.New("has a character that is not printable ASCII, or a space: " + howToMakeOne)
		}
		if !distinct[c] {
			distinct[c] = true
			count++
		}
	}
	switch {
	case len(secret) < minSecret:
		return fmt.Errorf("has a secret of %d characters, and %d are the least: %s", len(secret), minSecret, howToMakeOne)
	case len(secret) > maxSecret:
		return fmt.Errorf("has a secret of %d characters, and %d are the most", len(secret), maxSecret)
	case count < minDistinct:
		return fmt.Errorf("has a secret of %d different characters, which can be guessed: %s", count, howToMakeOne)
	}
	return nil
}

// authority is what a secret stands for.
type authority struct {
	id          string // of the cluster, for people: 16 hexadecimal digits that tell nothing of the secret
	key         ed25519.PrivateKey
	certificate *x509.Certificate
}

// authorityOf derives the authority from a secret. It is the same everywhere.
func authorityOf(secret string) (authority, error) {
	seed, err := hkdf.Key(sha256.New, []byte(secret), nil, authorityInfo, ed25519.SeedSize)
	if err != nil {
		return authority{}, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	public := key.Public().(ed25519.PublicKey)
	sum := sha256.Sum256(public)
	a := authority{id: hex.EncodeToString(sum[:8]), key: key}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: authorityName + a.id}, SubjectKeyId: sum[:20],
		NotBefore: validFrom, NotAfter: validUntil,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return authority{}, err
	}
	a.certificate, err = x509.ParseCertificate(der)
	return a, err
}

// vouch makes the certificate of an engine.
func (a authority) vouch(identity string, public ed25519.PublicKey) ([]byte, error) {
	var serial [16]byte
	_, _ = rand.Read(serial[:]) // never fails: see crypto/rand
	serial[0] |= 1
	serial[0] &= 0x7f // a serial number is positive
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]), Subject: pkix.Name{CommonName: "kvferry engine"},
		URIs:      []*url.URL{{Scheme: "kvferry", Opaque: "engine:" + identity}},
		NotBefore: validFrom, NotAfter: validUntil, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.certificate, public, a.key)
}

// cluster is the credentials of an engine that has a secret. Once made it has only public keys of authorities.
type cluster struct {
	certificate tls.Certificate
	accepted    *x509.CertPool
	ids         []string // of the accepted authorities; the first is of the first secret
}

// secretSource reads secrets for an engine, which has one key as long as it lives.
func secretSource(path, identity string, key ed25519.PrivateKey) source {
	return source{Files: []reload.File{{Setting: "KVFERRY_SECRET_FILE", Path: path, Private: true}}, Make: func(contents [][]byte) (credentials, error) {
		secrets, err := parseSecrets(contents[0])
		if err != nil {
			return nil, fmt.Errorf("KVFERRY_SECRET_FILE: %s: %w", path, err)
		}
		c, err := newCluster(secrets, identity, key)
		if err != nil {
			return nil, fmt.Errorf("KVFERRY_SECRET_FILE: %w", err)
		}
		return c, nil
	}}
}

func newCluster(secrets []string, identity string, key ed25519.PrivateKey) (*cluster, error) {
	c := &cluster{certificate: tls.Certificate{PrivateKey: key}, accepted: x509.NewCertPool()}
	for _, secret := range secrets {
		a, err := authorityOf(secret)
		if err != nil {
			return nil, err
		}
		der, err := a.vouch(identity, key.Public().(ed25519.PublicKey))
		if err != nil {
			return nil, err
		}
		c.certificate.Certificate = append(c.certificate.Certificate, der)
		c.accepted.AddCert(a.certificate)
		c.ids = append(c.ids, a.id)
	}
	return c, nil
}

func (c *cluster) own() *tls.Certificate { return &c.certificate }

func (c *cluster) String() string {
	if len(c.ids) == 1 {
		return "the cluster secret " + c.ids[0]
	}
	return fmt.Sprintf("the cluster secret %s, and accepting %s", c.ids[0], strings.Join(c.ids[1:], ", "))
}

// check looks for a certificate of the proven key that an accepted authority vouches for. Only that one is believed. No
// certificate vouches for another one: the pool of intermediate certificates stays empty.
func (c *cluster) check(certificates []*x509.Certificate, use x509.ExtKeyUsage) (Peer, error) {
	if len(certificates) > maxSecrets {
		return Peer{}, refuse(BadCertificate, nil, "presents %d certificates, more than %d", len(certificates), maxSecrets)
	}
	for _, certificate := range certificates {
		if !bytes.Equal(certificate.RawSubjectPublicKeyInfo, certificates[0].RawSubjectPublicKeyInfo) {
			continue
		}
		chains, err := certificate.Verify(x509.VerifyOptions{
			Roots: c.accepted, Intermediates: x509.NewCertPool(), CurrentTime: anyTime, KeyUsages: []x509.ExtKeyUsage{use},
		})
		if err != nil {
			continue
		}
		identity, err := identityIn(certificate)
		if err != nil {
			return Peer{}, err
		}
		vouching := chains[0][len(chains[0])-1].Subject.CommonName
		return Peer{Identity: identity, Older: vouching != authorityName+c.ids[0]}, nil
	}
	return Peer{}, c.refusal(certificates)
}

// refusal says why no certificate was accepted.
func (c *cluster) refusal(certificates []*x509.Certificate) error {
	if len(certificates) == 0 {
		return refuse(NoCertificate, nil, "presents no certificate")
	}
	var ids []string
	for _, certificate := range certificates {
		if id, ok := strings.CutPrefix(certificate.Issuer.CommonName, authorityName); ok {
			ids = append(ids, fmt.Sprintf("%.16q", id))
		}
	}
	accepted := strings.Join(c.ids, ", ")
	if len(ids) == 0 {
		return refuse(OtherSecret, nil, "presents a certificate that no cluster secret has made (of %.80q): here KVFERRY_SECRET_FILE is used (%s), "+
			"there perhaps KVFERRY_TLS_CERT", certificates[0].Issuer.String(), accepted)
	}
	return refuse(OtherSecret, nil, "presents a certificate of another cluster secret: %s, where %s is accepted", strings.Join(ids, ", "), accepted)
}

// identityIn is the engine's identity in its certificate.
func identityIn(certificate *x509.Certificate) (string, error) {
	if len(certificate.URIs) == 1 {
		if identity, ok := strings.CutPrefix(certificate.URIs[0].String(), identityScheme); ok && identityForm.MatchString(identity) {
			return identity, nil
		}
	}
	return "", refuse(BadCertificate, nil, "presents a certificate of this cluster's secret that does not say which engine it is")
}
