package metadata

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core/metadata/kv"
	"kvferry/core/metadata/kv/kvtest"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// member is an engine's store, with a handshake server that answers probes.
type member struct {
	*central
	name, at string
	buffers  atomic.Int32
}

func (m *member) self() *Descriptor {
	d := sample(int(m.buffers.Load()))
	d.Name = m.name
	return d
}

func (m *member) publish() error { return m.Publish(context.Background(), m.at, m.self) }

// join starts an engine's store and handshake server, and publishes nothing yet.
func join(t *testing.T, url, name string, o Options) *member {
	store, err := Open(url, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	_, at := start(t, Handlers{Name: name, Descriptor: func() *Descriptor { return nil }, Notify: refuse}, HandshakeOptions{})
	return &member{central: store.(*central), name: name, at: at}
}

func entryOf(t *testing.T, hostPort string) string {
	meta, err := metaOf(hostPort)
	require.NoError(t, err)
	return string(mustEncode(meta))
}

func TestWhatAnEnginePublishesIsFoundByItsName(t *testing.T) {
	ctx := context.Background()
	for _, o := range []Options{{}, {ClusterID: "blue"}, {ClusterID: "blue/"}} {
		for _, name := range []string{"node1", "node1:12345", "node1:12345:npu_3", "::1", "[::1]:5"} {
			server, url := serveMetadata(t)
			m := join(t, url, name, o)
			m.buffers.Store(2)
			require.NoError(t, m.publish())
			prefix := "mooncake/"
			if o.ClusterID != "" {
				prefix += "blue/"
			}
			assert.ElementsMatch(t, []string{prefix + "rpc_meta/" + name, prefix + "ram/" + name}, server.keys())

			peer := join(t, url, "other", o)
			for _, spelling := range []string{name, "ram/" + name} {
				d, err := peer.Fetch(ctx, spelling)
				require.NoError(t, err)
				assert.Len(t, d.Buffers, 2)
				assert.Equal(t, name, d.Name)
				at, err := peer.HandshakeAddress(ctx, spelling)
				require.NoError(t, err)
				assert.Equal(t, m.at, at)
			}
			require.NoError(t, m.Withdraw(ctx))
			assert.Empty(t, server.keys())
			require.NoError(t, m.publish(), "nothing comes back")
			assert.Empty(t, server.keys())
			_, err := peer.Fetch(ctx, name)
			assert.ErrorContains(t, err, `there is no segment "`+name+`"`)
			_, err = peer.HandshakeAddress(ctx, name)
			assert.ErrorContains(t, err, `there is no engine "`+name+`"`)
			assert.Equal(t, status.Metadata, status.Of(err, status.OK))
		}
	}
}

func TestAnAddressIsPublishedAsMooncakeReadsIt(t *testing.T) {
	assert.Equal(t, `{"ip_or_host_name":"10.0.0.1","rpc_port":15000}`, entryOf(t, "10.0.0.1:15000"))
	assert.Equal(t, `{"ip_or_host_name":"fe80::1%eth0","rpc_port":15000}`, entryOf(t, "[fe80::1%eth0]:15000"))
	m, err := parseMeta([]byte("{\"rpc_port\" : 7, \"ip_or_host_name\": \"[::1]\", \"more\": []}\n"))
	require.NoError(t, err)
	assert.Equal(t, "[::1]:7", m.hostPort())
}

func TestSegmentsOfAnotherKindAreFoundByTheirKind(t *testing.T) {
	server, url := serveMetadata(t)
	encoded, _ := sample(1).Encode(kv.MaxValue)
	server.set("mooncake/nvmeof/disk", string(encoded))
	_, err := join(t, url, "a", Options{}).Fetch(context.Background(), "nvmeof/disk")
	assert.NoError(t, err)
}

func TestWithoutADataPortThereIsNoSegmentYet(t *testing.T) {
	server, url := serveMetadata(t)
	m := join(t, url, "a", Options{})
	require.NoError(t, m.Publish(context.Background(), m.at, func() *Descriptor { return &Descriptor{Name: "a"} }))
	assert.Equal(t, []string{"mooncake/rpc_meta/a"}, server.keys())
	require.NoError(t, m.Withdraw(context.Background()))
	assert.Empty(t, server.keys())
}

func TestADeadPredecessorIsReplaced(t *testing.T) {
	_, sibling := start(t, Handlers{Name: "b", Descriptor: one, Notify: refuse}, HandshakeOptions{})
	stranger := listen(t, "127.0.0.1:0")
	var served sync.WaitGroup
	served.Go(func() {
		for conn, err := stranger.Accept(); err == nil; conn, err = stranger.Accept() {
			_, _ = conn.Read(make([]byte, 100))
			_, _ = conn.Write([]byte("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"))
			_ = conn.Close()
		}
	})
	t.Cleanup(served.Wait)
	t.Cleanup(func() { require.NoError(t, stranger.Close()) })
	for what, at := range map[string]string{
		"nobody": kvtest.ClosedPort(t), "an engine of another name": sibling,
		"something else": stranger.Addr().String(),
	} {
		t.Run(what, func(t *testing.T) {
			server, url := serveMetadata(t)
			server.set("mooncake/rpc_meta/a", entryOf(t, at))
			server.set("mooncake/ram/a", "what the dead one left")
			m := join(t, url, "a", Options{})
			require.NoError(t, m.publish())
			at, err := parseMeta([]byte(server.value("mooncake/rpc_meta/a")))
			require.NoError(t, err)
			assert.Equal(t, m.at, at.hostPort())
			d, err := m.Fetch(context.Background(), "a")
			require.NoError(t, err)
			assert.Empty(t, d.Buffers)
		})
	}
	t.Run("at the same address", func(t *testing.T) {
		server, url := serveMetadata(t)
		m := join(t, url, "a", Options{})
		server.set("mooncake/rpc_meta/a", entryOf(t, m.at)+"\n")
		require.NoError(t, m.publish())
		require.NoError(t, m.Withdraw(context.Background()))
		assert.Empty(t, server.keys())
	})
}

func TestALiveNamesakeLosesNothing(t *testing.T) {
	_, mooncake := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{}) // tells no name
	for what, at := range map[string]string{"ours": "", "Mooncake's": mooncake} {
		t.Run(what, func(t *testing.T) {
			server, url := serveMetadata(t)
			first := join(t, url, "a", Options{})
			if at != "" {
				first.at = at
			}
			require.NoError(t, first.publish())
			entry, segment := server.value("mooncake/rpc_meta/a"), server.value("mooncake/ram/a")

			second := join(t, url, "a", Options{})
			err := second.publish()
			require.ErrorContains(t, err, `the name "a" is taken: a live engine answers at `+first.at)
			require.Equal(t, status.Metadata, status.Of(err, status.OK))
			require.NoError(t, second.Withdraw(context.Background()))
			assert.Equal(t, entry, server.value("mooncake/rpc_meta/a"))
			assert.Equal(t, segment, server.value("mooncake/ram/a"))
		})
	}
}

