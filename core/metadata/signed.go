package metadata

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"

	"kvferry/core/security"
	"kvferry/core/status"
)

// Entries of a central store are signed where security is on: whoever can write the store could otherwise have KV cache and
// notifications sent elsewhere. The signature is the last key of the JSON object, which Mooncake ignores. What is signed is the
// object without it, and the key of the store, which has the cluster's ID and the engine's name. So a reader checks the bytes that
// it is about to parse, and no form of JSON has to be agreed on. An entry of another cluster or engine is refused.
//
// A signature does not say when it was made: whoever can write the store can put a former entry back. Its metadata_version is
// older, which a reader refuses that has seen the later one. Any other reader finds out when it connects: another engine answers
// than the one that the entry names, or none (core.Engine.notify, and the hello of data connections).
const signatureKey = `,"kvferry_signature":"`

// signatureRoom is how long the key and its value are at most, in bytes.
const signatureRoom = len(signatureKey) + len(`"}`) + (security.MaxSignature+2)/3*4

// sign adds the signature to the JSON of an entry that is about to be written under a key.
func sign(key string, encoded []byte, by *security.Policy) ([]byte, error) {
	signature, err := by.Sign(key, encoded)
	if err != nil {
		return nil, err
	}
	signed := append(bytes.TrimSuffix(slices.Clone(encoded), []byte("}")), signatureKey...)
	signed = base64.StdEncoding.AppendEncode(signed, signature)
	return append(signed, `"}`...), nil
}

// cutSignature takes the signature off the JSON of an entry; signed is false where there is none.
func cutSignature(value []byte) (payload, signature []byte, signed bool, err error) {
	at := bytes.LastIndex(value, []byte(signatureKey))
	if at < 0 {
		return value, nil, false, nil
	}
	encoded, complete := bytes.CutSuffix(value[at+len(signatureKey):], []byte(`"}`))
	if signature, err = base64.StdEncoding.AppendDecode(nil, encoded); err != nil || !complete {
		return nil, nil, true, status.Errorf(status.RejectHandshake, "its signature is no base64, or not at the end")
	}
	return append(slices.Clone(value[:at]), '}'), signature, true, nil
}

// parseSigned reads the descriptor of a segment that was found under a key, and checks who has written it as far as the mode
// demands that.
func parseSigned(key string, value []byte, segment string, by *security.Policy) (*Descriptor, error) {
	if by.Mode() == security.Off {
		return ParseDescriptor(value)
	}
	payload, signature, signed, err := cutSignature(value)
	if err != nil {
		return nil, err
	}
	d, err := ParseDescriptor(payload)
	if err != nil {
		return nil, err
	}
	if !signed {
		return d, checkUnsigned(d, segment, by)
	}
	if _, err := by.Verify(key, payload, signature, d.Identity); err != nil {
		return nil, err
	}
	by.Note(knownSegment(segment))
	return d, nil
}

// checkUnsigned refuses a descriptor that has to be signed: with the mode require every one has, and with prefer that of an engine
// that speaks TLS, or was signed before.
func checkUnsigned(d *Descriptor, segment string, by *security.Policy) error {
	switch {
	case by.Mode() == security.Require:
		return status.Errorf(status.RejectHandshake,
			"it is not signed, which KVFERRY_SECURITY=require demands: its engine is no kvferry engine, has no secret or certificate, or has not written it")
	case d.TLS > 0:
		return status.Errorf(status.RejectHandshake, "it is not signed, and announces TLS: its engine has not written it")
	case by.Knows(knownSegment(segment)):
		return status.Errorf(status.RejectHandshake, "it is not signed, and a former one was")
	}
	return nil
}

// signMeta gives the value of an rpc_meta key, signed where security is on.
func signMeta(key string, m rpcMeta, by *security.Policy) ([]byte, error) {
	if by.Mode() == security.Off {
		return mustEncode(m), nil
	}
	m.Identity = by.Identity()
	return sign(key, mustEncode(m), by)
}

// parseSignedMeta reads the value of a segment's rpc_meta key, and checks who has written it as far as the mode demands that.
func parseSignedMeta(key string, value []byte, segment string, by *security.Policy) (rpcMeta, error) {
	if by.Mode() == security.Off {
		return parseMeta(value)
	}
	payload, signature, signed, err := cutSignature(value)
	if err != nil {
		return rpcMeta{}, err
	}
	m, err := parseMeta(payload)
	switch {
	case err != nil:
		return m, err
	case signed:
		if _, err = by.Verify(key, payload, signature, m.Identity); err == nil {
			by.Note(knownSegment(segment))
		}
	case by.Mode() == security.Require:
		err = status.Errorf(status.RejectHandshake, "it is not signed, which KVFERRY_SECURITY=require demands")
	case by.Knows(knownSegment(segment)):
		err = status.Errorf(status.RejectHandshake, "it is not signed, and another entry of that engine was")
	}
	return m, err
}

// knownSegment is what the policy remembers a segment by of which an entry was signed.
func knownSegment(segment string) string { return "segment " + strings.TrimPrefix(segment, "ram/") }
