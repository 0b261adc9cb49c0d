// Package kvtest has the tests that every kind of central store passes, and the servers that they need.
package kvtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"kvferry/core/metadata/kv"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Kind is one kind of central store.
type Kind struct {
	Scheme string // of its connection strings
	User   string // the name that Serving.Password belongs to
	Start  func(t *testing.T, s Serving) *Server
	// Connect returns what a store at host:port is opened with.
	Connect func(server string, a Access) (connection string, o kv.Options)
	Raw     func(t *testing.T, server, key string, value []byte) // puts as others do, without our limit or newline
}

// Serving says how a server is started.
type Serving struct {
	Password string        // "" for none
	TLS      *Certificates // nil for none
	Ask      bool          // for the certificates of clients
}

// Access says how a client connects.
type Access struct {
	User, Password string
	Secure         bool // over TLS
	Connection     kv.Connection
}

// Open opens a store, which is closed with the test. The kind's package has to be imported.
func (k Kind) Open(t *testing.T, server string, a Access) kv.Store {
	store, err := kv.Open(k.Connect(server, a))
	require.NoError(t, err)
	t.Cleanup(func() { store.Close() })
	return store
}

// Run runs the tests that are the same for all kinds.
func Run(t *testing.T, kind Kind) {
	for _, test := range suite {
		t.Run(test.name, func(t *testing.T) { test.run(t, kind) })
	}
}

var suite = []struct {
	name string
	run  func(t *testing.T, kind Kind)
}{
	{"AStoreHoldsWhatWasPutLast", aStoreHoldsWhatWasPutLast},
	{"AKeyIsRemovedOnlyWhileItHoldsTheValue", aKeyIsRemovedOnlyWhileItHoldsTheValue},
	{"KeysAreThoseThatBeginWithAPrefix", keysAreThoseThatBeginWithAPrefix},
	{"KeysBeyondALimitAreAnError", keysBeyondALimitAreAnError},
	{"ValuesOfOthersMayEndInANewline", valuesOfOthersMayEndInANewline},
	{"AStoreTakesAndGivesWhateverBytesThereAre", aStoreTakesAndGivesWhateverBytesThereAre},
	{"AValueMayBeAsLongAsTheLimitAndNoLonger", aValueMayBeAsLongAsTheLimitAndNoLonger},
	{"AStoreIsNotAskedForACancelledContext", aStoreIsNotAskedForACancelledContext},
	{"AStoreThatDoesNotAnswerIsGivenUp", aStoreThatDoesNotAnswerIsGivenUp},
	{"CancellingEndsAWaitForAStore", cancellingEndsAWaitForAStore},
	{"AServerOfAnotherKindIsAnError", aServerOfAnotherKindIsAnError},
	{"AStoreIsOpenedWithoutItsServer", aStoreIsOpenedWithoutItsServer},
	{"AStoreWorksAgainWhenItsServerIsBack", aStoreWorksAgainWhenItsServerIsBack},
	{"AWrongPasswordIsAnErrorThatDoesNotShowIt", aWrongPasswordIsAnErrorThatDoesNotShowIt},
	{"AStoreOverTLS", aStoreOverTLS},
	{"AStoreThatDoesNotSpeakTLSIsAnError", aStoreThatDoesNotSpeakTLSIsAnError},
	{"AStoreMayAskForACertificate", aStoreMayAskForACertificate},
	{"AStoreIsUsedByManyAtOnce", aStoreIsUsedByManyAtOnce},
	{"AStoreThatIsClosedEndsWaitsAndRefuses", aStoreThatIsClosedEndsWaitsAndRefuses},
	{"AStoreThatIsClosedChangesNothing", aStoreThatIsClosedChangesNothing},
}

// NoAnswer is long enough for a server on this machine; it is waited for in vain only where no server answers.
const NoAnswer = 200 * time.Millisecond

