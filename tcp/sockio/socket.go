// Package sockio moves bytes between sockets and raw memory: it sends and receives vectors of addresses, without a copy and
// without an allocation.
package sockio

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"kvferry/core/hostmem"
	"kvferry/core/shut"

	"golang.org/x/sys/unix"
)

// Socket is a data connection, over TCP or to a process of this host. SIGPIPE is never raised.
//
// One goroutine may send while another receives; two may not do the same. Deadlines, Close and Reset end their waits. Any
// goroutine may call the other methods.
//
//  1. TrySend and Send, TryReceive and Receive make the system call of their direction (direction.go), at once or when the
//     socket is ready.
//  2. Before a goroutine sleeps it may spin (spinner.go, BeginSpin) or poll (poll.go). Then it waits with Go's poller
//     (readiness.go).
//  3. A system call that may have to wait for a page of memory is announced to Go's scheduler (memory.go).
//  4. Under TLS, encrypt and decrypt take the place of the system calls (secure.go).
//  5. Flow asks the kernel how the connection does (flow.go).
//  6. Close shuts the connection down for every process that has it. Reset does that without an orderly end.
type Socket struct {
	Remote net.Addr

	socket       int // a descriptor of its own, not registered with Go's poller; valid while a readiness is held
	out, in      direction
	resetOnClose atomic.Bool
	closeAll     func() error
	flow         flow
	secure       *secure // nil without TLS
}

// Conn is what a Socket is made of: a net.TCPConn or a net.UnixConn.
type Conn interface {
	net.Conn
	syscall.Conn
}

// Past is a deadline that ends every wait on a connection.
var Past = time.Unix(1, 0)

// keepAlive finds dead peers that have nothing to say. An idle connection is never closed otherwise.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}

// New sets a connection up and takes it over. When New fails it has reset the connection.
func New(conn Conn, p *Processors) (*Socket, error) {
	s, err := newSocket(conn, p)
	if err == nil && s.IsLocal() {
		s.in.expectFile()
	}
	return s, err
}

func newSocket(conn Conn, p *Processors) (made *Socket, err error) {
	defer func() {
		if err != nil {
			_ = shut.Abandon(conn)
			return
		}
		_ = conn.Close()
	}()
	if err := tune(conn); err != nil {
		return nil, err
	}
	socket, err := duplicate(conn)
	if err != nil {
		return nil, err
	}
	s := &Socket{socket: socket, Remote: conn.RemoteAddr()}
	in, out := newReadiness(unix.EPOLLIN|unix.EPOLLRDHUP), newReadiness(unix.EPOLLOUT)
	m, err := p.sockets.join(socket, in, out)
	if err != nil {
		return nil, errors.Join(err, unix.Close(socket))
	}
	in.member, out.member = m, m
	s.in.init(in, socket, "recvmsg", unix.SYS_RECVMSG, 0, unix.POLLIN)
	s.out.init(out, socket, "sendmsg", unix.SYS_SENDMSG, unix.MSG_NOSIGNAL, unix.POLLOUT)
	s.in.processors, s.out.processors = p, p
	s.closeAll = sync.OnceValue(func() error {
		defer s.forgetFile()
		in.close()
		out.close()
		return errors.Join(s.end(), m.leave(), unix.Close(socket))
	})
	s.in.access, s.out.access = hostmem.Writing, hostmem.Reading
	if !s.IsLocal() {
		s.in.other, s.out.other = &s.out.memoryCalls, &s.in.memoryCalls
		s.in.asking, s.out.asking = &s.flow.asking, &s.flow.asking
	}
	return s, nil
}

// duplicate is another descriptor of the same socket.
func duplicate(conn syscall.Conn) (socket int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) { socket, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	return socket, errors.Join(controlErr, os.NewSyscallError("fcntl", err))
}

// tune sets a connection up. keepAlive finds a dead peer on another host, and the kernel one on this host.
func tune(conn Conn) error {
	switch c := conn.(type) {
	case *net.TCPConn:
		return errors.Join(c.SetKeepAliveConfig(keepAlive), boundBuffer(c))
	case *net.UnixConn:
		return errors.Join(c.SetReadBuffer(localBuffer), c.SetWriteBuffer(localBuffer))
	}
	return nil
}

