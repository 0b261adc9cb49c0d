package metadata

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core/metadata/kv"
	"kvferry/core/metadata/kv/kvtest"
	"kvferry/core/security"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// policyOf is the policy of an engine with a secret. It returns the identity of the engine, too.
func policyOf(t testing.TB, secret, mode string) (*security.Policy, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte(secret), 0o600))
	identity := randomHex(16)
	p, err := security.New(security.Settings{SecretFile: path, Mode: mode}, identity, zap.NewNop())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p, identity
}

// described is the descriptor of an engine with security.
func described(name, identity string) *Descriptor {
	d := sample(1)
	d.Name, d.IsKvferry, d.Identity, d.Hello, d.TLS = name, true, identity, 1, security.Version
	return d
}

func TestADescriptorOverTLSIsThatOfTheEngineThatAnswers(t *testing.T) {
	secret := randomHex(32)
	p, identity := policyOf(t, secret, "")
	client, _ := policyOf(t, secret, "")
	var shown atomic.Pointer[Descriptor]
	shown.Store(described("a", identity))
	_, peer := start(t, Handlers{Descriptor: shown.Load, Notify: refuse}, HandshakeOptions{Security: p})
	c := Client{Security: client}
	d, err := c.FetchDescriptor(context.Background(), peer)
	require.NoError(t, err)
	assert.Equal(t, security.Version, d.TLS)

	shown.Store(described("a", randomHex(16)))
	_, err = c.FetchDescriptor(context.Background(), peer)
	assert.ErrorContains(t, err, "its descriptor is that of engine")
	plain := described("a", identity)
	plain.TLS = 0
	shown.Store(plain)
	_, err = c.FetchDescriptor(context.Background(), peer)
	assert.ErrorContains(t, err, "announces no TLS, which it speaks")
}

func TestAPeerWithoutTLSIsRefusedWithAReasonInEachKindOfAnswer(t *testing.T) {
	p, _ := policyOf(t, randomHex(32), "")
	_, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{Security: p})
	ctx, c := context.Background(), Client{}
	_, err := c.FetchDescriptor(ctx, peer)
	assert.ErrorContains(t, err, "KVFERRY_SECURITY=require")
	assert.ErrorContains(t, c.SendNotify(ctx, peer, Notification{"a", "b"}), "KVFERRY_SECURITY=require")
	assert.ErrorContains(t, c.Probe(ctx, peer), "does not begin TLS")
}

func TestAPeerThatHasSpokenTLSIsNotAskedWithout(t *testing.T) {
	secret := randomHex(32)
	p, identity := policyOf(t, secret, "prefer")
	client, _ := policyOf(t, secret, "prefer")
	c := Client{Security: client}
	l := listen(t, "127.0.0.1:0")
	peer := l.Addr().String()
	s := Serve(l, Handlers{Descriptor: func() *Descriptor { return described("a", identity) }, Notify: refuse}, HandshakeOptions{Security: p})
	_, err := c.FetchDescriptor(context.Background(), peer)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	s = Serve(listen(t, peer), Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{})
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	_, err = c.FetchDescriptor(context.Background(), peer)
	assert.ErrorContains(t, err, "this engine requires TLS")

	_, other := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{})
	_, err = c.FetchDescriptor(context.Background(), other)
	require.NoError(t, err, "a peer that never could")
}

