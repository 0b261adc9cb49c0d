package security

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"math/big"
	"strings"
	"testing"

	"kvferry/core/reload"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// place is what payloads are for in these tests.
const place = "mooncake/blue/ram/node1"

func TestASignatureForAnotherPlaceIsRefused(t *testing.T) {
	e, payload := withSecrets(t, oldSecret), []byte("payload")
	signature, err := e.Sign(place, payload)
	require.NoError(t, err)
	_, err = e.Verify("mooncake/green/ram/node1", payload, signature, e.identity)
	require.ErrorContains(t, err, `signed for "mooncake/blue/ram/node1", and is found at "mooncake/green/ram/node1"`)
	moved := bytes.Replace(signature, []byte("/blue/"), []byte("/cyan/"), 1)
	_, err = e.Verify("mooncake/cyan/ram/node1", payload, moved, e.identity)
	require.ErrorIs(t, err, errForeign)
	_, err = e.Sign(strings.Repeat("x", 1<<16), payload)
	require.Error(t, err)

	former := bytes.Clone(signature)
	former[0] = 1
	_, err = e.Verify(place, payload, former, e.identity)
	require.ErrorContains(t, err, "the signature is of version 1, and 2 is known")
}

func TestASignatureSaysWhichEngineMadeThePayload(t *testing.T) {
	signer, verifier := withSecrets(t, newSecret, oldSecret), withSecrets(t, oldSecret)
	for _, payload := range [][]byte{nil, []byte("{}"), bytes.Repeat([]byte("descriptor"), 1<<16)} {
		signature, err := signer.Sign(place, payload)
		require.NoError(t, err)
		assert.LessOrEqual(t, len(signature), MaxSignature)
		peer, err := verifier.Verify(place, payload, signature, signer.identity)
		require.NoError(t, err)
		assert.Equal(t, signer.identity, peer.Identity)
	}
}

func TestASignatureOfAnotherEngineSecretOrPayloadIsRefused(t *testing.T) {
	signer, other, stranger := withSecrets(t, oldSecret), withSecrets(t, oldSecret), withSecrets(t, otherSecret)
	payload := []byte(`{"name":"10.0.0.2:15003"}`)
	signature, err := signer.Sign(place, payload)
	require.NoError(t, err)

	_, err = other.Verify(place, payload, signature, other.identity)
	require.ErrorContains(t, err, "it is signed by engine "+signer.identity)
	assert.Equal(t, status.RejectHandshake, status.Of(err, status.OK))
	_, err = other.Verify(place, payload[1:], signature, signer.identity)
	assert.ErrorIs(t, err, errForeign)
	_, err = other.Verify(place, payload, signature, "")
	assert.Error(t, err)
	_, err = stranger.Verify(place, payload, signature, signer.identity)
	assert.ErrorContains(t, err, "another cluster secret")
	assert.EqualValues(t, 3, other.Counters().Refused)
}

// A peer of the cluster can have others sign TLS transcripts; none may pass for a descriptor.
func TestASignatureOfTLSIsNoneOfADescriptor(t *testing.T) {
	e := withSecrets(t, oldSecret)
	key := e.files.Current().own().PrivateKey.(ed25519.PrivateKey)
	for _, begin := range []string{strings.Repeat(" ", 64) + "TLS 1.3, server CertificateVerify\x00", "", strings.Repeat(" ", 32)} {
		payload := []byte("payload")
		genuine, err := e.Sign(place, payload)
		require.NoError(t, err)
		forged := genuine[:len(genuine)-ed25519.SignatureSize]
		forged = append(forged, ed25519.Sign(key, append([]byte(begin+e.identity), payload...))...)
		_, err = e.Verify(place, payload, forged, e.identity)
		assert.ErrorIs(t, err, errForeign)
	}
}

func TestEverySignatureThatDiffersInOneBitIsRefused(t *testing.T) {
	e := withSecrets(t, oldSecret)
	payload := []byte("payload")
	signature, err := e.Sign(place, payload)
	require.NoError(t, err)
	for i := range signature {
		for bit := range 8 {
			changed := bytes.Clone(signature)
			changed[i] ^= 1 << bit
			_, err := e.Verify(place, payload, changed, e.identity)
			assert.Error(t, err, "byte %d, bit %d", i, bit)
		}
		_, err := e.Verify(place, payload, signature[:i], e.identity)
		assert.Error(t, err, "the first %d bytes", i)
	}
	_, err = e.Verify(place, payload, append(bytes.Clone(signature), 0), e.identity)
	assert.ErrorIs(t, err, errMalformed)
	_, err = e.Verify(place, payload, make([]byte, MaxSignature+1), e.identity)
	assert.ErrorIs(t, err, errMalformed)
}

func TestPayloadsDifferWhereverTheirBytesDo(t *testing.T) {
	e := withSecrets(t, oldSecret)
	payload := make([]byte, 4096)
	_, _ = rand.Read(payload)
	signature, err := e.Sign(place, payload)
	require.NoError(t, err)
	for range 200 {
		at, err := rand.Int(rand.Reader, big.NewInt(int64(len(payload))))
		require.NoError(t, err)
		changed := bytes.Clone(payload)
		changed[at.Int64()] ^= 0x10
		_, err = e.Verify(place, changed, signature, e.identity)
		assert.ErrorIs(t, err, errForeign)
	}
}

func TestASignatureIsMadeAgainAfterTheSecretsHaveChanged(t *testing.T) {
	path := secretFile(t, oldSecret)
	signer, verifier := newEngine(t, Settings{SecretFile: path}), withSecrets(t, newSecret)
	before := signer.Generation()
	signature, err := signer.Sign(place, []byte("payload"))
	require.NoError(t, err)
	_, err = verifier.Verify(place, []byte("payload"), signature, signer.identity)
	require.Error(t, err)
	write(t, path, newSecret)
	assert.Greater(t, signer.Generation(), before)
	signature, err = signer.Sign(place, []byte("payload"))
	require.NoError(t, err)
	_, err = verifier.Verify(place, []byte("payload"), signature, signer.identity)
	assert.NoError(t, err)
}

func FuzzVerify(f *testing.F) {
	e := withSecrets(f, oldSecret)
	e.files.Interval = reload.CheckInterval
	payload := []byte(`{"name":"10.0.0.2:15003"}`)
	signature, err := e.Sign(place, payload)
	require.NoError(f, err)
	f.Add(payload, signature)
	f.Add(payload[1:], signature)
	f.Add(payload, append(bytes.Clone(signature), signature...))
	f.Add([]byte{}, []byte{1, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p, s []byte) {
		peer, err := e.Verify(place, p, s, e.identity)
		if err == nil {
			assert.Equal(t, payload, p)
			assert.Equal(t, e.identity, peer.Identity)
		}
	})
}
