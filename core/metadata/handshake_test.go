package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// tick is a step time-out that tests wait for.
const tick = 50 * time.Millisecond

func listen(t *testing.T, address string) *net.TCPListener {
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
	return l.(*net.TCPListener)
}

// start serves handshakes on a port of 127.0.0.1 until the test ends.
func start(t *testing.T, h Handlers, o HandshakeOptions) (s *Server, peer string) {
	l := listen(t, "127.0.0.1:0")
	s = Serve(l, h, o)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s, l.Addr().String()
}

func refuse(Notification, netip.Addr) error { return errors.New("the inbox is full") }

func one() *Descriptor { return sample(1) }

// send opens a connection and writes to it.
func send(t *testing.T, peer string, b []byte) *net.TCPConn {
	conn, err := net.Dial("tcp", peer)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = conn.Write(b)
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	return conn.(*net.TCPConn)
}

// ends checks that a server closes a connection without an answer.
func ends(t *testing.T, conn *net.TCPConn) {
	got, err := io.ReadAll(conn)
	assert.Empty(t, got)
	if err != nil {
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	}
}

func TestAPeerGetsTheDescriptorAsItIsNow(t *testing.T) {
	var buffers atomic.Int32
	_, peer := start(t, Handlers{Descriptor: func() *Descriptor { return sample(int(buffers.Load())) }, Notify: refuse}, HandshakeOptions{})
	for n := range 3 {
		buffers.Store(int32(n))
		d, err := Client{}.FetchDescriptor(context.Background(), peer)
		require.NoError(t, err)
		assert.Len(t, d.Buffers, n)
		assert.Equal(t, "::1", d.DataHost)
	}
}

func TestWithCentralMetadataThereIsNoDescriptorToFetch(t *testing.T) {
	_, peer := start(t, Handlers{Descriptor: func() *Descriptor { return nil }, Notify: refuse}, HandshakeOptions{})
	_, err := Client{}.FetchDescriptor(context.Background(), peer)
	require.Error(t, err)
	assert.Equal(t, status.MalformedJSON, status.Of(err, status.OK))
	assert.Contains(t, err.Error(), "central store")
	assert.Contains(t, err.Error(), peer)
}

func TestADescriptorOverTheLimitArrivesCutAndIsLogged(t *testing.T) {
	logged, logs := observer.New(zap.WarnLevel)
	_, peer := start(t, Handlers{Descriptor: func() *Descriptor { return sample(100_000) }, Notify: refuse}, HandshakeOptions{Log: zap.New(logged)})
	d, err := Client{}.FetchDescriptor(context.Background(), peer)
	require.NoError(t, err)
	assert.Greater(t, len(d.Buffers), 10_000)
	assert.Less(t, len(d.Buffers), 100_000)
	require.Equal(t, 1, logs.Len())
	assert.Contains(t, logs.All()[0].ContextMap(), "MC_HANDSHAKE_MAX_LENGTH")
}

func TestNotificationsArriveAsTheyWereSent(t *testing.T) {
	received := make(chan Notification, 1)
	_, peer := start(t, Handlers{Descriptor: one, Notify: func(n Notification, _ netip.Addr) error { received <- n; return nil }}, HandshakeOptions{})
	for _, n := range []Notification{{"a", "b"}, {}, {"é\x00\n", strings.Repeat("<世界>", 20_000)}} {
		require.NoError(t, Client{}.SendNotify(context.Background(), peer, n))
		assert.Equal(t, n, <-received)
	}
}

func TestARejectedNotificationIsAnErrorOfTheSender(t *testing.T) {
	_, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{})
	err := Client{}.SendNotify(context.Background(), peer, Notification{"a", "b"})
	assert.Equal(t, status.RejectHandshake, status.Of(err, status.OK))
	assert.ErrorContains(t, err, peer)
	assert.ErrorContains(t, err, "the inbox is full", "the peer's reason")
}

