package sockio

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"io"
	"strings"
	"testing"

	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// recordMaker is the sending side of TLS 1.3 with AES-128-GCM: it makes records that crypto/tls never makes.
type recordMaker struct {
	t      *testing.T
	secret []byte
	number uint64
}

const (
	handshakeType = 22
	dataType      = 23
)

// expand is HKDF-Expand-Label of RFC 8446 without a context.
func (m *recordMaker) expand(label string, length int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(length))
	info = append(info, byte(len("tls13 "+label)))
	info = append(append(info, "tls13 "+label...), 0)
	out, err := hkdf.Expand(sha256.New, m.secret, string(info), length)
	require.NoError(m.t, err)
	return out
}

// record has content of a type, and zeros behind it as padding.
func (m *recordMaker) record(kind byte, content []byte, padding int) []byte {
	block, err := aes.NewCipher(m.expand("key", 16))
	require.NoError(m.t, err)
	aead, err := cipher.NewGCM(block)
	require.NoError(m.t, err)
	nonce := m.expand("iv", 12)
	for i, b := range binary.BigEndian.AppendUint64(nil, m.number) {
		nonce[4+i] ^= b
	}
	m.number++
	inner := append(append(bytes.Clone(content), kind), make([]byte, padding)...)
	header := binary.BigEndian.AppendUint16([]byte{dataType, 3, 3}, uint16(len(inner)+aead.Overhead()))
	return aead.Seal(header, nonce, inner, header)
}

// keyUpdate is the message, in as many records as it is to have, that has the peer change its key, too.
func (m *recordMaker) keyUpdate(parts int) (records []byte) {
	message := []byte{24, 0, 0, 1, 1}
	for i := range parts {
		end := 1 + i
		if i == parts-1 {
			end = len(message)
		}
		records = append(records, m.record(handshakeType, message[i:end], 0)...)
	}
	m.secret, m.number = m.expand("traffic upd", sha256.Size), 0
	return records
}

// A peer with the keys may change them, pad, send records of nothing, and cut all of that anywhere.
func TestSecureSocketsTakeRecordsThatCryptoTLSNeverMakes(t *testing.T) {
	connA, connB := tcptest.Connection(t)
	innerA, innerB := NewInner(connA), NewInner(connB)
	var keys strings.Builder
	config := tlsConfig()
	config.KeyLogWriter = &keys
	client, server := tls.Client(innerA, config), tls.Server(innerB, tlsConfig())
	accepted := make(chan error, 1)
	go func() { accepted <- server.HandshakeContext(context.Background()) }()
	require.NoError(t, client.HandshakeContext(context.Background()))
	require.NoError(t, <-accepted)
	if client.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip("another cipher was chosen on this machine")
	}
	_, line, _ := strings.Cut(keys.String(), "CLIENT_TRAFFIC_SECRET_0 ")
	line, _, _ = strings.Cut(line, "\n")
	_, digits, _ := strings.Cut(line, " ")
	secret, err := hex.DecodeString(digits)
	require.NoError(t, err)
	m := &recordMaker{t: t, secret: secret}
	b := secured(t, innerB, server)

	var stream, want []byte
	for round := range 40 {
		text := bytes.Repeat([]byte{byte(round)}, 1+round*300)
		stream = append(stream, m.record(dataType, nil, round)...)
		stream = append(stream, m.record(dataType, text, round)...)
		if round%3 == 0 { // the other side takes 16 of the answers in a row at most
			stream = append(stream, m.keyUpdate(1+round%5)...)
		}
		want = append(want, text...)
	}
	sent := make(chan error, 1)
	go func() {
		var failed error
		for rest, step := stream, 1; len(rest) > 0 && failed == nil; step = step%997 + 1 {
			n := min(step, len(rest))
			_, failed = connA.Write(rest[:n])
			rest = rest[n:]
		}
		sent <- failed
	}()
	got := tcptest.Mapped(t, len(want))
	for v := []Vector{VectorOf(got)}; len(v) > 0; {
		n, err := b.Receive(v)
		require.NoError(t, err)
		v = Advance(v, n)
	}
	require.NoError(t, <-sent)
	require.True(t, bytes.Equal(want, got))

	require.NoError(t, sendAllOf(b, []Vector{VectorOf([]byte("the other way"))})) // by a key that has changed as often
	back := make([]byte, len("the other way"))
	_, err = io.ReadFull(client, back)
	require.NoError(t, err)
	require.Equal(t, "the other way", string(back))
}