// Impatient are short time-outs, for a server that does not answer.
func Impatient() kv.Connection {
	return kv.Connection{ConnectTimeout: NoAnswer, ReplyTimeout: 2 * NoAnswer}
}

// MustGet returns the value of a key, which has to be there.
func MustGet(t *testing.T, store kv.Store, key string) string {
	t.Helper()
	value, found, err := store.Get(t.Context(), key)
	require.NoError(t, err)
	require.True(t, found, key)
	return string(value)
}

// RequireAbsent fails the test where a key is there.
func RequireAbsent(t *testing.T, store kv.Store, key string) {
	t.Helper()
	value, found, err := store.Get(t.Context(), key)
	require.NoError(t, err)
	require.False(t, found, "%s holds %q", key, value)
	require.Empty(t, value)
}

// RequireFailure checks an error for what every error of a store has to say, and returns its text.
func RequireFailure(t *testing.T, store kv.Store, key string, err error) string {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, status.Metadata, status.Of(err, status.OK))
	require.ErrorContains(t, err, store.Name())
	require.ErrorContains(t, err, key)
	return err.Error()
}

func aStoreHoldsWhatWasPutLast(t *testing.T, kind Kind) {
	server := kind.Start(t, Serving{})
	store, other := kind.Open(t, server.Address, Access{}), kind.Open(t, server.Address, Access{})
	RequireAbsent(t, store, "mooncake/ram/a")
	for _, key := range []string{"mooncake/ram/a", "mooncake/blue/rpc_meta/[fe80::1%eth0]:12001", "mooncake/ram/ключ и *?[]{}"} {
		require.NoError(t, store.Put(t.Context(), key, []byte(`{"n":1}`)))
		require.Equal(t, `{"n":1}`, MustGet(t, other, key))
		require.NoError(t, other.Put(t.Context(), key, []byte(`{"key":"`+key+`"}`)))
	}
	require.Equal(t, `{"key":"mooncake/ram/a"}`, MustGet(t, store, "mooncake/ram/a"), "the others are keys of their own")
	RequireAbsent(t, store, "mooncake/ram/")
	RequireAbsent(t, store, "mooncake/ram/*")
}

func aKeyIsRemovedOnlyWhileItHoldsTheValue(t *testing.T, kind Kind) {
	store := kind.Open(t, kind.Start(t, Serving{}).Address, Access{})
	const key = "mooncake/ram/a"
	require.NoError(t, store.Remove(t.Context(), key, []byte("ours")), "a missing key")
	require.NoError(t, store.Put(t.Context(), key, []byte("theirs")))
	for _, value := range []string{"ours", "", "their", "theirs2"} {
		require.NoError(t, store.Remove(t.Context(), key, []byte(value)))
		require.Equal(t, "theirs", MustGet(t, store, key))
	}
	require.NoError(t, store.Remove(t.Context(), key, []byte("theirs")))
	RequireAbsent(t, store, key)
}

func keysAreThoseThatBeginWithAPrefix(t *testing.T, kind Kind) {
	server := kind.Start(t, Serving{})
	store := kind.Open(t, server.Address, Access{})
	list := func(prefix string) []string {
		keys, err := store.Keys(t.Context(), prefix, 10)
		require.NoError(t, err)
		return keys
	}
	require.Empty(t, list("mooncake/"))
	for _, key := range []string{"mooncake/ram/a", "mooncake/ram/b*c", "mooncake/ram/b*", "mooncake/ram/bc", "mooncake/ran", "other"} {
		kind.Raw(t, server.Address, key, []byte("{}"))
	}
	require.ElementsMatch(t, []string{"mooncake/ram/a", "mooncake/ram/b*c", "mooncake/ram/b*", "mooncake/ram/bc"}, list("mooncake/ram/"))
	require.ElementsMatch(t, []string{"mooncake/ram/b*c", "mooncake/ram/b*"}, list("mooncake/ram/b*"), "the star is a character as any")
	require.Empty(t, list("mooncake/ram/?"))
	require.Empty(t, list("mooncake/[a-z]"))
}

