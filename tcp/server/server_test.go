package server

import (
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestCloseEndsSessionsInEveryState(t *testing.T) {
	memory := tcptest.Mapped(t, 64<<20)
	h := serve(t, Options{}, memory)
	var clients []*tcptest.Client
	for _, b := range [][]byte{
		nil,
		tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")),
		tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc"))[:10],
		tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 1<<20))[:1<<19],
		tcptest.ReadV2(memory),
		tcptest.Request(core.Write, true, 4096, 1<<20), // is rejected, and keeps the connection open
	} {
		c := h.dial()
		c.Send(b)
		clients = append(clients, c)
	}
	h.waitForSessions(len(clients))
	h.server.Close()
	require.Zero(t, h.sessions())
	for _, c := range clients {
		_, _ = io.Copy(io.Discard, c.Conn) // ends
	}
	h.server.Close()
}

func TestAcknowledgedWritesStayAcknowledgedWhenTheTargetCloses(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{}, memory)
	c := h.dial()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	s := h.only()
	require.Eventually(t, func() bool { return s.bytesIn.Load() == 3 }, tcptest.Patience, time.Millisecond)
	h.server.Close()
	c.ExpectStatus(wire.StatusOK)
	c.ExpectEnd()
}

// A peer that speaks version 1 takes an orderly end for the confirmation of a WRITE, which may have come by then.
func TestTargetThatClosesResetsAPeerThatMaySpeakVersion1(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	payload := []byte("abc")
	for name, c := range map[string]struct {
		request []byte
		bytes   int
	}{"silent": {nil, 0}, "version 1": {tcptest.WriteV1(hostmem.AddressOf(memory), payload), len(payload)}} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, Options{}, memory)
			peer := h.dial()
			peer.Send(c.request)
			s := h.only()
			require.Eventually(t, func() bool { return s.bytesIn.Load() == uint64(c.bytes) }, tcptest.Patience, time.Millisecond)
			h.server.Close()
			peer.ExpectReset()
		})
	}
}

// inherit gives a socket a second descriptor, as a forked child has one.
func inherit(t *testing.T, socket int) {
	t.Helper()
	inherited, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(inherited) })
}

func TestPeersFindTheEndOfATargetWhoseSocketsAForkedChildHas(t *testing.T) {
	for name, way := range map[string]struct {
		dial, connect func(*harness) *tcptest.Client
	}{
		"tcp":      {(*harness).dial, (*harness).dial},
		"one host": {(*harness).dialSameHost, (*harness).dialSocket},
	} {
		t.Run(name, func(t *testing.T) {
			memory := tcptest.Mapped(t, 4096)
			h, full := serve(t, Options{}, memory), serve(t, Options{MaxSessions: 1}, memory)
			for _, l := range []syscall.Conn{h.server.listener, h.server.local, full.server.listener, full.server.local} {
				raw, err := l.SyscallConn()
				require.NoError(t, err)
				require.NoError(t, raw.Control(func(fd uintptr) { inherit(t, int(fd)) }))
			}
			served := way.dial(h)
			served.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
			served.ExpectStatus(wire.StatusOK)
			require.NoError(t, h.only().conn.Control(func(socket int) error { inherit(t, socket); return nil }))
			h.server.Close()
			served.ExpectEnd()

			full.occupy(way.dial(full), memory)
			waiting := []*tcptest.Client{way.connect(full), way.connect(full), way.connect(full)}
			full.waitForLog("all sessions are in use; more data connections wait until one ends")
			full.server.Close()
			for _, c := range waiting {
				_, err := c.Conn.Read(make([]byte, 1))
				require.Error(t, err)
				require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
			}
		})
	}
}

func TestSessionsAreLimitedAndTheNextIsServedWhenOneEnds(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{MaxSessions: 2}, memory)
	a, b := h.dial(), h.dial()
	h.occupy(a, memory)
	h.occupy(b, memory)
	waiting := h.dial()
	waiting.Send(tcptest.ReadV1(memory[:1]))
	h.waitForLog("all sessions are in use; more data connections wait until one ends")
	require.Equal(t, 2, h.sessions())
	require.NoError(t, a.Conn.Close())
	waiting.Expect(memory[:1])
	require.LessOrEqual(t, h.sessions(), 2)
}

func TestCloseEndsATargetThatIsAtItsLimit(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{MaxSessions: 1}, memory)
	h.occupy(h.dial(), memory)
	h.dial()
	h.waitForLog("all sessions are in use; more data connections wait until one ends")
	h.server.Close()
}

func TestAcceptSurvivesRunningOutOfFileDescriptors(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{}, memory)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	conn := os.NewFile(uintptr(fd), "client")
	defer func() { _ = conn.Close() }()

	release := useUpFileDescriptors(t)
	port := h.server.listener.Addr().(*net.TCPAddr).Port
	require.NoError(t, unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}))
	h.waitForLog("cannot accept data connections; still trying")
	release()

	_, err = conn.Write(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	require.NoError(t, err)
	status := make([]byte, wire.StatusSize)
	_, err = io.ReadFull(conn, status)
	require.NoError(t, err)
	code, err := wire.ParseStatus(status)
	require.NoError(t, err)
	require.EqualValues(t, wire.StatusOK, code)
	require.Len(t, h.logs.FilterMessage("cannot accept data connections; still trying").All(), 1)
}

