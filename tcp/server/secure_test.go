package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"kvferry/core/hostmem"
	"kvferry/core/security"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// secretOf is a file with a new secret.
func secretOf(t testing.TB) string {
	t.Helper()
	var b [32]byte
	_, _ = rand.Read(b[:])
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte(hex.EncodeToString(b[:])), 0o600))
	return path
}

// policyOf is the policy of an engine, which it also identifies.
func policyOf(t testing.TB, secret, mode string) (*security.Policy, wire.Identity) {
	t.Helper()
	var identity wire.Identity
	_, _ = rand.Read(identity[:])
	p, err := security.New(security.Settings{SecretFile: secret, Mode: mode}, identity.String(), zap.NewNop())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p, identity
}

// dialSecurely connects as an engine with a policy.
func (h *harness) dialSecurely(p *security.Policy) (*tls.Conn, error) {
	h.t.Helper()
	conn, err := net.Dial("tcp", h.server.listener.Addr().String())
	require.NoError(h.t, err)
	h.t.Cleanup(func() { _ = conn.Close() })
	require.NoError(h.t, conn.SetDeadline(time.Now().Add(tcptest.Patience)))
	secure, _, err := p.Connect(context.Background(), conn, h.server.options.Identity.String())
	return secure, err
}

func (h *harness) greetSecurely(p *security.Policy, origin wire.Identity, number, ends uint64) (*tls.Conn, wire.Answer) {
	h.t.Helper()
	conn, err := h.dialSecurely(p)
	require.NoError(h.t, err)
	hi := wire.Hello{Origin: origin, Number: number, Ends: ends, Target: h.server.options.Identity}
	_, err = conn.Write(hi.Encode())
	require.NoError(h.t, err)
	answer, err := wire.ReadAnswer(conn)
	require.NoError(h.t, err)
	return conn, answer
}

func TestAnEngineCannotEndTheSessionOfAnotherOneWithASecret(t *testing.T) {
	secret := secretOf(t)
	own, identity := policyOf(t, secret, "")
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{Identity: identity, Security: own}, memory)
	one, _ := policyOf(t, secret, "")
	other, _ := policyOf(t, secret, "")
	origin := wire.Identity{1, 2, 3}
	conn, answer := h.greetSecurely(one, origin, 1, 0)
	require.EqualValues(t, wire.StatusOK, answer.Code)
	_, answer = h.greetSecurely(other, origin, 1, 0)
	require.EqualValues(t, wire.StatusOK, answer.Code, "its own connection of that number")
	_, answer = h.greetSecurely(other, origin, 2, 1)
	require.EqualValues(t, wire.StatusOK, answer.Code)
	_, err := conn.Write(tcptest.ReadV2(memory[:10]))
	require.NoError(t, err)
	got := make([]byte, wire.StatusSize+10)
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err, "the session goes on")
	_, answer = h.greetSecurely(one, origin, 2, 1)
	require.EqualValues(t, wire.StatusOK, answer.Code)
	_, err = conn.Read(got)
	require.Error(t, err, "its own engine has ended it")
}

func TestAHandshakeThatIsNotFinishedEndsInTime(t *testing.T) {
	own, identity := policyOf(t, secretOf(t), "")
	h := serve(t, Options{Identity: identity, Security: own, FirstRequest: 50 * time.Millisecond})
	for _, begun := range [][]byte{nil, {0x16}, {0x16, 3, 1, 2, 0, 1, 0, 1}} {
		c := h.dial()
		c.Send(begun)
		_, err := c.Conn.Read(make([]byte, 1))
		require.Error(t, err)
	}
	require.Eventually(t, func() bool { return h.sessions() == 0 }, tcptest.Patience, time.Millisecond)
}