func keysBeyondALimitAreAnError(t *testing.T, kind Kind) {
	const keys = 2*kv.PageKeys + 1 // what takes several requests
	server := kind.Start(t, Serving{})
	store := kind.Open(t, server.Address, Access{})
	var writers sync.WaitGroup
	for first := range 20 {
		writers.Go(func() {
			for i := first; i < keys; i += 20 {
				assert.NoError(t, store.Put(t.Context(), fmt.Sprintf("mooncake/ram/%d", i), []byte("{}")))
			}
		})
	}
	writers.Wait()
	found, err := store.Keys(t.Context(), "mooncake/ram/", keys)
	require.NoError(t, err)
	require.Len(t, found, keys)
	_, err = store.Keys(t.Context(), "mooncake/ram/", keys-1)
	require.Contains(t, RequireFailure(t, store, "mooncake/ram/", err), fmt.Sprint("more than ", keys-1))
}

func valuesOfOthersMayEndInANewline(t *testing.T, kind Kind) {
	server := kind.Start(t, Serving{})
	store := kind.Open(t, server.Address, Access{})
	for _, put := range []string{"{}", "{}\n"} {
		for _, removed := range []string{"{}", "{}\n"} {
			kind.Raw(t, server.Address, "a", []byte(put))
			require.Equal(t, "{}", MustGet(t, store, "a"))
			require.NoError(t, store.Remove(t.Context(), "a", []byte(removed)))
			RequireAbsent(t, store, "a")
		}
	}
}

func aStoreTakesAndGivesWhateverBytesThereAre(t *testing.T, kind Kind) {
	server := kind.Start(t, Serving{})
	store := kind.Open(t, server.Address, Access{})
	for _, garbage := range []string{"\x00\xff\r\n\x00", "$-1\r\n\r", "nil", " "} {
		kind.Raw(t, server.Address, "a", []byte(garbage))
		require.Equal(t, garbage, MustGet(t, store, "a"))
		require.NoError(t, store.Remove(t.Context(), "a", []byte(garbage)))
		RequireAbsent(t, store, "a")
	}
	kind.Raw(t, server.Address, "a", nil)
	require.Empty(t, MustGet(t, store, "a"), "it is there, and empty")
}

func aValueMayBeAsLongAsTheLimitAndNoLonger(t *testing.T, kind Kind) {
	server := kind.Start(t, Serving{})
	store := kind.Open(t, server.Address, Access{})
	longest := bytes.Repeat([]byte("x"), kv.MaxValue)
	require.NoError(t, store.Put(t.Context(), "a", longest))
	require.True(t, string(longest) == MustGet(t, store, "a"))
	require.NoError(t, store.Remove(t.Context(), "a", longest))
	RequireAbsent(t, store, "a")

	longer := append(longest, 'y')
	err := store.Put(t.Context(), "a", longer)
	require.Contains(t, RequireFailure(t, store, "a", err), "longer than 1048576 bytes")
	RequireAbsent(t, store, "a")
	kind.Raw(t, server.Address, "a", longer)
	_, _, err = store.Get(t.Context(), "a")
	require.Contains(t, RequireFailure(t, store, "a", err), "longer than 1048576 bytes")
	require.Less(t, len(err.Error()), 1000)
	RequireAbsent(t, store, "b")
}

func aStoreIsNotAskedForACancelledContext(t *testing.T, kind Kind) {
	store := kind.Open(t, kind.Start(t, Serving{}).Address, Access{})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := store.Get(ctx, "a")
	for _, err := range []error{err, store.Put(ctx, "a", []byte("2")), store.Remove(ctx, "a", []byte("1"))} {
		RequireFailure(t, store, "a", err)
		require.ErrorIs(t, err, context.Canceled)
	}
	require.Equal(t, "1", MustGet(t, store, "a"))
}