func TestANamesakeThatTakesConnectionsAndSaysNothingIsNotTakenForDead(t *testing.T) {
	server, url := serveMetadata(t)
	hung := listen(t, "127.0.0.1:0")
	defer hung.Close()
	entry := entryOf(t, hung.Addr().String())
	server.set("mooncake/rpc_meta/a", entry)
	m := join(t, url, "a", Options{})
	m.probe.ReplyTimeout = tick
	assert.ErrorContains(t, m.publish(), "it is not known whether that is alive")
	require.NoError(t, m.Withdraw(context.Background()))
	assert.Equal(t, entry, server.value("mooncake/rpc_meta/a"))
}

func TestOnlyWhatSpeaksOfAnAbsenceIsTakenForOne(t *testing.T) {
	dial := func(err error) error {
		return peerError("a", kindProbe, status.Errorf(status.Socket, "%w", &net.OpError{Op: "dial", Err: err}))
	}
	for _, err := range []error{errors.New("too many open files"), context.Canceled, &net.DNSError{IsTemporary: true}} {
		assert.False(t, isNobody(dial(err)), err)
	}
	assert.False(t, isNobody(status.Errorf(status.Socket, "connection reset by peer")))
	assert.True(t, isNobody(dial(&net.DNSError{IsNotFound: true})))
	assert.True(t, isNobody(dial(context.DeadlineExceeded)))
	assert.True(t, isNobody(status.Errorf(status.MalformedJSON, "garbage")))
}

func TestWhatANamesakeTookOverMeanwhileIsNotRemoved(t *testing.T) {
	server, url := serveMetadata(t)
	m := join(t, url, "a", Options{})
	require.NoError(t, m.publish())
	server.set("mooncake/rpc_meta/a", "theirs")
	server.set("mooncake/ram/a", "theirs, too")
	require.NoError(t, m.Withdraw(context.Background()))
	assert.Equal(t, "theirs", server.value("mooncake/rpc_meta/a"))
	assert.Equal(t, "theirs, too", server.value("mooncake/ram/a"))
}