func TestNotificationsThatAreArrivingTakeABoundedPartOfMemory(t *testing.T) {
	_, peer := start(t, Handlers{Descriptor: one, Notify: func(Notification, netip.Addr) error { return nil }},
		HandshakeOptions{MaxReceiving: 2 << 20, StepTimeout: time.Hour})
	long := Notification{Text: strings.Repeat("a", DefaultMaxLength/2)}
	body := mustEncode(notifyBody(long))
	for range 3 {
		sendFrom(t, "127.0.0.2", peer, encodeFrame(kindNotify, false, body)[:DefaultMaxLength/4])
	}
	require.Eventually(t, func() bool {
		conn := sendFrom(t, "127.0.0.2", peer, encodeFrame(kindNotify, false, body))
		reply, err := io.ReadAll(conn)
		return err == nil && bytes.Contains(reply, []byte("127.0.0.2 holds"))
	}, 10*time.Second, time.Millisecond, "the share of the address is used up, and it is told")
	require.NoError(t, Client{}.SendNotify(context.Background(), peer, long), "from another address")
}

func TestNotificationsThatCannotBeSentWholeAreNotSent(t *testing.T) {
	_, peer := start(t, Handlers{Descriptor: one, Notify: func(Notification, netip.Addr) error { t.Error("one arrived"); return nil }}, HandshakeOptions{})
	for _, n := range []Notification{{Name: strings.Repeat("a", DefaultMaxLength)}, {Text: strings.Repeat("a", DefaultMaxLength)}} {
		err := Client{}.SendNotify(context.Background(), peer, n)
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
	}
}

func TestBytesThatAreNotUTF8ArriveAsReplacementCharacters(t *testing.T) {
	received := make(chan Notification, 1)
	_, peer := start(t, Handlers{Descriptor: one, Notify: func(n Notification, _ netip.Addr) error { received <- n; return nil }}, HandshakeOptions{})
	for sent, arrives := range map[string]string{
		"\xff\xfe binary": "\ufffd\ufffd binary", "cut \xe4\xb8": "cut \ufffd\ufffd", "\xed\xa0\x80": "\ufffd\ufffd\ufffd",
	} {
		require.NoError(t, Client{}.SendNotify(context.Background(), peer, Notification{sent, sent}))
		assert.Equal(t, Notification{arrives, arrives}, <-received)
	}
}

func TestAProbeFindsWhoAnswersAndWhoDoesNot(t *testing.T) {
	s, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{})
	require.NoError(t, Client{}.Probe(context.Background(), peer))
	require.NoError(t, s.Close())
	err := Client{}.Probe(context.Background(), peer)
	assert.ErrorIs(t, err, syscall.ECONNREFUSED)
	assert.Equal(t, status.Socket, status.Of(err, status.OK))
	assert.ErrorContains(t, err, peer)
}

func TestEveryRequestIsAnsweredByAFrameOfItsKind(t *testing.T) {
	_, peer := start(t, Handlers{Descriptor: one, Notify: func(Notification, netip.Addr) error { return nil }}, HandshakeOptions{})
	for _, c := range []struct {
		request []byte
		kind    frameKind
		old     bool
		says    string
	}{
		{encodeFrame(kindConnection, false, []byte(`{"local_nic_path":"x"}`)), kindConnection, false, `"reply_msg":""`},
		{encodeFrame(kindConnection, true, []byte(`{"local_nic_path":"x"}`)), kindConnection, true, `"reply_msg":""`},
		{encodeFrame(kindMetadata, false, []byte(`{}`)), kindMetadata, false, `"tcp_data_port":15004`},
		{encodeFrame(kindMetadata, false, nil), kindMetadata, false, `"tcp_data_port":15004`},
		{encodeFrame(kindMetadata, false, []byte(fromMooncake[2])), kindMetadata, false, `"tcp_data_port":15004`},
		{encodeFrame(kindNotify, false, []byte(`{"name":"a","notify_msg":"b"}`)), kindNotify, false, `{"name":"","notify_msg":"success"}`},
		{encodeFrame(kindProbe, false, []byte(`{}`)), kindProbe, false, `{"status":"success"}`},
	} {
		conn := send(t, peer, c.request)
		f, err := readFrame(conn, DefaultMaxLength)
		require.NoError(t, err)
		assert.Equal(t, c.kind, f.kind)
		assert.Equal(t, c.old, f.old)
		body, err := f.readBody()
		require.NoError(t, err)
		assert.Contains(t, string(body), c.says)
		n, err := conn.Read(make([]byte, 1))
		assert.Zero(t, n)
		assert.Equal(t, io.EOF, err, "the server shuts its write side down after the answer")
	}
}

