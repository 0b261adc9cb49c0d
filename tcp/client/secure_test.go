package client

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/security"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// FuzzAnswersOfAStranger has a stranger answer in the place of an engine with whatever it likes. Where the initiator demands TLS, it
// refuses the connection, and what it has sent until then is the beginning of TLS: no hello, and so no payload.
func FuzzAnswersOfAStranger(f *testing.F) {
	target := wire.Identity{1, 2, 3, 15: 4}
	path := filepath.Join(f.TempDir(), "secret")
	require.NoError(f, os.WriteFile(path, []byte("0123456789abcdef0123456789abcdef0123456789abcdef"), 0o600))
	policy, err := security.New(security.Settings{SecretFile: path, Mode: "require"}, wire.Identity{9}.String(), zap.NewNop())
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, policy.Close()) })
	config := core.DefaultConfig()
	p := newPeer(New(Options{Config: &config, Log: zap.NewNop(), Security: policy, Processors: testProcessors, Limiter: testLimiter}), &core.Segment{Name: "target"})
	d := &metadata.Descriptor{Identity: target.String(), IsKvferry: true, TLS: 1}

	f.Add([]byte{})
	f.Add((&wire.Answer{Target: target}).Encode())
	f.Add([]byte{21, 3, 3, 0, 2, 2, 40})          // an alert
	f.Add([]byte{22, 3, 3, 0, 4, 2, 0, 0, 0})     // an empty ServerHello
	f.Add([]byte{22, 3, 3, 255, 255})             // a record that is too long
	f.Add([]byte{20, 3, 3, 0, 1, 1, 23, 3, 3, 0}) // a change of ciphers, and half a header
	f.Fuzz(func(t *testing.T, answer []byte) {
		near, far := tcptest.Connection(t)
		_, err := far.Write(answer)
		require.NoError(t, err)
		require.NoError(t, far.CloseWrite())
		_, err = p.secure(context.Background(), near, d)
		require.Error(t, err)
		require.NoError(t, near.CloseWrite())
		require.NoError(t, far.SetReadDeadline(time.Now().Add(tcptest.Patience)))
		sent, err := io.ReadAll(far)
		require.NoError(t, err)
		require.True(t, security.IsClientHello(sent))
		require.False(t, bytes.Contains(sent, target[:]))
		hello := p.client.hello(d, 0)
		require.False(t, bytes.Contains(sent, hello.Encode()[:wire.HeaderSize]))
	})
}