// TrySend sends what the socket buffer takes now, from at most MaxVectors vectors. again says that it takes nothing.
func (s *Socket) TrySend(v []Vector) (n int, again bool, err error) {
	return s.out.do(v, false)
}

// Send sends some bytes. It waits until the socket buffer takes any.
func (s *Socket) Send(v []Vector) (n int, err error) {
	n, _, err = s.out.do(v, true)
	return n, err
}

// WhenWritable calls step at once, and whenever the socket buffer may take something, until step returns true.
func (s *Socket) WhenWritable(step func() bool) error { return s.out.until(step) }

// SendNow is TrySend for the step of WhenWritable.
func (s *Socket) SendNow(v []Vector) (n int, again bool, err error) {
	s.out.use(v)
	s.out.call()
	return s.out.result()
}

// SendsAtOnce reports whether TrySend would not have to wait for memory.
func (s *Socket) SendsAtOnce(v []Vector) bool {
	s.out.use(v)
	defer func() { s.out.message.Iov = nil }()
	if s.out.inMemory() {
		s.out.vouch(v)
		return true
	}
	return s.out.resident()
}

// TryReceive receives what has arrived, into at most MaxVectors vectors that hold at least one byte. again says that nothing
// has arrived. At the end of the stream err is io.EOF.
func (s *Socket) TryReceive(v []Vector) (n int, again bool, err error) {
	return eof(s.in.do(v, false))
}

// Receive receives some bytes. It waits until there are any. At the end of the stream err is io.EOF.
func (s *Socket) Receive(v []Vector) (n int, err error) {
	n, _, err = eof(s.in.do(v, true))
	return n, err
}

// Discard receives bytes into a scratch buffer and throws them away. It returns nil after most bytes, or why there are no
// more.
func (s *Socket) Discard(scratch []byte, most int) error {
	v := []Vector{VectorOf(scratch)}
	for dropped := 0; dropped < most; {
		n, err := s.Receive(v)
		if err != nil {
			return err
		}
		dropped += n
	}
	return nil
}

// WhenReadable calls step at once, and whenever there may be something to receive, until step returns true.
func (s *Socket) WhenReadable(step func() bool) error { return s.in.until(step) }

// ReceiveNow is TryReceive for the step of WhenReadable and for the function that Hold calls. The caller ensures that one
// goroutine at a time receives. touched says that all of the memory was touched a moment ago.
func (s *Socket) ReceiveNow(v []Vector, touched bool) (n int, again bool, err error) {
	s.lend(v, touched)
	s.in.call()
	return eof(s.in.result())
}

// ReceiveUnheld is ReceiveNow for a goroutine that must not wait: nothing has come while the other direction waits for a page.
func (s *Socket) ReceiveUnheld(v []Vector, touched bool) (n int, again bool, err error) {
	s.lend(v, touched)
	s.in.callUnheld()
	return eof(s.in.result())
}

// lend gives the next call that receives its memory. touched says that all of it was touched a moment ago.
func (s *Socket) lend(v []Vector, touched bool) {
	s.in.use(v)
	if touched {
		s.in.vouch(v)
	}
}

// Hold calls use, which may call ReceiveNow or ReceiveUnheld.
func (s *Socket) Hold(use func()) error { return s.in.readiness.hold(use) }

// BeginSpin says that the calling goroutine is going to call ReceiveNow again and again. What arrives until EndSpin does not
// wake the goroutine that waits to receive. What has arrived by EndSpin does.
func (s *Socket) BeginSpin() { s.in.readiness.beginSpin() }

// EndSpin: see BeginSpin.
func (s *Socket) EndSpin() { s.in.readiness.endSpin() }

// SleepUntilReadable has the calling thread sleep until there may be something to receive, for at most so long. Close waits for
// its end, and a deadline does not end it. It returns false at once when the socket is closed, or when as many threads sleep in this
// way as may.
func (s *Socket) SleepUntilReadable(most time.Duration) bool {
	if s.in.readiness.enter() != nil {
		return false
	}
	defer s.in.readiness.leave()
	_, may := s.in.poll(most)
	return may
}

