package metadata

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"

	"kvferry/core/security"
	"kvferry/core/status"
)

// Descriptors in a central store are signed where security is on: whoever can write the store could otherwise have KV cache sent
// elsewhere. The signature is the last key of the JSON object, which Mooncake ignores. What is signed is the object without it. So
// a reader checks the bytes that it is about to parse, and no form of JSON has to be agreed on.
const signatureKey = `,"kvferry_signature":"`

// signatureRoom is how long the key and its value are at most, in bytes.
const signatureRoom = len(signatureKey) + len(`"}`) + (security.MaxSignature+2)/3*4

// sign adds the signature to the JSON of a descriptor.
func sign(encoded []byte, by *security.Policy) ([]byte, error) {
	signature, err := by.Sign(encoded)
	if err != nil {
		return nil, err
	}
	signed := append(bytes.TrimSuffix(slices.Clone(encoded), []byte("}")), signatureKey...)
	signed = base64.StdEncoding.AppendEncode(signed, signature)
	return append(signed, `"}`...), nil
}

// cutSignature takes the signature off the JSON of a descriptor; signed is false where there is none.
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

// parseSigned reads the descriptor of a segment, and checks who has written it as far as the mode demands that.
func parseSigned(value []byte, segment string, by *security.Policy) (*Descriptor, error) {
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
	if _, err := by.Verify(payload, signature, d.Identity); err != nil {
		return nil, err
	}
	if d.Name != strings.TrimPrefix(segment, "ram/") {
		return nil, status.Errorf(status.RejectHandshake, "it is signed by engine %s for the name %.80q", d.Identity, d.Name)
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

// knownSegment is what the policy remembers a segment by whose descriptor was signed.
func knownSegment(segment string) string { return "segment " + strings.TrimPrefix(segment, "ram/") }
