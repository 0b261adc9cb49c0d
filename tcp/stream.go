package tcp

import (
	"errors"
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

// stream is a data connection, over TCP or to a process of this host. Bytes move between it and vectors of memory
// without a copy and without allocating; SIGPIPE is never raised.
//
// One goroutine may send while another receives; two may not do the same. Deadlines and close end their waits. The rest
// may be called from any goroutine.
type stream struct {
	socket   int // of its own, that Go's poller knows nothing of; valid while one of the bells is held
	remote   net.Addr
	process  *process      // at the other end, on one host; nil where its memory is out of reach
	permit   *permit       // for the target to copy from the initiator's memory; nil for none
	number   uint64        // of the connection in its hello; 0 for a connection without one
	there    time.Duration // since when the engine at the other end is, at the latest, by clock.SinceBoot
	out, in  half
	reset    atomic.Bool // closeAll resets the connection
	closeAll func() error
}

// plainConn is what a stream is made of: a net.TCPConn or a net.UnixConn.
type plainConn interface {
	net.Conn
	syscall.Conn
}

// newStream sets a connection up and takes it over. When it fails the connection is reset.
func newStream(conn plainConn) (made *stream, err error) {
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
	s := &stream{socket: socket, remote: conn.RemoteAddr()}
	in, err := newBell(socket, unix.EPOLLIN|unix.EPOLLRDHUP)
	if err != nil {
		return nil, errors.Join(err, unix.Close(socket))
	}
	out, err := newBell(socket, unix.EPOLLOUT)
	if err != nil {
		return nil, errors.Join(err, in.close(), unix.Close(socket))
	}
	s.in.init(in, "recvmsg", unix.SYS_RECVMSG, 0, unix.POLLIN)
	s.out.init(out, "sendmsg", unix.SYS_SENDMSG, unix.MSG_NOSIGNAL, unix.POLLOUT)
	s.closeAll = sync.OnceValue(func() error {
		defer s.forgetFile()
		return errors.Join(in.close(), out.close(), s.end(), unix.Close(socket))
	})
	if s.isLocal() {
		s.in.expectFile()
	}
	s.in.direction, s.out.direction = hostmem.Writing, hostmem.Reading
	if !s.isLocal() {
		s.in.other, s.out.other = &s.out.calls, &s.in.calls
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

// neighbourBuffer is the size of the socket buffers between neighbours, in bytes, where the system allows it.
const neighbourBuffer = 1 << 20

// tune sets a connection up. Who is dead is found by keepAlive on another host, and by the kernel on this one.
func tune(conn plainConn) error {
	switch c := conn.(type) {
	case *net.TCPConn:
		return c.SetKeepAliveConfig(keepAlive)
	case *net.UnixConn:
		return errors.Join(c.SetReadBuffer(neighbourBuffer), c.SetWriteBuffer(neighbourBuffer))
	}
	return nil
}

// isLocal tells a connection to a process of this host by the socket for neighbours.
func (s *stream) isLocal() bool {
	_, local := s.remote.(*net.UnixAddr)
	return local
}

// roundTrip is how long a message and its acknowledgement take, as the kernel found. It is 0 on one host.
func (s *stream) roundTrip() (took time.Duration) {
	if s.isLocal() {
		return 0
	}
	_ = s.control(func(socket int) error { // fails on what is closed
		info, err := unix.GetsockoptTCPInfo(socket, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			took = time.Duration(info.Rtt) * time.Microsecond
		}
		return err
	})
	return took
}

// control calls f with the socket's descriptor, which stays open until f has returned.
func (s *stream) control(f func(socket int) error) (err error) {
	held := s.out.bell.hold(func(uintptr) { err = f(s.socket) })
	return errors.Join(held, err)
}

func (s *stream) setDeadline(t time.Time) error {
	return errors.Join(s.in.bell.setDeadline(t), s.out.bell.setDeadline(t))
}

func (s *stream) setReadDeadline(t time.Time) error { return s.in.bell.setDeadline(t) }

// closeWrite ends the stream of bytes to the peer.
func (s *stream) closeWrite() error {
	return s.control(func(socket int) error { return os.NewSyscallError("shutdown", unix.Shutdown(socket, unix.SHUT_WR)) })
}

// forgetProcess has nothing copied from the other process.
func (s *stream) forgetProcess() {
	_ = s.process.close() // nobody uses it
	s.process = nil
}

func (s *stream) forgetFile() {
	if file, came := s.in.takeFile(); came {
		closeFile(file)
	}
}

// release gives back what is known of the other process, when nobody copies to or from it any more.
func (s *stream) release() {
	_ = errors.Join(s.process.close(), s.permit.close())
	s.process, s.permit = nil, nil
}

// close ends the connection for every process that has the socket, and returns when nobody here uses it any more.
func (s *stream) close() error { return s.closeAll() }

// abandon closes a stream. What the kernel still has of it is not to arrive, and the peer is not to take it for an orderly
// end.
func (s *stream) abandon() {
	s.reset.Store(true)
	_ = s.close()
}

// end is the part of closeAll that ends the connection.
func (s *stream) end() error {
	if s.reset.Load() {
		return shut.Reset(s.socket)
	}
	return shut.Socket(s.socket)
}