func TestACentralStoreCannotRedirectEnginesWithASecret(t *testing.T) {
	ctx, secret := context.Background(), randomHex(32)
	foreign, stranger := policyOf(t, randomHex(32), "")
	for _, mode := range []string{"require", "prefer"} {
		t.Run(mode, func(t *testing.T) {
			_, url := serveMetadata(t)
			own, identity := policyOf(t, secret, mode)
			reader, _ := policyOf(t, secret, mode)
			store, err := Open(url, Options{Security: own})
			require.NoError(t, err)
			defer func() { require.NoError(t, store.Close()) }()
			require.NoError(t, store.Publish(ctx, kvtest.ClosedPort(t), func() *Descriptor { return described("node1", identity) }))
			looking, err := Open(url, Options{Security: reader})
			require.NoError(t, err)
			defer func() { require.NoError(t, looking.Close()) }()
			d, err := looking.Fetch(ctx, "node1")
			require.NoError(t, err)
			assert.Equal(t, identity, d.Identity)
			_, err = looking.Fetch(ctx, "ram/node1")
			require.NoError(t, err)

			raw, err := kv.Open(url, kv.Options{})
			require.NoError(t, err)
			defer func() { require.NoError(t, raw.Close()) }()
			value, _, err := raw.Get(ctx, "mooncake/ram/node1")
			require.NoError(t, err)
			d, err = ParseDescriptor(value)
			require.NoError(t, err, "Mooncake and engines without security read it as before")
			assert.Equal(t, identity, d.Identity)

			unsigned, _ := described("node1", stranger).Encode(kv.MaxValue)
			plain, _ := sample(1).Encode(kv.MaxValue)
			elsewhere, err := sign("mooncake/ram/node1", unsigned, foreign)
			require.NoError(t, err)
			for what, forged := range map[string][]byte{
				"unsigned": unsigned, "of another secret": elsewhere, "another port": bytes.Replace(value, []byte("15004"), []byte("15005"), 1),
				"a signature cut off": append(bytes.Clone(value[:bytes.LastIndex(value, []byte(signatureKey))]), '}'),
				"like Mooncake's":     plain, "half a signature": append(bytes.Clone(value[:len(value)-20]), `"}`...),
			} {
				require.NoError(t, raw.Put(ctx, "mooncake/ram/node1", forged))
				_, err := looking.Fetch(ctx, "node1")
				require.Error(t, err, what)
				assert.Equal(t, status.RejectHandshake, status.Of(err, status.OK), what)
			}
			require.NoError(t, raw.Put(ctx, "mooncake/ram/node2", value))
			_, err = looking.Fetch(ctx, "node2")
			assert.ErrorContains(t, err, `it is signed for "mooncake/ram/node1", and is found at "mooncake/ram/node2"`)
			require.NoError(t, raw.Put(ctx, "mooncake/ram/node3", plain))
			_, err = looking.Fetch(ctx, "node3")
			if mode == "require" {
				assert.ErrorContains(t, err, "not signed")
			} else {
				require.NoError(t, err, "Mooncake's")
			}
		})
	}
}

// published is an engine's entries in a store, and the store by other policies.
type published struct {
	store     *central
	raw       kv.Store
	url, peer string
}

// publish publishes a name in a cluster's part of a store that behaves as Mooncake's server.
func publish(t *testing.T, own *security.Policy, identity, cluster string) published {
	t.Helper()
	_, url := serveMetadata(t)
	p := published{url: url, peer: kvtest.ClosedPort(t)}
	p.store = p.open(t, own, cluster)
	require.NoError(t, p.store.Publish(context.Background(), p.peer, func() *Descriptor { return described("node1", identity) }))
	var err error
	p.raw, err = kv.Open(url, kv.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.raw.Close()) })
	return p
}

func (p published) open(t *testing.T, by *security.Policy, cluster string) *central {
	t.Helper()
	store, err := Open(p.url, Options{Security: by, ClusterID: cluster})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store.(*central)
}

func (p published) get(t *testing.T, key string) []byte {
	t.Helper()
	value, found, err := p.raw.Get(context.Background(), key)
	require.NoError(t, err)
	require.True(t, found, key)
	return value
}

// replace puts a value in the place of another one, as whoever can write the store can.
func (p published) replace(t *testing.T, key string, value []byte) {
	t.Helper()
	if there, found, err := p.raw.Get(context.Background(), key); err == nil && found {
		require.NoError(t, p.raw.Remove(context.Background(), key, there))
	}
	require.NoError(t, p.raw.Put(context.Background(), key, value))
}

