package tcp

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/metadata"
	"kvferry/core/metrics"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/samehost"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

func newSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// secretFile is a file with secrets, the first of which the engine prefers.
func secretFile(t testing.TB, secrets ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(secrets, "\n")+"\n"), 0o600))
	return path
}

// withSecret has an engine use the secrets in a file, with a mode or "".
func withSecret(path, mode string) func(*core.Config) {
	return func(c *core.Config) { c.Security.SecretFile, c.Security.Mode = path, mode }
}

// watched is an engine with its log.
type watched struct {
	*core.Engine
	log    *observer.ObservedLogs
	memory []byte
}

func newWatched(t testing.TB, change ...func(*core.Config)) watched {
	t.Helper()
	c := core.DefaultConfig()
	c.SameHost = false
	for _, f := range change {
		f(&c)
	}
	observed, logs := observer.New(zapcore.InfoLevel)
	e, err := core.New(core.Options{Name: "127.0.0.1", Metadata: metadata.P2P, Config: c, Log: zap.New(observed)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	_, err = e.Install("tcp", Open)
	require.NoError(t, err)
	w := watched{e, logs, tcptest.Mapped(t, 1<<20)}
	tcptest.Fill(w.memory, 7)
	require.NoError(t, e.Register(hostmem.AddressOf(w.memory), uint64(len(w.memory)), "cpu:0", true))
	return w
}

// said waits for a line of the log that has a text somewhere.
func (w watched) said(t testing.TB, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(w.everything(), text) }, tcptest.Patience, 5*time.Millisecond, "%q in %v", text, w.log.All())
}

func (w watched) everything() string {
	var all strings.Builder
	encoder := zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "message"})
	for _, line := range w.log.All() {
		if b, err := encoder.EncodeEntry(line.Entry, line.Context); err == nil {
			all.Write(b.Bytes())
		}
	}
	return strings.ReplaceAll(all.String(), `\"`, `"`)
}

// move runs one request to its end.
func move(t testing.TB, e *core.Engine, r core.Request) error {
	t.Helper()
	b, err := e.AllocateBatch(1)
	require.NoError(t, err)
	require.NoError(t, e.Submit(b, []core.Request{r}, nil))
	tcptest.Wait(t, b)
	defer func() { require.NoError(t, e.FreeBatch(b)) }()
	return b.Err()
}

func TestEnginesWithOneSecretMoveBytesOnEveryPath(t *testing.T) {
	path := secretFile(t, newSecret())
	for name, change := range map[string]func(*core.Config){
		"TCP": func(*core.Config) {}, "one host": tcptest.OnOneHost, "without lanes": tcptest.WithoutPool, "version 1": tcptest.SpeakV1,
		"one host without permits": func(c *core.Config) { c.SameHost, c.SliceSize = true, 1000 },
	} {
		for _, mode := range []string{"require", "prefer"} {
			t.Run(name+" "+mode, func(t *testing.T) {
				target, e := newWatched(t, withSecret(path, mode), change), newWatched(t, withSecret(path, mode), change)
				id := tcptest.OpenSegment(t, e.Engine, target.Name())
				local := tcptest.Mapped(t, len(target.memory))
				for _, length := range []int{1, 100, 4 << 10, 64<<10 + 3, len(local)} {
					tcptest.Fill(local, byte(length))
					require.NoError(t, move(t, e.Engine, tcptest.Ask(core.Write, local[:length], id, target.memory[:length])))
					require.True(t, bytes.Equal(local[:length], target.memory[:length]))
					clear(local)
					require.NoError(t, move(t, e.Engine, tcptest.Ask(core.Read, local[:length], id, target.memory[:length])))
					require.True(t, bytes.Equal(local[:length], target.memory[:length]))
				}
				require.NoError(t, e.Notify(id, metadata.Notification{Name: "a", Text: "b"}))
				require.Equal(t, []metadata.Notification{{Name: "a", Text: "b"}}, target.Notifications())
				require.NoError(t, e.Probe(target.Name()))
			})
		}
	}
}