// Listener takes connections on a port of its own, and does with each what handle says, until the test ends.
func Listener(t *testing.T, handle func(net.Conn)) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
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

// Drain reads until the other end closes the connection.
func Drain(conn net.Conn) {
	for buffer := make([]byte, 4096); ; {
		if _, err := conn.Read(buffer); err != nil {
			return
		}
	}
}

func aStoreThatDoesNotAnswerIsGivenUp(t *testing.T, kind Kind) {
	store := kind.Open(t, Listener(t, Drain), Access{Connection: Impatient()})
	_, _, err := store.Get(t.Context(), "a")
	RequireFailure(t, store, "a", err)
	RequireFailure(t, store, "a", store.Put(t.Context(), "a", []byte("1")))
	RequireFailure(t, store, "a", store.Remove(t.Context(), "a", []byte("1")))
}

func cancellingEndsAWaitForAStore(t *testing.T, kind Kind) {
	ctx, cancel := context.WithCancel(t.Context())
	store := kind.Open(t, Listener(t, func(conn net.Conn) { cancel(); Drain(conn) }), Access{})
	_, _, err := store.Get(ctx, "a")
	RequireFailure(t, store, "a", err)
	require.ErrorIs(t, err, context.Canceled)
}

func aServerOfAnotherKindIsAnError(t *testing.T, kind Kind) {
	for _, says := range []string{"SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "\x00\x00\x00", strings.Repeat("\xff", 100)} {
		garbage := Listener(t, func(conn net.Conn) {
			fmt.Fprint(conn, says)
			Drain(conn)
		})
		store := kind.Open(t, garbage, Access{Connection: Impatient()})
		_, _, err := store.Get(t.Context(), "a")
		RequireFailure(t, store, "a", err)
		RequireFailure(t, store, "a", store.Put(t.Context(), "a", []byte("1")))
	}
}

func aStoreIsOpenedWithoutItsServer(t *testing.T, kind Kind) {
	store := kind.Open(t, ClosedPort(t), Access{User: kind.User, Password: "secret", Connection: Impatient()})
	_, _, err := store.Get(t.Context(), "a")
	require.Contains(t, RequireFailure(t, store, "a", err), "connection refused")
	require.NotContains(t, err.Error(), "secret")
}

func aStoreWorksAgainWhenItsServerIsBack(t *testing.T, kind Kind) {
	server := kind.Start(t, Serving{Password: "right"})
	store := kind.Open(t, server.Address, Access{User: kind.User, Password: "right"})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	require.Equal(t, "1", MustGet(t, store, "a"))
	server.Kill()
	_, _, err := store.Get(t.Context(), "a")
	RequireFailure(t, store, "a", err)
	RequireFailure(t, store, "a", store.Put(t.Context(), "a", []byte("2")))
	server.Restart()
	require.Eventually(t, func() bool { return store.Put(t.Context(), "a", []byte("3")) == nil }, 20*time.Second, 50*time.Millisecond)
	require.Equal(t, "3", MustGet(t, store, "a"))
}

func aWrongPasswordIsAnErrorThatDoesNotShowIt(t *testing.T, kind Kind) {
	server := kind.Start(t, Serving{Password: "right"})
	require.NoError(t, kind.Open(t, server.Address, Access{User: kind.User, Password: "right"}).Put(t.Context(), "a", []byte("1")))
	for _, a := range []Access{{User: kind.User, Password: "hunter2"}, {User: "nobody", Password: "hunter2"}, {}} {
		store := kind.Open(t, server.Address, a)
		_, _, err := store.Get(t.Context(), "a")
		require.NotContains(t, RequireFailure(t, store, "a", err), "hunter2")
		err = store.Put(t.Context(), "a", []byte("2"))
		require.NotContains(t, RequireFailure(t, store, "a", err), "hunter2")
		require.Regexp(t, "(?i)auth|password|user", err.Error())
	}
}