func TestAStoreThatTakesAValueAndDoesNotSayItIsLeftCleanAllTheSame(t *testing.T) {
	for _, key := range []string{"rpc_meta", "ram"} {
		t.Run(key, func(t *testing.T) {
			server, url := serveMetadata(t)
			m := join(t, url, "a", Options{})
			if key == "ram" {
				require.NoError(t, m.publish())
			}
			server.fail(func(w http.ResponseWriter, r *http.Request) {
				asked := r.URL.Query().Get("key")
				if r.Method == http.MethodPut {
					body, _ := io.ReadAll(r.Body)
					server.values[asked] = string(body)
					http.Error(w, "and yet it was taken", http.StatusInternalServerError)
				} else if value, found := server.values[asked]; found {
					_, _ = w.Write([]byte(value))
				} else {
					http.Error(w, "", http.StatusNotFound)
				}
			})
			m.buffers.Store(1)
			require.ErrorContains(t, m.publish(), "and yet it was taken")
			server.fail(nil)
			require.NotEmpty(t, server.value("mooncake/"+key+"/a"))
			require.NoError(t, m.Withdraw(context.Background()))
			assert.Empty(t, server.keys())
		})
	}
}

func TestAStoreThatIsAwayIsUsedAgainWhenItIsBack(t *testing.T) {
	ctx := context.Background()
	server, url := serveMetadata(t)
	m, peer := join(t, url, "a", Options{}), join(t, url, "b", Options{})
	require.NoError(t, m.publish())
	_, err := peer.HandshakeAddress(ctx, "a")
	require.NoError(t, err)

	server.fail(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "away", http.StatusServiceUnavailable) })
	_, err = peer.Fetch(ctx, "a")
	assert.ErrorContains(t, err, "metadata store "+url+": GET mooncake/ram/a: ")
	at, err := peer.HandshakeAddress(ctx, "a")
	require.NoError(t, err, "it was found before")
	assert.Equal(t, m.at, at)
	_, err = peer.HandshakeAddress(ctx, "c")
	assert.ErrorContains(t, err, "away")
	m.buffers.Store(1)
	assert.ErrorContains(t, m.publish(), "away")
	assert.ErrorContains(t, join(t, url, "d", Options{}).publish(), "away")

	server.fail(nil)
	_, err = peer.Fetch(ctx, "a")
	assert.NoError(t, err)
	require.NoError(t, m.publish())
	d, err := peer.Fetch(ctx, "a")
	require.NoError(t, err)
	assert.Len(t, d.Buffers, 1)
}

func TestGarbageUnderAKeyIsAnErrorThatNamesIt(t *testing.T) {
	ctx := context.Background()
	for _, garbage := range []string{"", "null", "[]", "{}", `"x"`, "\x00\xff", `{"ip_or_host_name":"a"}`, `{"ip_or_host_name":"a","rpc_port":65536}`,
		`{"ip_or_host_name":"a","rpc_port":"1"}`, `{"ip_or_host_name":"a b","rpc_port":1}`, strings.Repeat("x", 1<<20), strings.Repeat("[", 1<<20+1)} {
		server, url := serveMetadata(t)
		server.set("mooncake/rpc_meta/a", garbage)
		server.set("mooncake/ram/a", garbage)
		m := join(t, url, "a", Options{})
		_, fetched := m.Fetch(ctx, "a")
		_, found := m.HandshakeAddress(ctx, "a")
		for key, err := range map[string]error{"ram": fetched, "rpc_meta": found, "rpc_meta/": m.publish()} {
			require.ErrorContains(t, err, url)
			require.ErrorContains(t, err, "mooncake/"+strings.TrimSuffix(key, "/")+"/a")
			require.NotEqual(t, status.OK, status.Of(err, status.OK), "it has a code")
			require.Less(t, len(err.Error()), 1000)
		}
		require.NoError(t, m.Withdraw(ctx))
		assert.Equal(t, garbage, server.value("mooncake/rpc_meta/a"), "whatever it is, it is not ours")
	}
}

