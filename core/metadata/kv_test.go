package metadata

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// kvKind is one kind of central store, for the tests that are the same for all.
type kvKind struct {
	name  string
	user  string                                           // who has a password at a server that wants one
	start func(t *testing.T, s serving) *storeServer       // a server of that kind, which ends with the test
	open  func(t *testing.T, server string, a access) kv   // server is host:port; it is closed with the test
	raw   func(t *testing.T, server, key string, v []byte) // put as others do, without a limit or a newline of ours
}

// serving is how a server is to be.
type serving struct {
	password string        // "" for none
	tls      *certificates // nil for none
	ask      bool          // for the certificates of clients
}

// access is how a client comes in.
type access struct {
	user, password string
	secure         bool
	StoreOptions
}

var kvKinds = []kvKind{etcdKind, redisKind}

// everyKind runs a test for each kind of store.
func everyKind(t *testing.T, test func(t *testing.T, kind kvKind)) {
	for _, kind := range kvKinds {
		t.Run(kind.name, func(t *testing.T) { test(t, kind) })
	}
}

// noAnswer is long enough for a server on this machine; it is waited for in vain only where no server answers.
const noAnswer = 200 * time.Millisecond

func hurried() StoreOptions {
	return StoreOptions{ConnectTimeout: noAnswer, ReplyTimeout: 2 * noAnswer}
}

func mustGet(t *testing.T, store kv, key string) string {
	t.Helper()
	value, found, err := store.get(t.Context(), key)
	require.NoError(t, err)
	require.True(t, found, key)
	return string(value)
}

func requireAbsent(t *testing.T, store kv, key string) {
	t.Helper()
	value, found, err := store.get(t.Context(), key)
	require.NoError(t, err)
	require.False(t, found, "%s holds %q", key, value)
	require.Empty(t, value)
}

// requireFailure checks an error for what every error of a store has to say, and returns its text.
func requireFailure(t *testing.T, store kv, key string, err error) string {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, status.Metadata, status.Of(err, status.OK))
	require.ErrorContains(t, err, store.name())
	require.ErrorContains(t, err, key)
	return err.Error()
}

func TestAStoreHoldsWhatWasPutLast(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		server := kind.start(t, serving{})
		store, other := kind.open(t, server.address, access{}), kind.open(t, server.address, access{})
		requireAbsent(t, store, "mooncake/ram/a")
		for _, key := range []string{"mooncake/ram/a", "mooncake/blue/rpc_meta/[fe80::1%eth0]:12001", "mooncake/ram/ключ и *?[]{}"} {
			require.NoError(t, store.put(t.Context(), key, []byte(`{"n":1}`)))
			require.Equal(t, `{"n":1}`, mustGet(t, other, key))
			require.NoError(t, other.put(t.Context(), key, []byte(`{"key":"`+key+`"}`)))
		}
		require.Equal(t, `{"key":"mooncake/ram/a"}`, mustGet(t, store, "mooncake/ram/a"), "the others are keys of their own")
		requireAbsent(t, store, "mooncake/ram/")
		requireAbsent(t, store, "mooncake/ram/*")
	})
}

func TestAKeyIsRemovedOnlyWhileItHoldsTheValue(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		store := kind.open(t, kind.start(t, serving{}).address, access{})
		const key = "mooncake/ram/a"
		require.NoError(t, store.remove(t.Context(), key, []byte("ours")), "a missing key")
		require.NoError(t, store.put(t.Context(), key, []byte("theirs")))
		for _, value := range []string{"ours", "", "their", "theirs2"} {
			require.NoError(t, store.remove(t.Context(), key, []byte(value)))
			require.Equal(t, "theirs", mustGet(t, store, key))
		}
		require.NoError(t, store.remove(t.Context(), key, []byte("theirs")))
		requireAbsent(t, store, key)
	})
}

func TestValuesOfOthersMayEndInANewline(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		server := kind.start(t, serving{})
		store := kind.open(t, server.address, access{})
		for _, put := range []string{"{}", "{}\n"} {
			for _, removed := range []string{"{}", "{}\n"} {
				kind.raw(t, server.address, "a", []byte(put))
				require.Equal(t, "{}", mustGet(t, store, "a"))
				require.NoError(t, store.remove(t.Context(), "a", []byte(removed)))
				requireAbsent(t, store, "a")
			}
		}
	})
}

func TestAStoreTakesAndGivesWhateverBytesThereAre(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		server := kind.start(t, serving{})
		store := kind.open(t, server.address, access{})
		for _, garbage := range []string{"\x00\xff\r\n\x00", "$-1\r\n\r", "nil", " "} {
			kind.raw(t, server.address, "a", []byte(garbage))
			require.Equal(t, garbage, mustGet(t, store, "a"))
			require.NoError(t, store.remove(t.Context(), "a", []byte(garbage)))
			requireAbsent(t, store, "a")
		}
		kind.raw(t, server.address, "a", nil)
		require.Empty(t, mustGet(t, store, "a"), "it is there, and empty")
	})
}

