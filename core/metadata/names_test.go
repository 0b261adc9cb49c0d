package metadata

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"kvferry/core/address"
	"kvferry/core/security"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// divert has an address of this host lead to another one, as whoever controls DNS, ARP or a box between two engines can. It returns
// the address, which no engine is at.
func divert(t *testing.T, to string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			go pass(far, near)
			go pass(near, far)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

// pass copies one direction of a stream, and ends it where it ends.
func pass(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if err := to.(*net.TCPConn).CloseWrite(); err != nil {
		_ = from.Close()
	}
}

func TestAPeerThatIsLedToAnotherEngineOfTheClusterRefusesIt(t *testing.T) {
	ctx, secret := context.Background(), randomHex(32)
	for _, mode := range []string{"require", "prefer"} {
		own, identity := policyOf(t, secret, mode)
		reader, _ := policyOf(t, secret, mode)
		described := described("node7:15003", identity)
		_, peer := start(t, Handlers{
			Descriptor: func() *Descriptor { return described }, Notify: refuse, Names: address.Names{"service.kv:80", "node7.kv"},
		}, HandshakeOptions{Security: own})
		store := newP2PStore(Options{Security: reader})

		_, err := store.Fetch(ctx, peer)
		require.NoError(t, err, "the address that the engine has been reached at")
		diverted := divert(t, peer)
		_, err = store.Fetch(ctx, diverted)
		if mode == "prefer" {
			require.NoError(t, err, "as Mooncake does")
			continue
		}
		require.ErrorIs(t, err, security.ErrOtherEngine)
		assert.ErrorContains(t, err, "the name asked for is "+diverted+`, and the engine that answers is "node7:15003"`)
		assert.ErrorContains(t, err, "KVFERRY_NAMES")
		assert.Equal(t, status.RejectHandshake, status.Of(err, status.OK))
	}
}

func TestAnEngineGoesByItsNameAndThoseThatItStates(t *testing.T) {
	d := described("node7:15003", randomHex(16))
	d.Names = address.Names{"service.kv:80", "node7.kv", "10.0.0.7:15003"}
	for name, goesBy := range map[string]bool{
		"node7:15003": true, "NODE7:15003": true, "service.kv:80": true, "node7.kv:1": true, "10.0.0.7:15003": true,
		"node8:15003": false, "node7:15004": false, "service.kv:81": false, "10.0.0.8:15003": false,
	} {
		asked, err := address.Parse(name, 0)
		require.NoError(t, err)
		assert.Equal(t, goesBy, checkName(asked, d) == nil, name)
	}
}

func TestFurtherNamesAreToldToEnginesOfTheClusterOnly(t *testing.T) {
	ctx, secret := context.Background(), randomHex(32)
	own, identity := policyOf(t, secret, "prefer")
	_, peer := start(t, Handlers{
		Descriptor: func() *Descriptor { return described("node7:15003", identity) }, Notify: refuse, Names: address.Names{"service.kv:80"},
	}, HandshakeOptions{Security: own})
	member, _ := policyOf(t, secret, "prefer")
	d, err := Client{Security: member}.FetchDescriptor(ctx, peer)
	require.NoError(t, err)
	assert.Equal(t, address.Names{"service.kv:80", peer}, d.Names)
	d, err = Client{}.FetchDescriptor(ctx, peer)
	require.NoError(t, err)
	assert.Empty(t, d.Names)
}

// With certificates TLS does not prove which engine answers.
func TestANotificationIsTakenByTheEngineThatItIsFor(t *testing.T) {
	ctx, secret := context.Background(), randomHex(32)
	own, identity := policyOf(t, secret, "")
	member, _ := policyOf(t, secret, "")
	var taken atomic.Int32
	_, peer := start(t, Handlers{Descriptor: one, Notify: func(Notification, netip.Addr) error {
		taken.Add(1)
		return nil
	}}, HandshakeOptions{Security: own})
	message := Notification{Name: "a", Text: "b"}
	require.NoError(t, Client{Security: member, Identity: identity}.SendNotify(ctx, peer, message))
	require.NoError(t, Client{Security: member}.SendNotify(ctx, peer, message), "for none in particular")
	require.EqualValues(t, 2, taken.Load())

	err := Client{Security: member, Identity: randomHex(16)}.SendNotify(ctx, peer, message)
	require.ErrorIs(t, err, security.ErrOtherEngine, "by its certificate")
	c := Client{Security: member}
	body := mustEncode(addressedNotify{notifyBody(message), notifyRequest{randomHex(16)}})
	reply, err := c.ask(ctx, peer, kindNotify, body)
	require.NoError(t, err)
	assert.Contains(t, string(reply), "the notification is for engine")
	require.EqualValues(t, 2, taken.Load(), "nor by what the request says")

	for _, other := range []string{`null`, `"x"`, `{"for":7}`, `[]`} { // of another program
		_, err = c.ask(ctx, peer, kindNotify, []byte(`{"name":"a","notify_msg":"b","kvferry":`+other+`}`))
		require.NoError(t, err)
	}
	require.EqualValues(t, 6, taken.Load())
}