func TestACentralStoreCannotSendNotificationsOfEnginesWithASecretElsewhere(t *testing.T) {
	ctx, secret := context.Background(), randomHex(32)
	foreign, _ := policyOf(t, randomHex(32), "")
	for _, mode := range []string{"require", "prefer"} {
		t.Run(mode, func(t *testing.T) {
			const key = "mooncake/rpc_meta/node1"
			own, identity := policyOf(t, secret, mode)
			reader, _ := policyOf(t, secret, mode)
			p := publish(t, own, identity, "")
			looking := p.open(t, reader, "")
			at, err := looking.HandshakeAddress(ctx, "node1")
			require.NoError(t, err)
			assert.Equal(t, p.peer, at)
			genuine := p.get(t, key)
			asMooncake, err := parseMeta(genuine)
			require.NoError(t, err, "Mooncake and engines without security read it as before")
			assert.Equal(t, p.peer, asMooncake.hostPort())

			plain := mustEncode(rpcMeta{Host: "10.0.0.9", Port: 15003})
			elsewhere, err := signMeta(key, rpcMeta{Host: "10.0.0.9", Port: 15003}, foreign)
			require.NoError(t, err)
			for what, forged := range map[string][]byte{
				"like Mooncake's": plain, "of another secret": elsewhere, "another host": bytes.Replace(genuine, []byte("127.0.0.1"), []byte("127.0.0.2"), 1),
				"a signature cut off": append(bytes.Clone(genuine[:bytes.LastIndex(genuine, []byte(signatureKey))]), '}'),
			} {
				p.replace(t, key, forged)
				_, err := looking.HandshakeAddress(ctx, "node1")
				require.Error(t, err, what)
			}
			p.replace(t, "mooncake/rpc_meta/node2", genuine)
			_, err = looking.HandshakeAddress(ctx, "node2")
			assert.ErrorContains(t, err, "somebody has put it there")
			p.replace(t, "mooncake/rpc_meta/node3", plain)
			at, err = looking.HandshakeAddress(ctx, "node3")
			if mode == "require" {
				assert.ErrorContains(t, err, "not signed")
			} else {
				require.NoError(t, err, "Mooncake's")
				assert.Equal(t, "10.0.0.9:15003", at)
			}
		})
	}
}

func TestEntriesOfAnotherClusterAreRefused(t *testing.T) {
	ctx, secret := context.Background(), randomHex(32)
	own, identity := policyOf(t, secret, "")
	reader, _ := policyOf(t, secret, "")
	p := publish(t, own, identity, "blue")
	blue, green := p.open(t, reader, "blue"), p.open(t, reader, "green")
	_, err := blue.Fetch(ctx, "node1")
	require.NoError(t, err)
	for _, kind := range []string{"ram", "rpc_meta"} {
		p.replace(t, "mooncake/green/"+kind+"/node1", p.get(t, "mooncake/blue/"+kind+"/node1"))
	}
	_, err = green.Fetch(ctx, "node1")
	require.ErrorContains(t, err, `signed for "mooncake/blue/ram/node1", and is found at "mooncake/green/ram/node1"`)
	_, err = green.HandshakeAddress(ctx, "node1")
	require.ErrorContains(t, err, `signed for "mooncake/blue/rpc_meta/node1"`)
}

func TestEntriesAreSignedAgainAfterTheSecretHasChanged(t *testing.T) {
	ctx := context.Background()
	oldSecret, newSecret := randomHex(32), randomHex(32)
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte(oldSecret), 0o600))
	identity := randomHex(16)
	own, err := security.New(security.Settings{SecretFile: path}, identity, zap.NewNop())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, own.Close()) })
	p := publish(t, own, identity, "")
	reader, _ := policyOf(t, newSecret, "")
	looking := p.open(t, reader, "")
	_, err = looking.HandshakeAddress(ctx, "node1")
	require.ErrorContains(t, err, "another cluster secret")

	require.NoError(t, os.WriteFile(path, []byte(newSecret), 0o600))
	require.Eventually(t, func() bool { return own.Generation() == 1 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, p.store.restore(ctx))
	at, err := looking.HandshakeAddress(ctx, "node1")
	require.NoError(t, err)
	assert.Equal(t, p.peer, at)
	_, err = looking.Fetch(ctx, "node1")
	require.NoError(t, err)
	require.NoError(t, p.store.Withdraw(ctx))
	_, err = looking.HandshakeAddress(ctx, "node1")
	require.ErrorContains(t, err, "no key", "the entry that was signed again is removed in the end")
}