func aStoreOverTLS(t *testing.T, kind Kind) {
	good, strange := NewCertificates(t), NewCertificates(t)
	server := kind.Start(t, Serving{TLS: good})
	trusting := kv.Connection{CA: good.CA, ReplyTimeout: time.Second}
	store := kind.Open(t, server.Address, Access{Secure: true, Connection: trusting})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	require.Equal(t, "1", MustGet(t, store, "a"))

	for _, ca := range []string{strange.CA, ""} {
		store := kind.Open(t, server.Address, Access{Secure: true, Connection: kv.Connection{CA: ca}})
		_, _, err := store.Get(t.Context(), "a")
		require.Contains(t, RequireFailure(t, store, "a", err), "certificate signed by unknown authority")
	}
	plain := kind.Open(t, server.Address, Access{})
	_, _, err := plain.Get(t.Context(), "a")
	RequireFailure(t, plain, "a", err)
}

func aStoreThatDoesNotSpeakTLSIsAnError(t *testing.T, kind Kind) {
	store := kind.Open(t, kind.Start(t, Serving{}).Address, Access{Secure: true, Connection: Impatient()})
	_, _, err := store.Get(t.Context(), "a")
	require.Regexp(t, "(?i)tls|handshake|EOF", RequireFailure(t, store, "a", err))
}

func aStoreMayAskForACertificate(t *testing.T, kind Kind) {
	certificates := NewCertificates(t)
	server := kind.Start(t, Serving{TLS: certificates, Ask: true})
	known := kv.Connection{CA: certificates.CA, Cert: certificates.Cert, Key: certificates.Key}
	store := kind.Open(t, server.Address, Access{Secure: true, Connection: known})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))

	unknown := kind.Open(t, server.Address, Access{Secure: true, Connection: kv.Connection{CA: certificates.CA}})
	_, _, err := unknown.Get(t.Context(), "a")
	RequireFailure(t, unknown, "a", err)
}

func aStoreIsUsedByManyAtOnce(t *testing.T, kind Kind) {
	store := kind.Open(t, kind.Start(t, Serving{}).Address, Access{})
	var users sync.WaitGroup
	for i := range 32 {
		users.Go(func() {
			key, value := fmt.Sprint("mooncake/ram/", i), []byte(fmt.Sprint(i))
			assert.NoError(t, store.Put(t.Context(), key, value))
			got, found, err := store.Get(t.Context(), key)
			assert.NoError(t, err)
			assert.True(t, found)
			assert.Equal(t, value, got)
			assert.NoError(t, store.Remove(t.Context(), key, value))
		})
	}
	users.Wait()
}

func aStoreThatIsClosedEndsWaitsAndRefuses(t *testing.T, kind Kind) {
	var once sync.Once
	waits := make(chan struct{})
	store := kind.Open(t, Listener(t, func(conn net.Conn) { once.Do(func() { close(waits) }); Drain(conn) }),
		Access{Connection: kv.Connection{ReplyTimeout: time.Second}})
	ended := make(chan error)
	go func() {
		_, _, err := store.Get(context.Background(), "a")
		ended <- err
	}()
	<-waits
	require.NoError(t, store.Close())
	RequireFailure(t, store, "a", <-ended)
	require.NoError(t, store.Close(), "twice is once")
	RequireFailure(t, store, "a", store.Put(t.Context(), "a", nil))
}

func aStoreThatIsClosedChangesNothing(t *testing.T, kind Kind) {
	server := kind.Start(t, Serving{})
	store, other := kind.Open(t, server.Address, Access{}), kind.Open(t, server.Address, Access{})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	require.NoError(t, store.Close())
	for range 100 {
		RequireFailure(t, store, "a", store.Put(t.Context(), "a", []byte("2")))
	}
	require.Equal(t, "1", MustGet(t, other, "a"))
}
