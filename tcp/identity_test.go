package tcp

import (
	"bytes"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/security"
	"kvferry/metaserver"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
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
			var err error
			// The log says so before the thief sees the end of its connection.
			require.Eventually(t, func() bool { err = read(thief); return err != nil }, tcptest.Patience, tcptest.Patience/1000)
			require.ErrorContains(t, err, "presents a certificate of another cluster secret")
			require.NoError(t, read(honest))
			require.Len(t, target.log.FilterMessage("data connection ended").All(), 1, "nobody else's")
		})
	}
}

// Whoever can write the store can put an entry back that a former engine has signed, whose ports are another engine's by now.
func TestAFormerEntryOfACentralStoreLeadsNothingToAnotherEngine(t *testing.T) {
	store, err := metaserver.Start(metaserver.Options{Host: "127.0.0.1"})
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	path := secretFile(t, newSecret())
	wrong := newWatched(t, withSecret(path, ""))
	before := bytes.Clone(wrong.memory)

	former := *wrong.Descriptor()
	former.Name, former.Identity = "node1", strings.Repeat("0f", 16)
	policy, err := security.New(security.Settings{SecretFile: path}, former.Identity, zap.NewNop())
	require.NoError(t, err)
	defer func() { require.NoError(t, policy.Close()) }()
	replayed, err := metadata.Open(store.Address(), metadata.Options{Security: policy})
	require.NoError(t, err)
	defer func() { require.NoError(t, replayed.Close()) }()
	require.NoError(t, replayed.Publish(t.Context(), wrong.Name(), func() *metadata.Descriptor { return &former }))

	c := core.DefaultConfig()
	c.BindAddress = "127.0.0.1"
	withSecret(path, "")(&c)
	tcptest.FewRetries(&c)
	e, err := core.New(core.Options{Name: "node2", Metadata: store.Address(), Config: c, Log: zap.NewNop()})
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	_, err = e.Install("tcp", Open)
	require.NoError(t, err)
	id := tcptest.OpenSegment(t, e, "node1")
	local := tcptest.Mapped(t, 4096)
	for _, op := range tcptest.Opcodes {
		err = move(t, e, tcptest.Ask(op, local, id, wrong.memory[:4096]))
		require.ErrorContains(t, err, "is engine "+wrong.Identity()+", and the connection is meant for engine "+former.Identity)
	}
	require.ErrorIs(t, e.Notify(id, metadata.Notification{Name: "a", Text: "b"}), security.ErrOtherEngine)
	require.Equal(t, before, wrong.memory)
	require.Empty(t, wrong.Notifications())
}
