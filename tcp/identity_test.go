package tcp

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/security"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// divert has an address of this host lead to another one, which may change, and returns it.
func divert(t *testing.T, to *atomic.Pointer[string]) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	require.NoError(t, err)
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			if far, err := net.Dial("tcp", *to.Load()); err == nil {
				go relay(far, near)
				go relay(near, far)
			} else {
				_ = near.Close()
			}
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-accepting
	})
	return l.Addr().String()
}

func leadingTo(w watched) *atomic.Pointer[string] {
	var to atomic.Pointer[string]
	name := w.Name()
	to.Store(&name)
	return &to
}

func relay(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if to.(*net.TCPConn).CloseWrite() != nil {
		_ = from.Close()
	}
}

func TestAnInitiatorThatIsLedToAnotherEngineOfTheClusterSendsNothing(t *testing.T) {
	path := secretFile(t, newSecret())
	wrong, e := newWatched(t, withSecret(path, "")), newWatched(t, withSecret(path, ""))
	_, err := e.OpenSegment(divert(t, leadingTo(wrong)))
	require.ErrorIs(t, err, security.ErrOtherEngine)
	require.Empty(t, wrong.log.FilterMessageSnippet("data connection").All())
}

func TestAFurtherNameOfAnEngineMayBeOpened(t *testing.T) {
	path := secretFile(t, newSecret())
	for name, names := range map[string]string{"every port": "127.0.0.2", "every name": "*", "several": "service.kv:80, 127.0.0.2"} {
		t.Run(name, func(t *testing.T) {
			target := newWatched(t, withSecret(path, ""), func(c *core.Config) { c.Names = names })
			e := newWatched(t, withSecret(path, ""))
			id := tcptest.OpenSegment(t, e.Engine, divert(t, leadingTo(target)))
			local := tcptest.Mapped(t, 4096)
			require.NoError(t, move(t, e.Engine, tcptest.Ask(core.Write, local, id, target.memory[:4096])))
			require.NoError(t, e.Notify(id, metadata.Notification{Name: "a", Text: "b"}))
			require.Len(t, target.Notifications(), 1)
		})
	}
}

func TestANotificationReachesAnEngineThatHasRestarted(t *testing.T) {
	path := secretFile(t, newSecret())
	goingBy := func(c *core.Config) { c.Names = "127.0.0.2" }
	first, second := newWatched(t, withSecret(path, ""), goingBy), newWatched(t, withSecret(path, ""), goingBy)
	e := newWatched(t, withSecret(path, ""))
	to := leadingTo(first)
	id := tcptest.OpenSegment(t, e.Engine, divert(t, to))
	to.Store(leadingTo(second).Load())
	require.NoError(t, e.Notify(id, metadata.Notification{Name: "a", Text: "b"}))
	require.Len(t, second.Notifications(), 1)
}

func TestANotificationIsNotTakenByAnotherEngineOfTheCluster(t *testing.T) {
	path := secretFile(t, newSecret())
	right, wrong := newWatched(t, withSecret(path, ""), func(c *core.Config) { c.Names = "127.0.0.2" }), newWatched(t, withSecret(path, ""))
	e := newWatched(t, withSecret(path, ""))
	to := leadingTo(right)
	id := tcptest.OpenSegment(t, e.Engine, divert(t, to))
	to.Store(leadingTo(wrong).Load())
	require.ErrorIs(t, e.Notify(id, metadata.Notification{Name: "a", Text: "b"}), security.ErrOtherEngine)
	require.Empty(t, wrong.Notifications())
}

func TestSessionsOfASecretThatWasTakenOutEnd(t *testing.T) {
	for name, change := range map[string]func(*core.Config){"tcp": func(*core.Config) {}, "one host": tcptest.OnOneHost} {
		t.Run(name, func(t *testing.T) {
			former, next := newSecret(), newSecret()
			path := secretFile(t, next, former)
			target := newWatched(t, withSecret(path, ""), change)
			honest := newWatched(t, withSecret(secretFile(t, next, former), ""), change)
			thief := newWatched(t, withSecret(secretFile(t, former), ""), change)
			local := tcptest.Mapped(t, 4096)
			read := func(e watched) error {
				return move(t, e.Engine, tcptest.Ask(core.Read, local, tcptest.OpenSegment(t, e.Engine, target.Name()), target.memory[:4096]))
			}
			require.NoError(t, read(honest))
			require.NoError(t, read(thief))
			require.NoError(t, os.WriteFile(path, []byte(next), 0o600))
			target.said(t, "not accepted any more: the peer presents a certificate of another cluster secret")
			require.ErrorContains(t, read(thief), "presents a certificate of another cluster secret")
			require.NoError(t, read(honest))
			require.Len(t, target.log.FilterMessage("data connection ended").All(), 1, "nobody else's")
		})
	}
}