// A stranger gets neither the descriptor nor a byte, and both sides say why.
func TestEnginesThatDoNotBelongTogetherRefuseEachOther(t *testing.T) {
	one, two := newSecret(), newSecret()
	for name, c := range map[string]struct {
		target, initiator []func(*core.Config)
		there, here       string
	}{
		"another secret": {
			[]func(*core.Config){withSecret(secretFile(t, one), "")}, []func(*core.Config){withSecret(secretFile(t, two), "")},
			"refuses this engine's certificate", "another cluster secret",
		},
		"prefer with another secret": {
			[]func(*core.Config){withSecret(secretFile(t, one), "prefer")}, []func(*core.Config){withSecret(secretFile(t, two), "prefer")},
			"refuses this engine's certificate", "another cluster secret",
		},
		"none here":  {[]func(*core.Config){withSecret(secretFile(t, one), "")}, nil, "KVFERRY_SECURITY=require demands it here", "does not begin TLS"},
		"none there": {nil, []func(*core.Config){withSecret(secretFile(t, one), "")}, "begins TLS, and security is off here", "closed the connection amid the TLS handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			target, e := newWatched(t, c.target...), newWatched(t, c.initiator...)
			_, err := e.OpenSegment(target.Name())
			require.ErrorContains(t, err, c.here)
			target.said(t, c.there)
		})
	}
}

// Who has learned the descriptor elsewhere gets no further at the data port and the Unix-domain socket.
func TestTheDataPortAndTheSocketOfThisHostRefuseStrangers(t *testing.T) {
	for _, change := range []func(*core.Config){func(*core.Config) {}, tcptest.OnOneHost} {
		target := newWatched(t, withSecret(secretFile(t, newSecret()), ""), change)
		d := target.Descriptor()
		require.Equal(t, 1, d.TLS)
		dial := func() *tcptest.Client {
			if d.SameHostSocket != "" {
				conn, err := net.DialUnix("unix", nil, samehost.Address(d.SameHostSocket))
				require.NoError(t, err)
				return tcptest.NewClient(t, conn)
			}
			conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(d.DataPort)))
			require.NoError(t, err)
			return tcptest.NewClient(t, conn.(*net.TCPConn))
		}
		t.Run("a Mooncake peer", func(t *testing.T) {
			before := bytes.Clone(target.memory)
			for _, frame := range [][]byte{tcptest.ReadV2(target.memory[:10]), tcptest.WriteV2(hostmem.AddressOf(target.memory), []byte("stranger"))} {
				c := dial()
				c.Send(frame)
				c.ExpectStatus(wire.StatusRejected)
				c.ExpectEnd()
			}
			c := dial()
			c.Send(tcptest.ReadV1(target.memory[:10]))
			_, err := c.Conn.Read(make([]byte, 1))
			require.Error(t, err)
			require.Equal(t, before, target.memory)
			target.said(t, "KVFERRY_SECURITY=require demands it here")
		})
		t.Run("a hello without TLS", func(t *testing.T) {
			c := dial()
			h := wire.Hello{Origin: wire.Identity{1}, Number: 1, Target: wire.ParseIdentity(d.Identity)}
			c.Send(h.Encode())
			a, err := wire.ReadAnswer(c.Conn)
			require.NoError(t, err)
			require.EqualValues(t, wire.StatusDemandsTLS, a.Code)
			require.Zero(t, a.Age, "it tells a stranger nothing")
			_, err = c.Conn.Read(make([]byte, 1))
			require.Error(t, err)
			require.True(t, slices.ContainsFunc(target.Stats().Security.Failures, func(f metrics.SecurityFailures) bool {
				return f.Reason == "plain" && f.Count >= 2 // the request above, and this hello
			}))
		})
	}
}

func TestPreferServesPeersThatCannotProveAnything(t *testing.T) {
	target, e := newWatched(t, withSecret(secretFile(t, newSecret()), "prefer")), newWatched(t)
	for _, pair := range [][2]watched{{target, e}, {e, target}} {
		id := tcptest.OpenSegment(t, pair[1].Engine, pair[0].Name())
		local := tcptest.Mapped(t, 100)
		require.NoError(t, move(t, pair[1].Engine, tcptest.Ask(core.Read, local, id, pair[0].memory[:100])))
		require.Equal(t, pair[0].memory[:100], local)
	}
}