// A signature does not say when it was made.
func TestAFormerEntryIsRefusedByWhoHasSeenALaterOne(t *testing.T) {
	ctx, secret := context.Background(), randomHex(32)
	own, identity := policyOf(t, secret, "")
	reader, _ := policyOf(t, secret, "")
	p := publish(t, own, identity, "")
	former, formerAt := p.get(t, "mooncake/ram/node1"), p.get(t, "mooncake/rpc_meta/node1")
	require.NoError(t, p.store.Withdraw(ctx))
	successor, identity := policyOf(t, secret, "")
	live, peer := start(t, Handlers{Name: "node1", Descriptor: func() *Descriptor { return nil }, Notify: refuse}, HandshakeOptions{Security: successor})
	defer func() { require.NoError(t, live.Close()) }()
	require.NoError(t, p.open(t, successor, "").Publish(ctx, peer, func() *Descriptor { return described("node1", identity) }))
	looking := p.open(t, reader, "")
	latest, err := looking.Fetch(ctx, "node1")
	require.NoError(t, err)
	_, err = looking.HandshakeAddress(ctx, "node1")
	require.NoError(t, err)

	p.replace(t, "mooncake/ram/node1", former)
	p.replace(t, "mooncake/rpc_meta/node1", formerAt)
	replayed, err := looking.Fetch(ctx, "node1")
	require.NoError(t, err)
	assert.ErrorContains(t, replayed.CheckVersion(latest), "is stale")
	at, err := looking.HandshakeAddress(ctx, "node1")
	require.NoError(t, err)
	assert.Equal(t, peer, at, "the address that was found before is kept")
}

// FuzzFirstBytesOfAHandshake sends bytes to servers of all modes. None may answer what it does not answer without TLS, or hang.
func FuzzFirstBytesOfAHandshake(f *testing.F) {
	f.Add([]byte{0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0})
	f.Add([]byte{0x16, 3})
	f.Add(encodeFrame(kindProbe, false, []byte("{}")))
	secret := randomHex(32)
	var peers []string
	for _, mode := range []string{"off", "prefer", "require"} {
		p, _ := policyOf(f, secret, mode)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(f, err)
		s := Serve(l.(*net.TCPListener), Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{Security: p})
		f.Cleanup(func() { require.NoError(f, s.Close()) })
		peers = append(peers, l.Addr().String())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for i, peer := range peers {
			conn := send(t, peer, b)
			_ = conn.CloseWrite() // the server may have reset it
			var answer bytes.Buffer
			_, err := answer.ReadFrom(conn)
			if err != nil {
				require.NotContains(t, err.Error(), "timeout")
			}
			if i == 2 {
				require.False(t, strings.Contains(answer.String(), "tcp_data_port"))
			}
		}
	})
}

func TestAnEngineThatIsRefusedKeepsItsName(t *testing.T) {
	ctx, secret := context.Background(), randomHex(32)
	own, identity := policyOf(t, secret, "require")
	_, peer := start(t, Handlers{Name: "node1", Descriptor: func() *Descriptor { return nil }, Notify: refuse}, HandshakeOptions{Security: own})
	for name, other := range map[string]func() *security.Policy{
		"another secret": func() *security.Policy { p, _ := policyOf(t, randomHex(32), "require"); return p },
		"prefer":         func() *security.Policy { p, _ := policyOf(t, randomHex(32), "prefer"); return p },
		"off":            func() *security.Policy { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			_, url := serveMetadata(t)
			store, err := Open(url, Options{Security: own})
			require.NoError(t, err)
			defer func() { require.NoError(t, store.Close()) }()
			require.NoError(t, store.Publish(ctx, peer, func() *Descriptor { return described("node1", identity) }))
			late, err := Open(url, Options{Security: other()})
			require.NoError(t, err)
			defer func() { require.NoError(t, late.Close()) }()
			err = late.Publish(ctx, kvtest.ClosedPort(t), func() *Descriptor { return described("node1", randomHex(16)) })
			require.ErrorContains(t, err, "it is not known whether that is alive")
			at, err := store.HandshakeAddress(ctx, "node1")
			require.NoError(t, err)
			assert.Equal(t, peer, at)
		})
	}
}