func TestAServerOutlivesHostilePeers(t *testing.T) {
	_, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{StepTimeout: tick})
	for name, stream := range map[string][]byte{
		"length 0":               announce(0, ""),
		"length over the limit":  announce(DefaultMaxLength+1, "\x01"),
		"absurd length":          announce(1<<63, "\x01"),
		"half a header":          {1, 2, 3},
		"header only":            announce(100, ""),
		"big and nothing":        announce(DefaultMaxLength, "\x01"),
		"big notify and nothing": announce(DefaultMaxLength, "\x02{"),
		"notify: garbage":        encodeFrame(kindNotify, false, []byte("garbage")),
		"notify: no strings":     encodeFrame(kindNotify, false, []byte(`{"name":[],"notify_msg":{}}`)),
		"notify: no body":        encodeFrame(kindNotify, false, nil),
		"no frames":              []byte("GET / HTTP/1.1\r\n\r\n"),
		"silence":                {},
	} {
		t.Run(name, func(t *testing.T) {
			ends(t, send(t, peer, stream))
			require.NoError(t, Client{}.Probe(context.Background(), peer))
		})
	}
}

func TestASlowTrickleIsCutOffInTime(t *testing.T) {
	_, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{StepTimeout: tick})
	conn := send(t, peer, announce(1<<20, "\x02"))
	ticker := time.NewTicker(tick / 10)
	defer ticker.Stop()
	for begun := time.Now(); ; <-ticker.C {
		if _, err := conn.Write([]byte(" ")); err != nil {
			return
		}
		require.Less(t, time.Since(begun), 10*time.Second, "every byte gave the peer more time")
	}
}

func TestAPeerThatNeverClosesIsLeft(t *testing.T) {
	logged, logs := observer.New(zap.WarnLevel)
	s, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{StepTimeout: tick, MaxConnections: 1, Log: zap.New(logged)})
	conn := send(t, peer, encodeFrame(kindProbe, false, []byte("{}")))
	require.NoError(t, Client{}.Probe(context.Background(), peer), "the only slot is given back")
	require.NoError(t, s.Close())
	_, err := io.ReadAll(conn)
	assert.NoError(t, err)
	assert.Zero(t, logs.Len())
}

func TestAPeerThatDoesNotReadItsAnswerIsLeft(t *testing.T) {
	_, peer := start(t, Handlers{Descriptor: func() *Descriptor { return sample(200_000) }, Notify: refuse},
		HandshakeOptions{StepTimeout: 10 * tick, MaxConnections: 1, MaxLength: 128 << 20})
	conn := send(t, peer, nil)
	require.NoError(t, conn.SetReadBuffer(4096))
	_, err := conn.Write(encodeFrame(kindMetadata, false, []byte("{}")))
	require.NoError(t, err)
	require.NoError(t, Client{}.Probe(context.Background(), peer), "the only slot is given back")
}

func TestTwoHundredPeersAtOnceAreAllAnswered(t *testing.T) {
	var notified atomic.Int32
	_, peer := start(t, Handlers{Descriptor: one, Notify: func(Notification, netip.Addr) error { notified.Add(1); return nil }},
		HandshakeOptions{MaxConnections: 16, Patience: time.Minute})
	var peers sync.WaitGroup
	for i := range 200 {
		peers.Go(func() {
			switch i % 4 {
			case 0:
				assert.NoError(t, Client{}.Probe(context.Background(), peer))
			case 1:
				assert.NoError(t, Client{}.SendNotify(context.Background(), peer, Notification{Name: fmt.Sprint(i)}))
			default:
				_, err := Client{}.FetchDescriptor(context.Background(), peer)
				assert.NoError(t, err)
			}
		})
	}
	peers.Wait()
	assert.EqualValues(t, 50, notified.Load())
}

func TestIdlePeersOverTheLimitHoldUpOthersForOneTimeOutOnly(t *testing.T) {
	_, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{MaxConnections: 4, StepTimeout: tick})
	for range 8 {
		send(t, peer, nil)
	}
	require.NoError(t, Client{ReplyTimeout: 10 * time.Second}.Probe(context.Background(), peer))
}