func TestSecretsAreReplacedWithoutStopping(t *testing.T) {
	before, after := newSecret(), newSecret()
	a, b := secretFile(t, before), secretFile(t, before)
	target, e := newWatched(t, withSecret(a, "")), newWatched(t, withSecret(b, ""))
	local := tcptest.Mapped(t, 100)
	put := func(path string, secrets ...string) {
		require.NoError(t, os.WriteFile(path+".next", []byte(strings.Join(secrets, "\n")), 0o600))
		require.NoError(t, os.Rename(path+".next", path))
	}
	check := func() {
		t.Helper()
		require.NoError(t, e.RemoveLocalSegment(target.Name())) // connects again
		id := tcptest.OpenSegment(t, e.Engine, target.Name())
		require.NoError(t, move(t, e.Engine, tcptest.Ask(core.Read, local, id, target.memory[:100])))
	}
	check()
	for i, step := range []func(){
		func() { put(a, after, before) }, func() { put(b, after, before) }, func() { put(b, after) }, func() { put(a, after) },
	} {
		step()
		want := []uint64{1, 0, 1, 1, 1, 2, 2, 2}[2*i : 2*i+2]
		require.Eventually(t, func() bool {
			return target.Security().Generation() == want[0] && e.Security().Generation() == want[1]
		}, tcptest.Patience, 10*time.Millisecond)
		check()
	}
}

// capture collects what passes the loopback interface until stop is called, which returns the packets of some ports.
func capture(t *testing.T) (stop func(ports ...int) []byte) {
	t.Helper()
	const all = 0x0300 // ETH_P_ALL, in the order of the network
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Skipf("a capture needs CAP_NET_RAW: %v", err)
	}
	require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}))
	lo, err := net.InterfaceByName("lo")
	require.NoError(t, err)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: lo.Index}))
	var seen [][]byte
	var running sync.WaitGroup
	stopped := make(chan struct{})
	running.Go(func() {
		packet := make([]byte, 1<<17)
		for {
			n, err := unix.Read(fd, packet)
			if n > 0 {
				seen = append(seen, bytes.Clone(packet[:n]))
				continue
			}
			if err == unix.EINTR {
				continue
			}
			select {
			case <-stopped:
				return
			default:
			}
		}
	})
	return func(ports ...int) (all []byte) {
		close(stopped)
		running.Wait()
		require.NoError(t, unix.Close(fd))
		for _, packet := range seen {
			if payload, from, to := segmentOf(packet); slices.Contains(ports, from) || slices.Contains(ports, to) {
				all = append(all, payload...)
			}
		}
		return all
	}
}

// segmentOf is what a packet of IPv4 carries of a TCP connection.
func segmentOf(packet []byte) (payload []byte, from, to int) {
	const tcp = 6
	if len(packet) < 40 || packet[0]>>4 != 4 || packet[9] != tcp {
		return nil, 0, 0
	}
	segment := packet[4*(packet[0]&15):]
	return segment[4*(segment[12]>>4):], int(binary.BigEndian.Uint16(segment)), int(binary.BigEndian.Uint16(segment[2:]))
}

func TestNothingPassesInTheClearUnderASecret(t *testing.T) {
	secret := newSecret()
	path := secretFile(t, secret)
	payload := []byte("the-payload-" + newSecret())
	note := "the-notification-" + newSecret()
	run := func(t *testing.T, change ...func(*core.Config)) (found map[string]bool) {
		stop := capture(t)
		target, e := newWatched(t, change...), newWatched(t, change...)
		id := tcptest.OpenSegment(t, e.Engine, target.Name())
		local := tcptest.Mapped(t, 256<<10)
		for i := 0; i+len(payload) < len(local); i += len(payload) {
			copy(local[i:], payload)
		}
		there := target.memory[:len(local)]
		require.NoError(t, move(t, e.Engine, tcptest.Ask(core.Write, local, id, there)))
		clear(local)
		require.NoError(t, move(t, e.Engine, tcptest.Ask(core.Read, local, id, there)))
		require.NoError(t, e.Notify(id, metadata.Notification{Name: e.Name(), Text: note}))
		seen := stop(target.HandshakePort(), target.Descriptor().DataPort, e.HandshakePort(), e.Descriptor().DataPort)
		require.Greater(t, len(seen), len(local))
		found = map[string]bool{}
		for what, text := range map[string]string{
			"payload": string(payload), "notification": note, "name": target.Name(), "identity": target.Identity(), "location": "cpu:0", "descriptor": "tcp_data_port",
		} {
			found[what] = bytes.Contains(seen, []byte(text))
		}
		address := hostmem.AddressOf(there)
		var header [8]byte
		for i := range header {
			header[i] = byte(address >> (8 * i))
		}
		found["address"] = bytes.Contains(seen, header[:])
		require.NotContains(t, string(seen), secret)
		return found
	}
	t.Run("the capture sees all without", func(t *testing.T) {
		for what, found := range run(t) {
			require.True(t, found, what)
		}
	})
	t.Run("with", func(t *testing.T) {
		for what, found := range run(t, withSecret(path, "")) {
			require.False(t, found, what)
		}
	})
}