// useUpFileDescriptors leaves the process without a free one until release is called.
func useUpFileDescriptors(t *testing.T) (release func()) {
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	low := limit
	low.Cur = min(limit.Cur, 256)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	var used []int
	for {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			require.ErrorIs(t, err, unix.EMFILE)
			break
		}
		used = append(used, fd)
	}
	release = sync.OnceFunc(func() {
		for _, fd := range used {
			_ = unix.Close(fd)
		}
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	})
	t.Cleanup(release)
	return release
}

func TestConnectionsAreSetUpForSpeedAndToFindDeadPeers(t *testing.T) {
	h := serve(t, Options{})
	h.dial()
	require.NoError(t, h.only().conn.Control(func(socket int) error {
		for _, option := range []struct{ level, name, want int }{
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		} {
			got, err := unix.GetsockoptInt(socket, option.level, option.name)
			require.NoError(t, err)
			require.Equal(t, option.want, got, option.name)
		}
		return nil
	}))
}

func TestWhatAPeerCanCauseDoesNotFillTheLog(t *testing.T) {
	h := serve(t, Options{})
	for range 3 * logLinesPerSecond {
		c := h.dial()
		c.Send(tcptest.WriteV1(4096, []byte("abc")))
		c.ExpectReset()
	}
	h.waitForSessions(0)
	require.Less(t, h.logs.FilterMessage("data request rejected").Len(), 3*logLinesPerSecond)
}

func TestCountersOfHostsThatHaveGoneAreBounded(t *testing.T) {
	h := serve(t, Options{})
	for i := range 2 * maxFormerPeers {
		p := h.server.newPlace()
		var err error
		p.Place, err = h.server.gate.Enter(netip.Addr{}, 1, nil)
		require.NoError(t, err)
		h.server.forget(&session{host: string(rune(i + 1000)), over: make(chan struct{}), place: p}, nil)
	}
	require.Len(t, h.server.Links(), maxFormerPeers)
}

// FuzzSession sends random bytes to a target whose region lies between memory that is mapped but not registered: the
// target may do anything but crash, hang or touch that.
func FuzzSession(f *testing.F) {
	const page = 4096
	// The corpus names addresses, so they have to be the same each time.
	at := uintptr(0x7c0000000000)
	base, err := unix.MmapPtr(-1, 0, *(*unsafe.Pointer)(unsafe.Pointer(&at)), 3*page, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_FIXED_NOREPLACE)
	require.NoError(f, err)
	f.Cleanup(func() { _ = unix.MunmapPtr(base, 3*page) })
	memory := unsafe.Slice((*byte)(base), 3*page)
	before, region, behind := memory[:page], memory[page:2*page], memory[2*page:]
	h := serve(f, Options{}, region)

	for _, addr := range []uintptr{at, at + page - 1, at + page, at + 2*page - 8, at + 2*page, 0, math.MaxUint64 - 5} {
		for _, v2 := range []bool{false, true} {
			good := append(tcptest.Request(core.Write, v2, at+page+1, 5), "hello"...)
			good = append(good, tcptest.Request(core.Read, v2, at+page+8, 8)...)
			for _, op := range []core.Opcode{core.Read, core.Write} {
				b := append(append(good, tcptest.Request(op, v2, addr, 8)...), "12345678"...)
				b = append(b, good...)
				f.Add(b, false)
				f.Add(b, true)
			}
		}
		byAddress := make([]byte, 3*wire.HeaderSize)
		wire.PutHeaderByAddress(byAddress, wire.Write, uint64(at)+page+1, 5, uint64(addr)%wire.MaxSource)
		wire.PutHeaderByAddress(byAddress[wire.HeaderSize:], wire.Read, uint64(addr), 8, 0)
		wire.PutHeaderByAddress(byAddress[2*wire.HeaderSize:], wire.Write, uint64(addr), 8, uint64(at))
		f.Add(byAddress, true)
		for _, hi := range []wire.Hello{{Number: 1}, {Number: 2, Ends: 1}, {Number: 2, Ends: 2}, {Number: 3, Target: wire.Identity{9}}, {Number: 4, PermitAt: uint64(addr)}, {}} {
			greeted := append(hi.Encode(), tcptest.Request(core.Read, true, addr, 8)...)
			f.Add(greeted, false)
			f.Add(greeted[:len(greeted)-wire.HeaderSize-1], false)
		}
	}
	for _, addr := range []uintptr{at + page - 64, at + page, at + page + 100, at + 2*page - 8} {
		for _, stride := range []int64{16, -16, 1 << 11, -1 << 62} {
			b := slices.Clone(greeting)
			for _, op := range []wire.Opcode{wire.Write, wire.Read} {
				frame, length := stridedRequest(op, addr, 8, wire.Axis{Count: 2, Stride: stride}, wire.Axis{Count: 3, Stride: 8})
				if b = append(b, frame...); op == wire.Write {
					b = append(b, make([]byte, length)...)
				}
			}
			f.Add(b, false)
		}
	}
	zero := make([]byte, page)
	f.Fuzz(func(t *testing.T, b []byte, sameHost bool) {
		h.t = t
		dial := h.dial
		if sameHost {
			dial = h.dialSameHost
		}
		c := dial()
		_, _ = c.Conn.Write(b)
		_ = c.Conn.CloseWrite()
		_, err := io.Copy(io.Discard, c.Conn)
		if err != nil {
			require.ErrorIs(t, err, unix.ECONNRESET)
		}
		h.waitForSessions(0)
		require.Equal(t, zero, before)
		require.Equal(t, zero, behind)
		h.logs.TakeAll()
	})
}