// sendFrom opens a connection from an address of this machine.
func sendFrom(t *testing.T, from, peer string, b []byte) *net.TCPConn {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", peer)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = conn.Write(b)
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	return conn.(*net.TCPConn)
}

func TestPeersThatStallDelayNobody(t *testing.T) {
	for what, sent := range map[string][]byte{
		"silent": nil, "half a request": announce(100, "\x02"), "no close": encodeFrame(kindProbe, false, nil),
	} {
		t.Run(what, func(t *testing.T) {
			_, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{MaxConnections: 8, StepTimeout: time.Hour})
			for range 3 {
				for range 20 {
					sendFrom(t, "127.0.0.2", peer, sent)
					sendFrom(t, "127.0.0.3", peer, sent)
				}
				require.NoError(t, Client{ReplyTimeout: 10 * time.Second}.Probe(context.Background(), peer), "from another address")
				reply, err := io.ReadAll(sendFrom(t, "127.0.0.2", peer, encodeFrame(kindProbe, false, nil)))
				require.NoError(t, err, "from the address of the stalling peer")
				require.NotEmpty(t, reply)
			}
		})
	}
}

func TestAPeerWhosePlaceIsTakenIsLoggedOnceInAWhile(t *testing.T) {
	logged, logs := observer.New(zap.WarnLevel)
	_, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{MaxConnections: 2, StepTimeout: time.Hour, Log: zap.New(logged)})
	var stalled []*net.TCPConn
	for range 5 {
		stalled = append(stalled, sendFrom(t, "127.0.0.2", peer, nil))
	}
	for _, conn := range stalled[:4] {
		ends(t, conn)
	}
	require.Equal(t, 1, logs.Len())
	require.Contains(t, fmt.Sprint(logs.All()[0].ContextMap()["peer"]), "127.0.0.2:")
}

func TestConnectionsLeaveDescriptorsForOthers(t *testing.T) {
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	lowered := before
	lowered.Cur = 320
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &lowered))
	s, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{})
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
	for i := range 100 {
		sendFrom(t, fmt.Sprintf("127.0.1.%d", i+1), peer, nil)
	}
	require.NoError(t, Client{}.Probe(context.Background(), peer))
	require.LessOrEqual(t, s.door.Gate.Held(), int64(320/descriptorsPart))
}

func TestAConnectionThatThisMachineHasNoRoomForSaysWhatToRaise(t *testing.T) {
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}))
	err := Client{}.Probe(context.Background(), "127.0.0.1:1")
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
	require.ErrorIs(t, err, unix.EMFILE)
	require.ErrorContains(t, err, "ulimit -n")
}

func TestCloseEndsConnectionsAtOnce(t *testing.T) {
	s, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{StepTimeout: time.Hour})
	waiting := []*net.TCPConn{send(t, peer, nil), send(t, peer, announce(100, "\x02"))}
	answered := send(t, peer, encodeFrame(kindProbe, false, nil))
	_, err := io.ReadAll(answered)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "a second time")
	for _, conn := range waiting {
		ends(t, conn)
	}
}

// failingListener fails to accept until it is told not to.
type failingListener struct {
	*net.TCPListener
	failures atomic.Int32
	accepts  atomic.Int32
}

func (l *failingListener) AcceptTCP() (*net.TCPConn, error) {
	l.accepts.Add(1)
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.TCPListener.AcceptTCP()
}

func TestAServerWithoutFileDescriptorsWaitsAndGoesOn(t *testing.T) {
	logged, logs := observer.New(zap.WarnLevel)
	l := &failingListener{TCPListener: listen(t, "127.0.0.1:0")}
	l.failures.Store(5)
	s := Serve(l, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{Log: zap.New(logged)})
	defer s.Close()
	require.NoError(t, Client{}.Probe(context.Background(), l.Addr().String()))
	assert.Contains(t, fmt.Sprint(logs.All()[0].ContextMap()["error"]), "too many open files")
	assert.LessOrEqual(t, logs.Len(), 3, "peers cannot fill the log")
}