func TestAValueMayBeAsLongAsTheLimitAndNoLonger(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		server := kind.start(t, serving{})
		store := kind.open(t, server.address, access{})
		longest := bytes.Repeat([]byte("x"), maxValue)
		require.NoError(t, store.put(t.Context(), "a", longest))
		require.True(t, string(longest) == mustGet(t, store, "a"))
		require.NoError(t, store.remove(t.Context(), "a", longest))
		requireAbsent(t, store, "a")

		longer := append(longest, 'y')
		err := store.put(t.Context(), "a", longer)
		require.Contains(t, requireFailure(t, store, "a", err), "longer than 1048576 bytes")
		requireAbsent(t, store, "a")
		kind.raw(t, server.address, "a", longer)
		_, _, err = store.get(t.Context(), "a")
		require.Contains(t, requireFailure(t, store, "a", err), "longer than 1048576 bytes")
		require.Less(t, len(err.Error()), 1000)
		requireAbsent(t, store, "b")
	})
}

func TestAStoreIsNotAskedForACancelledContext(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		store := kind.open(t, kind.start(t, serving{}).address, access{})
		require.NoError(t, store.put(t.Context(), "a", []byte("1")))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, _, err := store.get(ctx, "a")
		for _, err := range []error{err, store.put(ctx, "a", []byte("2")), store.remove(ctx, "a", []byte("1"))} {
			requireFailure(t, store, "a", err)
			require.ErrorIs(t, err, context.Canceled)
		}
		require.Equal(t, "1", mustGet(t, store, "a"))
	})
}

// listener takes connections on a port of its own, and does with each what handle says, until the test ends.
func listener(t *testing.T, handle func(net.Conn)) (address string) {
	l := listen(t, "127.0.0.1:0")
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			handlers.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() { l.Close(); handlers.Wait() })
	return l.Addr().String()
}

// drain reads until the other end closes the connection.
func drain(conn net.Conn) {
	for buffer := make([]byte, 4096); ; {
		if _, err := conn.Read(buffer); err != nil {
			return
		}
	}
}

func TestAStoreThatDoesNotAnswerIsGivenUp(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		store := kind.open(t, listener(t, drain), access{StoreOptions: hurried()})
		_, _, err := store.get(t.Context(), "a")
		requireFailure(t, store, "a", err)
		requireFailure(t, store, "a", store.put(t.Context(), "a", []byte("1")))
		requireFailure(t, store, "a", store.remove(t.Context(), "a", []byte("1")))
	})
}

func TestCancellingEndsAWaitForAStore(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		ctx, cancel := context.WithCancel(t.Context())
		store := kind.open(t, listener(t, func(conn net.Conn) { cancel(); drain(conn) }), access{})
		_, _, err := store.get(ctx, "a")
		requireFailure(t, store, "a", err)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestAServerOfAnotherKindIsAnError(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		for _, says := range []string{"SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "\x00\x00\x00", strings.Repeat("\xff", 100)} {
			garbage := listener(t, func(conn net.Conn) {
				fmt.Fprint(conn, says)
				drain(conn)
			})
			store := kind.open(t, garbage, access{StoreOptions: hurried()})
			_, _, err := store.get(t.Context(), "a")
			requireFailure(t, store, "a", err)
			requireFailure(t, store, "a", store.put(t.Context(), "a", []byte("1")))
		}
	})
}

func TestAStoreIsOpenedWithoutItsServer(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		store := kind.open(t, closedPort(t), access{user: kind.user, password: "secret", StoreOptions: hurried()})
		_, _, err := store.get(t.Context(), "a")
		require.Contains(t, requireFailure(t, store, "a", err), "connection refused")
		require.NotContains(t, err.Error(), "secret")
	})
}

func TestAStoreWorksAgainWhenItsServerIsBack(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		server := kind.start(t, serving{password: "right"})
		store := kind.open(t, server.address, access{user: kind.user, password: "right"})
		require.NoError(t, store.put(t.Context(), "a", []byte("1")))
		require.Equal(t, "1", mustGet(t, store, "a"))
		server.kill()
		_, _, err := store.get(t.Context(), "a")
		requireFailure(t, store, "a", err)
		requireFailure(t, store, "a", store.put(t.Context(), "a", []byte("2")))
		server.restart()
		require.Eventually(t, func() bool { return store.put(t.Context(), "a", []byte("3")) == nil }, 20*time.Second, 50*time.Millisecond)
		require.Equal(t, "3", mustGet(t, store, "a"))
	})
}

func TestAWrongPasswordIsAnErrorThatDoesNotShowIt(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		server := kind.start(t, serving{password: "right"})
		require.NoError(t, kind.open(t, server.address, access{user: kind.user, password: "right"}).put(t.Context(), "a", []byte("1")))
		for _, a := range []access{{user: kind.user, password: "hunter2"}, {user: "nobody", password: "hunter2"}, {}} {
			store := kind.open(t, server.address, a)
			_, _, err := store.get(t.Context(), "a")
			require.NotContains(t, requireFailure(t, store, "a", err), "hunter2")
			err = store.put(t.Context(), "a", []byte("2"))
			require.NotContains(t, requireFailure(t, store, "a", err), "hunter2")
			require.Regexp(t, "(?i)auth|password|user", err.Error())
		}
	})
}

