package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvferry/core/security"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// policy is that of an engine with a secret.
func policy(t testing.TB, mode string) *security.Policy {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte("0123456789abcdef0123456789abcdef"), 0o600))
	p, err := security.New(security.Settings{SecretFile: path, Mode: mode}, strings.Repeat("0", 32), zap.NewNop())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func TestAConnectionThatHasNotEndedItsTLSHandshakeGivesWay(t *testing.T) {
	for name, first := range map[string][]byte{"no byte": nil, "half a ClientHello": {0x16, 3, 1, 0, 200, 1, 0, 0}} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, Options{MaxSessions: 1, FirstRequest: time.Hour, ProgressTimeout: time.Hour, Security: policy(t, "require")})
			c := h.dial()
			c.Send(first)
			h.dial()
			_, err := c.Conn.Read(make([]byte, 1))
			require.Error(t, err)
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		})
	}
}

func TestConnectionsThatBeginNoTLSKeepNobodyOut(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{
		FirstRequest: time.Hour, ProgressTimeout: time.Hour, Security: policy(t, "prefer"),
		Descriptors: sockio.NewDescriptors(2 * sockio.PerConnection),
	}, memory)
	for range 6 {
		h.dial()
	}
	requireServed(h.dial(), memory)
}