func TestAPeerThatResetsAfterTheAnswerIsNoWarning(t *testing.T) {
	const times = 500
	logged, logs := observer.New(zap.WarnLevel)
	s, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{Log: zap.New(logged)})
	for range times { // some of these resets come before the server has closed its sending side
		c := send(t, peer, encodeFrame(kindProbe, false, []byte("{}")))
		_, err := io.ReadFull(c, make([]byte, 1))
		require.NoError(t, err)
		require.NoError(t, c.SetLinger(0))
		require.NoError(t, c.Close())
	}
	require.NoError(t, s.Close())
	assert.Zero(t, logs.Len(), logs.All())
}

func TestAConnectionThatSendsNothingIsNoWarningHoweverItEnds(t *testing.T) {
	logged, logs := observer.New(zap.DebugLevel)
	_, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{StepTimeout: tick, Log: zap.New(logged)})
	for what, end := range map[string]func(*net.TCPConn){
		"close": func(c *net.TCPConn) { _ = c.Close() },
		"reset": func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
		"stay":  func(c *net.TCPConn) { _, _ = io.ReadAll(c) },
	} {
		before := logs.FilterMessage("a connection without a handshake").Len()
		end(send(t, peer, nil))
		require.Eventually(t, func() bool { return logs.FilterMessage("a connection without a handshake").Len() > before },
			10*time.Second, time.Millisecond, what)
	}
	assert.Zero(t, logs.Filter(func(e observer.LoggedEntry) bool { return e.Level > zap.DebugLevel }).Len())
	end := send(t, peer, []byte{1})
	_ = end.SetLinger(0)
	_ = end.Close()
	require.Eventually(t, func() bool { return logs.FilterMessage("handshake failed").Len() == 1 }, 10*time.Second, time.Millisecond)
}

func TestAServerThatCannotAcceptDoesNotSpinAndCanBeClosed(t *testing.T) {
	l := &failingListener{TCPListener: listen(t, "127.0.0.1:0")}
	l.failures.Store(1 << 30)
	s := Serve(l, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{})
	require.Eventually(t, func() bool { return l.accepts.Load() >= 4 }, 10*time.Second, time.Millisecond)
	require.NoError(t, s.Close())
	assert.Less(t, l.accepts.Load(), int32(100))
}

// impostor answers every connection with fixed bytes, and closes it.
func impostor(t *testing.T, answer func(*net.TCPConn)) (peer string) {
	l := listen(t, "127.0.0.1:0")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return
			}
			answer(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr().String()
}

// saying is an impostor's answer that takes the request first.
func saying(b []byte) func(*net.TCPConn) {
	return func(conn *net.TCPConn) {
		if f, err := readFrame(conn, DefaultMaxLength); err == nil && f.discardBody() == nil {
			_, _ = conn.Write(b)
		}
	}
}

func TestAClientOutlivesHostileServers(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer []byte
		code   status.Code
		says   string
	}{
		{"no answer", nil, status.Socket, "without sending a frame"},
		{"half a length", []byte{1, 2}, status.Socket, "2 of the 8"},
		{"length only", announce(9, ""), status.Socket, "no more"},
		{"length 0", announce(0, "\x01{}"), status.MalformedJSON, "frame length 0"},
		{"over the limit", announce(DefaultMaxLength+1, "\x01{}"), status.MalformedJSON, "1048577"},
		{"cut short", announce(100, "\x01{}"), status.Socket, "2 of the 99"},
		{"another kind", encodeFrame(kindNotify, false, []byte("{}")), status.RejectHandshake, "notify"},
		{"old form", encodeFrame(kindConnection, true, []byte("{}")), status.RejectHandshake, "connection"},
		{"garbage", encodeFrame(kindMetadata, false, []byte("]]")), status.MalformedJSON, "not the JSON"},
		{"web server", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), status.MalformedJSON, "it is HTTP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer := impostor(t, saying(c.answer))
			_, err := Client{ConnectTimeout: time.Second}.FetchDescriptor(context.Background(), peer)
			require.Error(t, err)
			assert.Equal(t, c.code, status.Of(err, status.OK), err)
			assert.Contains(t, err.Error(), c.says)
			assert.Contains(t, err.Error(), "metadata request to peer "+peer)
		})
	}
}