func TestAStoreOverTLS(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		good, strange := newCertificates(t), newCertificates(t)
		server := kind.start(t, serving{tls: good})
		trusting := StoreOptions{CA: good.ca, ReplyTimeout: time.Second}
		store := kind.open(t, server.address, access{secure: true, StoreOptions: trusting})
		require.NoError(t, store.put(t.Context(), "a", []byte("1")))
		require.Equal(t, "1", mustGet(t, store, "a"))

		for _, ca := range []string{strange.ca, ""} {
			store := kind.open(t, server.address, access{secure: true, StoreOptions: StoreOptions{CA: ca}})
			_, _, err := store.get(t.Context(), "a")
			require.Contains(t, requireFailure(t, store, "a", err), "certificate signed by unknown authority")
		}
		plain := kind.open(t, server.address, access{})
		_, _, err := plain.get(t.Context(), "a")
		requireFailure(t, plain, "a", err)
	})
}

func TestAStoreThatDoesNotSpeakTLSIsAnError(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		store := kind.open(t, kind.start(t, serving{}).address, access{secure: true, StoreOptions: hurried()})
		_, _, err := store.get(t.Context(), "a")
		require.Regexp(t, "(?i)tls|handshake|EOF", requireFailure(t, store, "a", err))
	})
}

func TestAStoreMayAskForACertificate(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		certificates := newCertificates(t)
		server := kind.start(t, serving{tls: certificates, ask: true})
		known := StoreOptions{CA: certificates.ca, Cert: certificates.cert, Key: certificates.key}
		store := kind.open(t, server.address, access{secure: true, StoreOptions: known})
		require.NoError(t, store.put(t.Context(), "a", []byte("1")))

		unknown := kind.open(t, server.address, access{secure: true, StoreOptions: StoreOptions{CA: certificates.ca}})
		_, _, err := unknown.get(t.Context(), "a")
		requireFailure(t, unknown, "a", err)
	})
}

func TestAStoreIsUsedByManyAtOnce(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		store := kind.open(t, kind.start(t, serving{}).address, access{})
		var users sync.WaitGroup
		for i := range 32 {
			users.Go(func() {
				key, value := fmt.Sprint("mooncake/ram/", i), []byte(fmt.Sprint(i))
				assert.NoError(t, store.put(t.Context(), key, value))
				got, found, err := store.get(t.Context(), key)
				assert.NoError(t, err)
				assert.True(t, found)
				assert.Equal(t, value, got)
				assert.NoError(t, store.remove(t.Context(), key, value))
			})
		}
		users.Wait()
	})
}

func TestAStoreThatIsClosedEndsWaitsAndRefuses(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvKind) {
		var once sync.Once
		waits := make(chan struct{})
		store := kind.open(t, listener(t, func(conn net.Conn) { once.Do(func() { close(waits) }); drain(conn) }),
			access{StoreOptions: StoreOptions{ReplyTimeout: time.Second}})
		ended := make(chan error)
		go func() {
			_, _, err := store.get(context.Background(), "a")
			ended <- err
		}()
		<-waits
		require.NoError(t, store.close())
		requireFailure(t, store, "a", <-ended)
		require.NoError(t, store.close(), "twice is once")
		requireFailure(t, store, "a", store.put(t.Context(), "a", nil))
	})
}

func TestWhatIsNoAddressOfAStoreIsRefused(t *testing.T) {
	for _, text := range []string{"", ":6379", "a:", "a/b", "[::1", "::1x", "a b", "a%20b", "#"} {
		_, err := hostPort(text, "6379")
		require.Equal(t, status.InvalidArgument, status.Of(err, status.OK), text)
	}
	_, err := hostPort("me:secret@a:6379", "6379")
	require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
	require.NotContains(t, err.Error(), "secret")
	for text, want := range map[string]string{
		"a": "a:6379", "a:1": "a:1", "10.0.0.1": "10.0.0.1:6379", "[::1]": "[::1]:6379", "[::1]:1": "[::1]:1", "::1": "[::1]:6379",
		"fd00::2:16379": "[fd00::2]:16379",
	} {
		got, err := hostPort(text, "6379")
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestFilesForTLSThatAreNoneAreNamed(t *testing.T) {
	certificates := newCertificates(t)
	for variable, o := range map[string]StoreOptions{
		"KVFERRY_METADATA_CA":   {CA: "/no/such/file"},
		"KVFERRY_METADATA_CERT": {Cert: certificates.cert},
		"KVFERRY_METADATA_KEY":  {Cert: certificates.cert, Key: certificates.ca},
		"has no certificate":    {CA: certificates.key},
	} {
		_, err := o.tls()
		require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
		require.ErrorContains(t, err, variable)
	}
}
