package sockio

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// certificate is one that both sides of a test present. Who may connect is not the matter of this package.
var certificate = sync.OnceValue(func() tls.Certificate {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func tlsConfig() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{certificate()}, MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	}
}

// shake makes a TLS connection of a pair of connections.
func shake(t testing.TB, a, b *Inner) (client, server *tls.Conn) {
	t.Helper()
	client, server = tls.Client(a, tlsConfig()), tls.Server(b, tlsConfig())
	accepted := make(chan error, 1)
	go func() { accepted <- server.HandshakeContext(context.Background()) }()
	require.NoError(t, client.HandshakeContext(context.Background()))
	require.NoError(t, <-accepted)
	return client, server
}

func secured(t testing.TB, inner *Inner, conn *tls.Conn) *Socket {
	t.Helper()
	s, err := NewSecure(inner, conn, NewProcessors(runtime.GOMAXPROCS(0)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// secureSockets are two sockets with TLS between them.
func secureSockets(t testing.TB) (a, b *Socket) {
	t.Helper()
	connA, connB := tcptest.Connection(t)
	innerA, innerB := NewInner(connA), NewInner(connB)
	client, server := shake(t, innerA, innerB)
	return secured(t, innerA, client), secured(t, innerB, server)
}

func randomBytes(t testing.TB, length int) []byte {
	memory := tcptest.Mapped(t, length)
	_, _ = rand.Read(memory)
	return memory
}

// cut makes vectors of all of a range, of lengths that meet every case.
func cut(memory []byte, random *mathrand.Rand) (v []Vector) {
	lengths := []int{1, 8, 24, 100, straight - 1, straight, straight + 1, maxPlaintext - 1, maxPlaintext, maxPlaintext + 1, 3*maxPlaintext + 7, 1 << 20}
	for len(memory) > 0 {
		n := min(lengths[random.IntN(len(lengths))], len(memory))
		v = append(v, VectorOf(memory[:n]))
		memory = memory[n:]
	}
	return v
}

func sendAllOf(s *Socket, v []Vector) error {
	for len(v) > 0 {
		n, err := s.Send(v)
		if err != nil {
			return err
		}
		v = Advance(v, n)
	}
	return nil
}

func TestSecureSocketsCarryEveryByteThroughVectorsOfEveryLength(t *testing.T) {
	for seed := range uint64(8) {
		a, b := secureSockets(t)
		if seed%2 == 1 { // little at a time
			for _, s := range []*Socket{a, b} {
				require.NoError(t, s.Control(func(fd int) error {
					return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4096)
				}))
			}
		}
		const length = 6 << 20
		there, back, thereTo, backTo := randomBytes(t, length), randomBytes(t, length), tcptest.Mapped(t, length), tcptest.Mapped(t, length)
		var running sync.WaitGroup
		failures := make(chan error, 4)
		send := func(s *Socket, memory []byte, seed uint64) {
			running.Go(func() { failures <- sendAllOf(s, cut(memory, mathrand.New(mathrand.NewPCG(seed, 1)))) })
		}
		receive := func(s *Socket, memory []byte, seed uint64) {
			running.Go(func() {
				for v := cut(memory, mathrand.New(mathrand.NewPCG(seed, 2))); len(v) > 0; {
					n, err := s.Receive(v)
					if err != nil {
						failures <- err
						return
					}
					v = Advance(v, n)
				}
				failures <- nil
			})
		}
		send(a, there, seed)
		send(b, back, seed+100)
		receive(b, thereTo, seed)
		receive(a, backTo, seed+100)
		running.Wait()
		for range 4 {
			require.NoError(t, <-failures)
		}
		require.True(t, bytes.Equal(there, thereTo), "seed %d", seed)
		require.True(t, bytes.Equal(back, backTo), "seed %d", seed)
	}
}

func TestBytesCountAsSentWhenTheSocketHasTakenTheirRecord(t *testing.T) {
	a, b := secureSockets(t)
	memory := randomBytes(t, 64<<20)
	v := []Vector{VectorOf(memory)}
	sent := 0
	for again := false; !again; {
		var n int
		var err error
		n, again, err = a.TrySend(v)
		require.NoError(t, err)
		v, sent = Advance(v, n), sent+n
	}
	require.NotEmpty(t, a.secure.waiting, "the last record was taken in part")
	before := sent
	to := tcptest.Mapped(t, len(memory))
	received := 0
	for rest := []Vector{VectorOf(to)}; ; {
		n, again, err := b.TryReceive(rest)
		require.NoError(t, err)
		if again {
			unacknowledged, err := a.Unacknowledged()
			require.NoError(t, err)
			if unacknowledged == 0 {
				break
			}
			continue
		}
		rest, received = Advance(rest, n), received+n
	}
	require.Equal(t, before, received, "part of a record is nothing")
	n, again, err := a.TrySend(v)
	require.NoError(t, err)
	require.False(t, again)
	require.Positive(t, n)
	require.Empty(t, a.secure.waiting)
}

func TestAConnectionHasABatchOnlyWhileItHoldsRecords(t *testing.T) {
	a, b := secureSockets(t)
	memory, to := randomBytes(t, maxMoved), tcptest.Mapped(t, maxMoved)
	received := make(chan error, 1)
	go func() {
		var err error
		for v := []Vector{VectorOf(to)}; len(v) > 0 && err == nil; {
			var n int
			n, err = b.Receive(v)
			v = Advance(v, n)
		}
		received <- err
	}()
	require.NoError(t, sendAllOf(a, []Vector{VectorOf(memory)}))
	require.NoError(t, <-received)
	require.True(t, bytes.Equal(memory, to))
	require.Nil(t, a.secure.inner.batch)
	require.Nil(t, a.secure.inner.held)
	written, taken, full := a.secure.inner.progress()
	require.Equal(t, written, taken)
	require.False(t, full)
}

func TestSecureSocketsHoldMemoryThatIsGoneAgainstItsVectorAlone(t *testing.T) {
	for _, where := range []string{"sent", "received"} {
		for _, length := range []int{100, straight, 3 * maxPlaintext} {
			a, b := secureSockets(t)
			gone := tcptest.Mapped(t, 4*maxPlaintext)
			good, to := randomBytes(t, 4*maxPlaintext), tcptest.Mapped(t, 4*maxPlaintext)
			if where == "sent" {
				require.NoError(t, unix.Mprotect(gone, unix.PROT_NONE))
				v := []Vector{VectorOf(good[:30]), VectorOf(gone[:length]), VectorOf(good[30:40])}
				n, err := a.Send(v)
				require.NoError(t, err)
				require.Equal(t, 30, n)
				_, err = a.Send(Advance(v, n))
				require.ErrorIs(t, err, syscall.EFAULT)
				require.NoError(t, sendAllOf(a, []Vector{VectorOf(good[40:50])}), "what was not sent is no part of the stream")
				n, err = b.Receive([]Vector{VectorOf(to)})
				require.NoError(t, err)
				for n < 40 {
					more, err := b.Receive([]Vector{VectorOf(to[n:])})
					require.NoError(t, err)
					n += more
				}
				require.Equal(t, append(bytes.Clone(good[:30]), good[40:50]...), to[:n])
			} else {
				require.NoError(t, sendAllOf(a, []Vector{VectorOf(good[:length])}))
				require.NoError(t, unix.Mprotect(gone, unix.PROT_NONE))
				_, err := b.Receive([]Vector{VectorOf(gone[:length])})
				require.ErrorIs(t, err, syscall.EFAULT)
				for got := 0; got < length; {
					n, err := b.Receive([]Vector{VectorOf(to[got:length])})
					require.NoError(t, err)
					got += n
				}
				require.Equal(t, good[:length], to[:length], "nothing is lost by the attempt")
			}
			require.NoError(t, unix.Mprotect(gone, unix.PROT_READ|unix.PROT_WRITE))
		}
	}
}

// The memory was in use within the last second, so that crypto/tls touches it itself.
func TestMemoryThatDisappearsUnderTheCipherIsAnError(t *testing.T) {
	for _, where := range []string{"sent", "received"} {
		a, b := secureSockets(t)
		from, to := randomBytes(t, 4*maxPlaintext), tcptest.Mapped(t, 4*maxPlaintext)
		good := tcptest.Mapped(t, len(to))
		pass := func() {
			require.NoError(t, sendAllOf(a, []Vector{VectorOf(from)}))
			for got := 0; got < len(to); {
				n, err := b.Receive([]Vector{VectorOf(to[got:])})
				require.NoError(t, err)
				got += n
			}
		}
		pass()
		pass()
		if where == "sent" {
			require.NoError(t, unix.Mprotect(from, unix.PROT_NONE))
			_, err := a.Send([]Vector{VectorOf(from)})
			require.ErrorIs(t, err, syscall.EFAULT)
			require.NoError(t, unix.Mprotect(from, unix.PROT_READ|unix.PROT_WRITE))
			pass()
		} else {
			require.NoError(t, sendAllOf(a, []Vector{VectorOf(from)}))
			require.NoError(t, unix.Mprotect(to, unix.PROT_NONE))
			_, err := b.Receive([]Vector{VectorOf(to)})
			require.ErrorIs(t, err, syscall.EFAULT)
			require.NoError(t, unix.Mprotect(to, unix.PROT_READ|unix.PROT_WRITE))
			for got := 0; got < len(good); {
				n, err := b.Receive([]Vector{VectorOf(good[got:])})
				require.NoError(t, err)
				got += n
			}
			require.True(t, bytes.Equal(from, good))
		}
	}
}

func TestTheEndOfAStreamUnderTLSIsTheSendersAlone(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	t.Run("half", func(t *testing.T) {
		a, b := secureSockets(t)
		require.NoError(t, sendAllOf(a, []Vector{VectorOf(memory[:10])}))
		require.NoError(t, a.CloseWrite())
		n, err := b.Receive([]Vector{VectorOf(memory)})
		require.NoError(t, err)
		require.Equal(t, 10, n)
		for range 2 {
			_, err = b.Receive([]Vector{VectorOf(memory)})
			require.Equal(t, io.EOF, err)
		}
		require.NoError(t, sendAllOf(b, []Vector{VectorOf(memory[:7])}), "the other direction goes on")
		n, err = a.Receive([]Vector{VectorOf(memory)})
		require.NoError(t, err)
		require.Equal(t, 7, n)
	})
	t.Run("closed", func(t *testing.T) {
		a, b := secureSockets(t)
		require.NoError(t, a.Close())
		_, err := b.Receive([]Vector{VectorOf(memory)})
		require.Equal(t, io.EOF, err)
	})
	t.Run("cut off", func(t *testing.T) {
		a, b := secureSockets(t)
		require.NoError(t, a.Control(func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) }))
		_, err := b.Receive([]Vector{VectorOf(memory)})
		require.ErrorIs(t, err, ErrCutOff)
	})
	t.Run("reset", func(t *testing.T) {
		a, b := secureSockets(t)
		a.Reset()
		_, err := b.Receive([]Vector{VectorOf(memory)})
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

func TestSecureSocketsHeedDeadlinesAndGoOn(t *testing.T) {
	a, b := secureSockets(t)
	memory := tcptest.Mapped(t, 4096)
	require.NoError(t, b.SetReadDeadline(Past))
	_, err := b.Receive([]Vector{VectorOf(memory)})
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, b.SetReadDeadline(time.Time{}))
	require.NoError(t, sendAllOf(a, []Vector{VectorOf(memory[:10])}))
	n, err := b.Receive([]Vector{VectorOf(memory)})
	require.NoError(t, err)
	require.Equal(t, 10, n)
}

// The kernel has nothing any more, so it wakes nobody: who takes a part of a record has to ask whether there is more.
func TestASecureSocketSaysThatItBuffersAWholeRecord(t *testing.T) {
	for _, length := range []int{100, 3000, 2*maxPlaintext + 10} {
		a, b := secureSockets(t)
		memory, to := randomBytes(t, length), tcptest.Mapped(t, length)
		require.NoError(t, sendAllOf(a, []Vector{VectorOf(memory)}))
		_, err := b.Receive([]Vector{VectorOf(to[:10])})
		require.NoError(t, err)
		got := 10
		require.NoError(t, b.Hold(func() {
			for b.Buffers() {
				n, again, err := b.ReceiveNow([]Vector{VectorOf(to[got:min(got+777, length)])}, false)
				require.NoError(t, err)
				if again {
					break
				}
				if got += n; got == length {
					break
				}
			}
		}))
		for got < length { // what had not come when the last record was taken
			n, err := b.Receive([]Vector{VectorOf(to[got:])})
			require.NoError(t, err)
			got += n
		}
		require.True(t, bytes.Equal(memory, to))
		_, again, err := b.TryReceive([]Vector{VectorOf(to)})
		require.NoError(t, err)
		require.True(t, again)
		require.False(t, b.Buffers())
	}
}

func TestSecureSocketsTakeAFileFromAProcessOfThisHost(t *testing.T) {
	for _, early := range []bool{true, false} {
		innerA, innerB := localInners(t)
		innerB.ExpectFile()
		client, server := shake(t, innerA, innerB)
		file, err := unix.MemfdCreate("", unix.MFD_CLOEXEC)
		require.NoError(t, err)
		defer unix.Close(file)
		var b *Socket
		if early {
			b = secured(t, innerB, server)
		}
		innerA.OfferFile(file)
		_, err = client.Write([]byte("with a file"))
		require.NoError(t, err)
		if !early {
			b = secured(t, innerB, server)
		}
		memory := tcptest.Mapped(t, 4096)
		n, err := b.Receive([]Vector{VectorOf(memory)})
		require.NoError(t, err)
		require.Equal(t, "with a file", string(memory[:n]))
		came, ok := b.TakeFile()
		require.True(t, ok)
		CloseFile(came)
		_, ok = b.TakeFile()
		require.False(t, ok)
	}
}

// localInners are the two ends of a connection on this host.
func localInners(t testing.TB) (a, b *Inner) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	return NewInner(unixConn(t, pair[0])), NewInner(unixConn(t, pair[1]))
}

func TestAFileThatNobodyExpectsUnderTLSIsDropped(t *testing.T) {
	innerA, innerB := localInners(t)
	client, server := shake(t, innerA, innerB)
	end := make([]int, 2)
	require.NoError(t, unix.Pipe2(end, unix.O_CLOEXEC|unix.O_NONBLOCK))
	defer unix.Close(end[0])
	innerB.OfferFile(end[1])
	_, err := server.Write([]byte("with a file"))
	require.NoError(t, errors.Join(err, unix.Close(end[1])))
	_, err = io.ReadFull(client, make([]byte, 11))
	require.NoError(t, err)
	n, err := unix.Read(end[0], make([]byte, 1))
	require.NoError(t, err, "somebody has the other end")
	require.Zero(t, n)
}

func TestNothingIsWrittenToAConnectionThatWasReset(t *testing.T) {
	a, _ := secureSockets(t)
	was := a.socket
	a.Reset()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	defer unix.Close(pair[1])
	defer unix.Close(pair[0])
	if pair[1] == was {
		pair[0], pair[1] = pair[1], pair[0]
	}
	if pair[0] != was { // the number belongs to another connection of the program by now
		require.NoError(t, unix.Dup3(pair[0], was, unix.O_CLOEXEC))
		defer unix.Close(was)
	}
	require.ErrorIs(t, a.CloseWrite(), net.ErrClosed)
	_, err = unix.Read(pair[1], make([]byte, 1))
	require.Equal(t, unix.EAGAIN, err)
}

func unixConn(t testing.TB, fd int) *net.UnixConn {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	c, err := net.FileConn(f)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.UnixConn)
}