func TestGarbageForAnAnswerToNotifyAndProbeIsAnError(t *testing.T) {
	for _, body := range []string{"]]", `{"notify_msg":1,"status":1}`, ""} {
		peer := impostor(t, saying(encodeFrame(kindNotify, false, []byte(body))))
		err := Client{}.SendNotify(context.Background(), peer, Notification{})
		assert.Equal(t, status.MalformedJSON, status.Of(err, status.OK), body)
		peer = impostor(t, saying(encodeFrame(kindProbe, false, []byte(body))))
		err = Client{}.Probe(context.Background(), peer)
		assert.Equal(t, status.MalformedJSON, status.Of(err, status.OK), body)
	}
	peer := impostor(t, saying(encodeFrame(kindProbe, false, []byte(`{"status":"dying"}`))))
	assert.ErrorContains(t, Client{}.Probe(context.Background(), peer), "dying")
}

func TestAnOldPeerThatClosesOnAProbeIsAlive(t *testing.T) {
	peer := impostor(t, saying(nil))
	assert.NoError(t, Client{}.Probe(context.Background(), peer))
}

// mute takes connections by the kernel's backlog, and never answers.
func mute(t *testing.T) (peer string) {
	l := listen(t, "127.0.0.1:0")
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func TestAClientWaitsForAMuteServerNoLongerThanAsked(t *testing.T) {
	peer := mute(t)
	_, err := Client{ReplyTimeout: tick}.FetchDescriptor(context.Background(), peer)
	assert.Equal(t, status.Socket, status.Of(err, status.OK))
	assert.ErrorContains(t, err, "timeout")

	ctx, cancel := context.WithTimeout(context.Background(), tick)
	defer cancel()
	_, err = Client{}.FetchDescriptor(ctx, peer)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Equal(t, status.Socket, status.Of(err, status.OK))

	stopped, stop := context.WithCancel(context.Background())
	time.AfterFunc(tick, stop)
	err = Client{}.Probe(stopped, peer)
	assert.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, status.Socket, status.Of(err, status.OK))
}

func TestAServerThatTricklesItsAnswerIsLeftInTime(t *testing.T) {
	peer := impostor(t, func(conn *net.TCPConn) {
		ticker := time.NewTicker(tick / 10)
		defer ticker.Stop()
		for b := announce(1<<20, "\x01"); ; b = []byte(" ") {
			if _, err := conn.Write(b); err != nil {
				return
			}
			<-ticker.C
		}
	})
	_, err := Client{ReplyTimeout: tick}.FetchDescriptor(context.Background(), peer)
	assert.ErrorContains(t, err, "timeout")
}

func TestAClientNamesAHostThatIsUnknown(t *testing.T) {
	_, err := Client{}.FetchDescriptor(context.Background(), "no-such-host.invalid:1")
	assert.Equal(t, status.DNS, status.Of(err, status.OK))
	assert.ErrorContains(t, err, "no-such-host.invalid")
}

func TestAClientReachesBothFamilies(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 on this machine")
	}
	s := Serve(l.(*net.TCPListener), Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{})
	defer s.Close()
	assert.NoError(t, Client{}.Probe(context.Background(), l.Addr().String()))
}

func TestSendingToAPeerThatLeftRaisesNoSignal(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	accepted, err := l.AcceptTCP()
	require.NoError(t, err)
	require.NoError(t, accepted.SetLinger(0))
	require.NoError(t, accepted.Close())
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGPIPE, syscall.SIGWINCH)
	defer signal.Stop(signals)
	err = nil
	for err == nil || errors.Is(err, syscall.ECONNRESET) {
		err = sendAll(conn.(*net.TCPConn), []byte("x"))
	}
	assert.ErrorIs(t, err, syscall.EPIPE)
	// The later signal marks the place where the earlier one would have come.
	require.NoError(t, syscall.Kill(syscall.Getpid(), syscall.SIGWINCH))
	assert.Equal(t, syscall.SIGWINCH, <-signals)
}

func TestSendAllStopsAtTheDeadlineOfAPeerThatDoesNotRead(t *testing.T) {
	peer := mute(t)
	conn, err := net.Dial("tcp", peer)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetWriteDeadline(time.Now().Add(tick)))
	err = sendAll(conn.(*net.TCPConn), make([]byte, 64<<20))
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	assert.True(t, timeout.Timeout())
}
