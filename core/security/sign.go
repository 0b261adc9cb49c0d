package security

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"kvferry/core/status"
)

// A signature, version 2:
//
//	1 byte   version
//	1 byte   number of certificates, at least 1
//	         for each: 2 bytes length, big-endian, and the certificate in DER; the first has the key of the signature
//	2 bytes  length, big-endian, and the place that the payload is for
//	2 bytes  length, big-endian, and the signature; nothing follows
//
// What is signed is signedPrefix, the engine's identity in 32 hexadecimal digits, the place with its length, and the payload. The
// algorithm follows from the key: Ed25519, ECDSA with SHA-256, RSA-PSS with SHA-256 and a salt of 32 bytes. Version 1 had no place.

// MaxSignature is the longest signature that is made or accepted, in bytes.
const MaxSignature = 32 << 10

const signatureVersion = 2

// signedPrefix keeps these signatures and those of TLS apart: a TLS 1.3 signature is of 64 spaces and a text that begins with
// "TLS 1.3". Earlier versions sign 32 bytes that the peer chooses first, and 64 spaces are longer than these.
var signedPrefix = strings.Repeat(" ", 64) + "kvferry signed entry 2\x00"

var (
	errMalformed = errors.New("the signature is malformed")
	errForeign   = errors.New("the signature is not of this payload and this engine")
)

// Sign signs a payload as this engine's. A peer with the same policy learns from Verify that the engine with this identity
// has made the payload for this place, such as a key of a store. It does not learn when.
//
// It takes some 50 µs. An error carries status.Context; with Mode Off there is always one.
func (p *Policy) Sign(place string, payload []byte) ([]byte, error) {
	own, err := p.own()
	if err != nil {
		return nil, err
	}
	signer, ok := own.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, status.Errorf(status.Context, "the key of KVFERRY_TLS_KEY cannot sign")
	}
	if len(place) > math.MaxUint16 {
		return nil, status.Errorf(status.Context, "a place of %d bytes cannot be signed", len(place))
	}
	signature, err := sign(signer, signedText(p.identity, place, payload))
	if err != nil {
		return nil, status.Errorf(status.Context, "signing with the engine's key: %w", err)
	}
	b := []byte{signatureVersion, byte(len(own.Certificate))}
	for _, der := range own.Certificate {
		b = appendBlock(b, der)
	}
	b = appendBlock(b, []byte(place))
	b = appendBlock(b, signature)
	if len(b) > MaxSignature {
		return nil, status.Errorf(status.Context, "a signature with the certificates in KVFERRY_TLS_CERT has %d bytes, more than %d", len(b), MaxSignature)
	}
	return b, nil
}

// appendBlock appends the length of a block and the block. One that is too long makes MaxSignature fail.
func appendBlock(b, block []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(block))), block...)
}

// Verify checks that the engine with an identity has signed the payload for a place, and that this engine accepts it as a peer. With
// certificates from files it is believed that the owner of the certificate is the engine it says it is.
//
// An error carries status.RejectHandshake. It says what is wrong with "it": the caller names the payload.
func (p *Policy) Verify(place string, payload, signature []byte, identity string) (Peer, error) {
	if p.files == nil {
		return Peer{}, errOff
	}
	peer, err := p.verify(place, payload, signature, identity)
	if err != nil {
		p.refused.Add(1)
		p.failures.addNamed(Store, cmp.Or(kindOf(err), Broken))
		return Peer{}, &status.Error{Code: status.RejectHandshake, Err: err}
	}
	return peer, nil
}

func (p *Policy) verify(place string, payload, signature []byte, identity string) (Peer, error) {
	if !identityForm.MatchString(identity) {
		return Peer{}, fmt.Errorf("%.80q is no identity of an engine", identity)
	}
	certificates, signedFor, signed, err := parseSignature(signature)
	if err != nil {
		return Peer{}, err
	}
	peer, err := p.files.Current().check(certificates, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return Peer{}, err
	}
	if peer.Identity != "" && peer.Identity != identity {
		return Peer{}, fmt.Errorf("it is signed by engine %s, and not by engine %s", peer.Identity, identity)
	}
	if signedFor != place {
		return Peer{}, fmt.Errorf("it is signed for %.300q, and is found at %.300q: somebody has put it there", signedFor, place)
	}
	if err := checkSignature(certificates[0], signedText(identity, place, payload), signed); err != nil {
		return Peer{}, err
	}
	return peer, nil
}

func signedText(identity, place string, payload []byte) []byte {
	text := make([]byte, 0, len(signedPrefix)+len(identity)+2+len(place)+len(payload))
	text = append(append(text, signedPrefix...), identity...)
	return append(appendBlock(text, []byte(place)), payload...)
}

// parseSignature takes a signature apart, and believes nothing of it.
func parseSignature(b []byte) (certificates []*x509.Certificate, place string, signature []byte, err error) {
	if len(b) < 2 || len(b) > MaxSignature {
		return nil, "", nil, fmt.Errorf("%w: it has %d bytes", errMalformed, len(b))
	}
	if b[0] != signatureVersion {
		return nil, "", nil, fmt.Errorf("the signature is of version %d, and %d is known", b[0], signatureVersion)
	}
	count := int(b[1])
	if count < 1 || count > max(maxChain, maxSecrets) {
		return nil, "", nil, fmt.Errorf("%w: it has %d certificates", errMalformed, count)
	}
	b = b[2:]
	for range count {
		var der []byte
		if der, b, err = cutBlock(b); err != nil {
			return nil, "", nil, err
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, "", nil, fmt.Errorf("%w: %w", errMalformed, err)
		}
		certificates = append(certificates, certificate)
	}
	where, b, err := cutBlock(b)
	if err != nil {
		return nil, "", nil, err
	}
	signature, b, err = cutBlock(b)
	if err == nil && len(b) > 0 {
		err = fmt.Errorf("%w: %d bytes follow it", errMalformed, len(b))
	}
	return certificates, string(where), signature, err
}

func cutBlock(b []byte) (block, rest []byte, err error) {
	if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
		return nil, nil, fmt.Errorf("%w: it ends early", errMalformed)
	}
	end := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:end], b[end:], nil
}

var pss = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}

func sign(key crypto.Signer, text []byte) ([]byte, error) {
	switch key.Public().(type) {
	case ed25519.PublicKey:
		return key.Sign(rand.Reader, text, crypto.Hash(0))
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(text)
		return key.Sign(rand.Reader, sum[:], crypto.SHA256)
	case *rsa.PublicKey:
		sum := sha256.Sum256(text)
		return key.Sign(rand.Reader, sum[:], pss)
	}
	return nil, fmt.Errorf("a key of type %T is not supported", key.Public())
}

func checkSignature(c *x509.Certificate, text, signature []byte) error {
	sum := sha256.Sum256(text)
	good := false
	switch key := c.PublicKey.(type) {
	case ed25519.PublicKey:
		good = ed25519.Verify(key, text, signature)
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(key, sum[:], signature)
	case *rsa.PublicKey:
		good = rsa.VerifyPSS(key, crypto.SHA256, sum[:], signature, pss) == nil
	}
	if !good {
		return errForeign
	}
	return nil
}