func TestSecureSocketsAllocateNothingOfTheirOwn(t *testing.T) {
	a, b := secureSockets(t)
	memory, to := randomBytes(t, 64<<10), tcptest.Mapped(t, 64<<10)
	from, where := []Vector{VectorOf(memory[:24]), VectorOf(memory[24:])}, []Vector{VectorOf(to)}
	v := make([]Vector, 2)
	allocated := testing.AllocsPerRun(100, func() {
		copy(v, from)
		for rest := v; len(rest) > 0; {
			n, again, err := a.TrySend(rest)
			if err != nil || again {
				break
			}
			rest = Advance(rest, n)
		}
		for {
			n, again, err := b.TryReceive(where)
			if n == 0 || again || err != nil {
				break
			}
		}
	})
	// crypto/tls allocates a word or two whenever it reads from the connection.
	require.Less(t, allocated, 24.0)
}

// BenchmarkSockets moves memory that was touched a moment ago, and memory that was not.
func BenchmarkSockets(b *testing.B) {
	for _, kind := range []struct {
		name string
		make func(testing.TB) (*Socket, *Socket)
		cold bool
	}{{"plain", sockets, false}, {"TLS", secureSockets, false}, {"plain, cold", sockets, true}, {"TLS, cold", secureSockets, true}} {
		for _, length := range []int{4 << 10, 64 << 10, 1 << 20} {
			b.Run(kind.name+"/"+sizeName(length), func(b *testing.B) {
				x, y := kind.make(b)
				from, to := randomBytes(b, length), tcptest.Mapped(b, length)
				b.SetBytes(int64(length))
				b.ReportAllocs()
				done := make(chan error, 1)
				go func() {
					for range b.N {
						if kind.cold {
							hostmem.Forget(hostmem.AddressOf(to), uint64(length))
						}
						for v := []Vector{VectorOf(to)}; len(v) > 0; {
							n, err := y.Receive(v)
							if err != nil {
								done <- err
								return
							}
							v = Advance(v, n)
						}
					}
					done <- nil
				}()
				v := make([]Vector, 1)
				for range b.N {
					if kind.cold {
						hostmem.Forget(hostmem.AddressOf(from), uint64(length))
					}
					v[0] = VectorOf(from)
					if err := sendAllOf(x, v); err != nil {
						b.Fatal(err)
					}
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

func sizeName(bytes int) string {
	if bytes >= 1<<20 {
		return "1MiB"
	}
	return map[int]string{4 << 10: "4KiB", 64 << 10: "64KiB"}[bytes]
}

// FuzzRecordsAreFollowed compares the count of what has come with records that are cut anywhere.
func FuzzRecordsAreFollowed(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0, 20, 1, 2, 3}, uint8(1))
	f.Add([]byte{22, 3, 1, 255, 255}, uint8(3))
	f.Fuzz(func(t *testing.T, stream []byte, step uint8) {
		var whole, parts records
		whole.note(stream)
		for rest := stream; len(rest) > 0; {
			n := min(int(step)+1, len(rest))
			parts.note(rest[:n])
			rest = rest[n:]
		}
		require.Equal(t, whole, parts)
		require.LessOrEqual(t, whole.whole, uint64(len(stream)))
	})
}

// FuzzSecureSocketsSurviveWhateverComes has bytes come after the handshake that no peer with the keys has made, and the same
// bytes through the cipher.
func FuzzSecureSocketsSurviveWhateverComes(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0, 20, 1, 2, 3}, true)
	f.Add([]byte("plain text"), false)
	f.Fuzz(func(t *testing.T, stream []byte, sealed bool) {
		connA, connB := tcptest.Connection(t)
		innerA, innerB := NewInner(connA), NewInner(connB)
		client, server := shake(t, innerA, innerB)
		b := secured(t, innerB, server)
		var err error
		if sealed {
			_, err = client.Write(stream)
		} else {
			_, err = connA.Write(stream)
		}
		require.NoError(t, err)
		require.NoError(t, connA.CloseWrite())
		var got []byte
		memory := make([]byte, 1000)
		for {
			n, err := b.Receive([]Vector{VectorOf(memory[:1+len(got)%len(memory)])})
			if err != nil {
				break
			}
			got = append(got, memory[:n]...)
		}
		if sealed {
			require.True(t, bytes.Equal(stream, got))
		} else {
			require.Empty(t, got)
		}
	})
}

func TestAConnectionOfThisHostThatFailsDuringTheHandshakeIsAnError(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	a, b := NewInner(unixConn(t, pair[0])), NewInner(unixConn(t, pair[1]))
	require.NoError(t, a.SetReadDeadline(Past))
	require.Error(t, tls.Server(a, tlsConfig()).HandshakeContext(context.Background()))
	a.Abandon()
	require.Error(t, tls.Client(b, tlsConfig()).HandshakeContext(context.Background()))
}
