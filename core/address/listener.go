package address

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"kvferry/core/shut"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The way of a connection:
//
//  1. A socket for each address accepts it. With several, a goroutine for each socket does so, one connection at most beyond
//     those that AcceptTCP was asked for.
//  2. isAllowed compares its address with the networks that may connect. Nothing has been read yet. A connection from
//     elsewhere is reset, counted and logged, and the next one accepted.
//  3. AcceptTCP returns it.

// Lines about refused connections that one listener logs in a period: strangers must not be able to fill a disk. Each line
// has the number of all that were refused.
const (
	refusalPeriod = 10 * time.Second
	refusalLines  = 3
)

// Listener is one port on one address or on several. It resets connections from networks that may not connect. Any goroutine
// may call its methods.
type Listener struct {
	sockets []*net.TCPListener // at least one; all have the same port
	allowed Networks
	log     *zap.Logger
	refused *atomic.Uint64

	accepted chan outcome // with several sockets
	closed   chan struct{}
	closing  sync.Once
	running  sync.WaitGroup
}

// outcome is what accept(2) came to.
type outcome struct {
	conn *net.TCPConn
	err  error
}

// newListener owns the sockets from then on.
func newListener(sockets []*net.TCPListener, allowed Networks, log *zap.Logger, refused *atomic.Uint64) *Listener {
	l := &Listener{
		sockets: sockets, allowed: allowed, refused: refused, accepted: make(chan outcome), closed: make(chan struct{}),
		log: log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
			return zapcore.NewSamplerWithOptions(c, refusalPeriod, refusalLines, 0)
		})),
	}
	if len(sockets) > 1 {
		for _, socket := range sockets {
			l.running.Go(func() { l.pass(socket) })
		}
	}
	return l
}

// pass accepts the connections of one of several sockets for AcceptTCP.
func (l *Listener) pass(socket *net.TCPListener) {
	for {
		conn, err := l.accept(socket)
		select {
		case l.accepted <- outcome{conn, err}:
		case <-l.closed:
			if err == nil {
				_ = shut.Abandon(conn)
			}
			return
		}
	}
}

// AcceptTCP waits for a connection from a network that may connect.
func (l *Listener) AcceptTCP() (*net.TCPConn, error) {
	if len(l.sockets) == 1 {
		return l.accept(l.sockets[0])
	}
	select {
	case o := <-l.accepted:
		return o.conn, o.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// accept takes the next connection of a socket that may be let in.
func (l *Listener) accept(socket *net.TCPListener) (*net.TCPConn, error) {
	for {
		conn, err := socket.AcceptTCP()
		if err != nil || l.isAllowed(conn) {
			return conn, err
		}
		_ = shut.Abandon(conn) // fails on one that the peer has ended
		l.log.Warn("a connection was refused: KVFERRY_ALLOW does not have its address",
			zap.Stringer("peer", conn.RemoteAddr()), zap.Stringer("listener", conn.LocalAddr()),
			zap.Stringer("KVFERRY_ALLOW", l.allowed), zap.Uint64("refused so far", l.refused.Add(1)))
	}
}

func (l *Listener) isAllowed(conn *net.TCPConn) bool {
	peer, ok := conn.RemoteAddr().(*net.TCPAddr)
	return ok && l.allowed.Contain(peer.AddrPort().Addr())
}

// Refused is how many connections were refused so far.
func (l *Listener) Refused() uint64 { return l.refused.Load() }

// Addr is the first address.
func (l *Listener) Addr() net.Addr { return l.sockets[0].Addr() }

// Close closes the port, and waits for the goroutines. Connections that were not accepted are reset: see shut.Listener.
func (l *Listener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	var errs []error
	for _, socket := range l.sockets {
		errs = append(errs, socket.Close())
	}
	l.running.Wait()
	return errors.Join(errs...)
}

// SyscallConn gives access to all sockets at once.
func (l *Listener) SyscallConn() (syscall.RawConn, error) {
	var all rawConns
	for _, socket := range l.sockets {
		raw, err := socket.SyscallConn()
		if err != nil {
			return nil, err
		}
		all = append(all, raw)
	}
	return all, nil
}

// rawConns is the sockets of a listener. Nothing can be read from these or written to them.
type rawConns []syscall.RawConn

// Control calls f for each socket.
func (all rawConns) Control(f func(fd uintptr)) error {
	var errs []error
	for _, raw := range all {
		errs = append(errs, raw.Control(f))
	}
	return errors.Join(errs...)
}

func (all rawConns) Read(func(uintptr) bool) error { return errors.ErrUnsupported }

func (all rawConns) Write(func(uintptr) bool) error { return errors.ErrUnsupported }