func TestAHandshakeOfAStrangerIsAWarningAndThatOfASilentPeerIsNone(t *testing.T) {
	const failed = "a data connection failed before its session began"
	own, identity := policyOf(t, secretOf(t), "")
	h := serve(t, Options{Identity: identity, Security: own, FirstRequest: 50 * time.Millisecond})
	h.dial().Send([]byte{0x16, 3, 1, 0, 1, 1})
	require.Equal(t, zap.InfoLevel, h.waitForLog(failed).Level)

	h = serve(t, Options{Identity: identity, Security: own}) // a handshake may take its time
	conn := tls.Client(h.dial().Conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"kvferry/1"}})
	require.NoError(t, conn.Handshake(), "of TLS 1.3 it ends before the server has seen that there is no certificate")
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	line := h.waitForLog(failed)
	require.Equal(t, zap.WarnLevel, line.Level)
	require.Contains(t, fmt.Sprint(line.ContextMap()["error"]), "it presents no certificate")
}

func TestCloseEndsHandshakesOfTLS(t *testing.T) {
	own, identity := policyOf(t, secretOf(t), "")
	h := serve(t, Options{Identity: identity, Security: own})
	for _, begun := range [][]byte{nil, {0x16, 3, 1, 2, 0, 1, 0, 1}} {
		h.dial().Send(begun)
	}
	h.server.Close()
}

// FuzzFirstBytesOfADataConnection: whatever a stranger sends, memory stays as it is, none of it comes back with the mode require,
// and the connection ends.
func FuzzFirstBytesOfADataConnection(f *testing.F) {
	f.Add([]byte{0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0})
	f.Add(append([]byte{0x16, 3, 1, 2, 0, 1}, make([]byte, 600)...))
	f.Add((&wire.Hello{Number: 1}).Encode())
	memory := tcptest.Mapped(f, 4096)
	f.Add(tcptest.ReadV2(memory[:100]))
	f.Add(tcptest.ReadV1(memory[:100]))
	f.Add(tcptest.WriteV1(hostmem.AddressOf(memory), []byte("stranger")))
	tcptest.Fill(memory, 5)
	before := bytes.Clone(memory)
	own, identity := policyOf(f, secretOf(f), "require")
	h := serve(f, Options{Identity: identity, Security: own}, memory)
	f.Fuzz(func(t *testing.T, b []byte) {
		conn, err := net.Dial("tcp", h.server.listener.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, conn.SetDeadline(time.Now().Add(tcptest.Patience)))
		_, _ = conn.Write(b)
		_ = conn.(*net.TCPConn).CloseWrite()
		answer, err := io.ReadAll(conn)
		if err != nil {
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		}
		require.False(t, bytes.Contains(answer, before[:16]))
		require.Equal(t, before, memory)
	})
}

// FuzzSessionUnderTLS has an engine with the secret send whatever it likes inside of TLS: a broken hello, or requests. Memory that is
// not registered stays as it is, and the session ends.
func FuzzSessionUnderTLS(f *testing.F) {
	memory := tcptest.Mapped(f, 2*4096)
	region, private := memory[:4096], memory[4096:]
	secret := secretOf(f)
	own, identity := policyOf(f, secret, "require")
	other, _ := policyOf(f, secret, "require")
	h := serve(f, Options{Identity: identity, Security: own}, region)
	hello := (&wire.Hello{Number: 1, Target: identity}).Encode()
	f.Add(hello)
	f.Add(hello[:wire.HeaderSize+5])
	f.Add((&wire.Hello{Number: 1, Ends: 1}).Encode())
	for _, b := range [][]byte{region[:100], private[:100]} {
		f.Add(tcptest.ReadV1(b))
		f.Add(append(tcptest.WriteV2(hostmem.AddressOf(b), []byte("some bytes")), tcptest.ReadV2(b)...))
	}
	f.Add([]byte{0x16, 3, 1, 2, 0, 1}) // TLS inside of TLS
	zero := make([]byte, len(private))
	f.Fuzz(func(t *testing.T, b []byte) {
		h.t = t
		conn, err := h.dialSecurely(other)
		require.NoError(t, err)
		_, _ = conn.Write(b)
		_ = conn.CloseWrite()
		if _, err = io.Copy(io.Discard, conn); err != nil {
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		}
		h.waitForSessions(0)
		require.Equal(t, zero, private)
		h.logs.TakeAll()
	})
}