// AwaitsBytes reports whether a goroutine waits for something to receive.
func (s *Socket) AwaitsBytes() bool { return s.in.readiness.isAwaited() }

func eof(n int, again bool, err error) (int, bool, error) {
	if n == 0 && !again && err == nil {
		err = io.EOF
	}
	return n, again, err
}

// SetLibraryMemory says which memory of the library the calls of each direction use. It is always in memory, and a call may
// touch less of it than it is given.
func (s *Socket) SetLibraryMemory(in, out Vector) { s.in.ours, s.out.ours = in, out }

// Buffers reports whether a receive may find bytes that have left the socket's own buffer: under TLS a record has come as a
// whole, and was taken in part. The caller is the one that receives.
func (s *Socket) Buffers() bool { return s.secure != nil && s.secure.buffers() }

// IsSecure reports whether the connection is under TLS.
func (s *Socket) IsSecure() bool { return s.secure != nil }

// TakeFile returns the file descriptor that came with what was received. The caller closes it.
func (s *Socket) TakeFile() (file int, came bool) { return s.in.takeFile() }

// Unacknowledged returns how many bytes the peer's kernel has not acknowledged. The end of the stream counts as one.
func (s *Socket) Unacknowledged() (n int, err error) {
	err = s.Control(func(socket int) (err error) {
		n, err = unix.IoctlGetInt(socket, unix.SIOCOUTQ)
		return os.NewSyscallError("ioctl", err)
	})
	return n, err
}

// IsLocal reports whether the connection is to a process of this host.
func (s *Socket) IsLocal() bool {
	_, local := s.Remote.(*net.UnixAddr)
	return local
}

// RoundTrip returns how long a message and its acknowledgement take, as the kernel measured it. It is 0 on one host.
func (s *Socket) RoundTrip() (took time.Duration) {
	if s.IsLocal() {
		return 0
	}
	_ = s.Control(func(socket int) error { // fails when closed
		info, err := unix.GetsockoptTCPInfo(socket, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			took = time.Duration(info.Rtt) * time.Microsecond
		}
		return err
	})
	return took
}

// Control calls f with the socket's descriptor, which stays open until f has returned.
func (s *Socket) Control(f func(socket int) error) (err error) {
	held := s.out.readiness.hold(func() { err = f(s.socket) })
	return errors.Join(held, err)
}

// SetDeadline ends the waits of both directions at a time; the zero time ends none.
func (s *Socket) SetDeadline(t time.Time) error {
	return errors.Join(s.in.readiness.setDeadline(t), s.out.readiness.setDeadline(t))
}

// SetReadDeadline is SetDeadline for receiving alone.
func (s *Socket) SetReadDeadline(t time.Time) error { return s.in.readiness.setDeadline(t) }

// CloseWrite ends the stream of bytes to the peer.
func (s *Socket) CloseWrite() error {
	if s.secure != nil {
		if err := s.Control(func(int) error { return s.secure.end() }); err != nil {
			return err
		}
		if err := s.out.until(s.secure.flushed); err != nil {
			return err
		}
	}
	return s.Control(func(socket int) error { return os.NewSyscallError("shutdown", unix.Shutdown(socket, unix.SHUT_WR)) })
}

func (s *Socket) forgetFile() {
	if file, came := s.in.takeFile(); came {
		CloseFile(file)
	}
}

// Close ends the connection for every process that has the socket, and returns when no goroutine uses it any more.
func (s *Socket) Close() error { return s.closeAll() }

// Reset closes the connection so that the peer does not take it for an orderly end. Bytes that the kernel has not sent yet do
// not arrive.
func (s *Socket) Reset() {
	s.resetOnClose.Store(true)
	_ = s.Close()
}

// end is the part of closeAll that ends the connection.
func (s *Socket) end() error {
	if s.resetOnClose.Load() {
		return shut.Reset(s.socket)
	}
	if s.secure != nil {
		_ = s.secure.end() // a peer that does not get it takes the end for a loss
	}
	return shut.Socket(s.socket)
}