func FuzzValuesOfAStore(f *testing.F) {
	encoded, _ := sample(2).Encode(kv.MaxValue)
	f.Add(encoded)
	f.Add([]byte(`{"ip_or_host_name":"[::1]","rpc_port":15000}`))
	f.Add([]byte(`{"ip_or_host_name":"a:1","rpc_port":-1}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		if m, err := parseMeta(value); err == nil {
			host, _, err := net.SplitHostPort(m.hostPort())
			require.NoError(t, err)
			require.Equal(t, m.Host, host)
		}
		if d, err := ParseDescriptor(value); err == nil {
			require.NotZero(t, d.DataPort)
		}
	})
}

func TestADescriptorThatIsTooLongIsCutToWhatTheStoreTakes(t *testing.T) {
	server, url := serveMetadata(t)
	m := join(t, url, "a", Options{})
	m.buffers.Store(20000)
	require.NoError(t, m.publish())
	assert.LessOrEqual(t, len(server.value("mooncake/ram/a")), 1<<20)
	d, err := m.Fetch(context.Background(), "a")
	require.NoError(t, err)
	assert.True(t, d.Truncated)
}

func TestRegistrationsAtOnceAreWrittenTogether(t *testing.T) {
	server, url := serveMetadata(t)
	m := join(t, url, "a", Options{})
	require.NoError(t, m.publish())
	require.NoError(t, m.acquire(context.Background()))
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			m.buffers.Add(1)
			assert.NoError(t, m.publish())
		})
	}
	require.Eventually(t, func() bool { return m.wanted.Load() == 51 }, 10*time.Second, time.Millisecond)
	m.release()
	all.Wait()
	assert.Equal(t, 2, server.requests("PUT mooncake/ram/a"))
	d, err := m.Fetch(context.Background(), "a")
	require.NoError(t, err)
	assert.Len(t, d.Buffers, 50)
}

func TestNobodyWaitsLongerThanHisContextForTheTurn(t *testing.T) {
	_, url := serveMetadata(t)
	m := join(t, url, "a", Options{})
	require.NoError(t, m.acquire(context.Background()))
	ctx, stop := context.WithTimeout(context.Background(), tick)
	defer stop()
	assert.ErrorIs(t, m.Publish(ctx, m.at, m.self), context.DeadlineExceeded)
	assert.ErrorIs(t, m.Withdraw(ctx), context.DeadlineExceeded)
	m.release()
}

func TestEntriesThatAStoreHasLostAreWrittenAgain(t *testing.T) {
	server, url := serveMetadata(t)
	m := join(t, url, "a", Options{KeepInterval: time.Millisecond})
	require.NoError(t, m.publish())
	entry := server.value("mooncake/rpc_meta/a")
	for range 3 {
		m.buffers.Add(1)
		server.clear()
		require.Eventually(t, func() bool { return len(server.keys()) == 2 }, 10*time.Second, time.Millisecond)
		assert.Equal(t, entry, server.value("mooncake/rpc_meta/a"))
		d, err := m.Fetch(context.Background(), "a")
		require.NoError(t, err)
		assert.Len(t, d.Buffers, int(m.buffers.Load()))
	}
	require.NoError(t, m.Withdraw(context.Background()))
	require.NoError(t, m.restore(context.Background()))
	assert.Empty(t, server.keys(), "what was withdrawn stays away")
}

func TestANameThatSomebodyElseHasNowIsNotTakenBack(t *testing.T) {
	server, url := serveMetadata(t)
	m := join(t, url, "a", Options{})
	require.NoError(t, m.restore(context.Background()), "there is nothing yet")
	require.NoError(t, m.publish())
	server.set("mooncake/rpc_meta/a", "theirs")
	assert.ErrorContains(t, m.restore(context.Background()), "mooncake/rpc_meta/a holds another engine's address, \"theirs\"")
	assert.Equal(t, "theirs", server.value("mooncake/rpc_meta/a"))
}

func TestAThousandEnginesShareAStore(t *testing.T) {
	const engines = 1000
	ctx, done := context.WithTimeout(context.Background(), time.Minute)
	defer done()
	server, url := serveMetadata(t)
	var stores [engines]Store
	var all sync.WaitGroup
	for i := range engines {
		all.Go(func() {
			store, err := Open(url, Options{Central: kv.Options{Connection: kv.Connection{ConnectTimeout: time.Minute, ReplyTimeout: time.Minute}}})
			if !assert.NoError(t, err) {
				return
			}
			stores[i] = store
			d := sample(10)
			d.Name = strconv.Itoa(i)
			assert.NoError(t, store.Publish(ctx, net.JoinHostPort("10.0.0.1", strconv.Itoa(15000+i)), func() *Descriptor { return d }))
		})
	}
	all.Wait()
	require.Len(t, server.keys(), 2*engines)
	for i, store := range stores {
		all.Go(func() {
			peer := strconv.Itoa((i + 1) % engines)
			d, err := store.Fetch(ctx, peer)
			assert.NoError(t, err)
			assert.Equal(t, peer, d.Name)
			at, err := store.HandshakeAddress(ctx, peer)
			assert.NoError(t, err)
			assert.Equal(t, net.JoinHostPort("10.0.0.1", strconv.Itoa(15000+(i+1)%engines)), at)
		})
	}
	all.Wait()
	for _, store := range stores {
		all.Go(func() {
			assert.NoError(t, store.Withdraw(ctx))
			assert.NoError(t, store.Close())
		})
	}
	all.Wait()
	assert.Empty(t, server.keys())
}
