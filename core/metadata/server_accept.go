package metadata

import (
	"errors"
	"net"
	"sync/atomic"
	"time"

	"kvferry/core/fair"
	"kvferry/core/security"
	"kvferry/core/shut"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// From an accepted connection to its end: steps 1, 2 and 5 of a request's way.

// longestAcceptPause bounds how long the server waits after accept(2) failed, for example for lack of file descriptors.
const longestAcceptPause = time.Second

func (s *Server) run() {
	defer s.ended.Done()
	pause := time.Duration(0)
	for !s.isClosed() {
		conn, err := s.listener.AcceptTCP()
		if err == nil {
			pause = 0
			s.admit(conn)
			continue
		}
		if s.isClosed() {
			return
		}
		pause = min(max(2*pause, 5*time.Millisecond), longestAcceptPause)
		s.log.Warn("handshake server cannot accept a connection, and tries again",
			zap.Stringer("listener", s.listener.Addr()), zap.Duration("pause", pause), zap.Error(err))
		s.wait(pause)
	}
}

func (s *Server) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// wait returns after a while, or when the server is closed.
func (s *Server) wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.closed:
	}
}

// admit serves a connection if its address may have one more, or closes it. Where the address has its share in connections
// that are all new, it waits for the end of one as long as its patience lasts, and then closes the oldest.
func (s *Server) admit(conn *net.TCPConn) {
	c := &served{TCPConn: conn}
	place, err := s.door.Admit(fair.AddrOf(conn.RemoteAddr()), func() { s.evict(c) }, s.closed)
	if err != nil {
		shut.Close(conn)
		s.tell("a handshake connection was refused: too many are open", conn, err)
		return
	}
	c.place = place
	s.serve(c)
}

// served is a connection that has a place.
type served struct {
	*net.TCPConn
	place    *fair.Place
	answered atomic.Bool
}

// evict closes a connection whose place another one takes.
func (s *Server) evict(c *served) {
	shut.Close(c.TCPConn)
	if !c.answered.Load() {
		s.tell("a handshake connection without an answer yet was closed to make room for another", c.TCPConn, nil)
	}
}

// tell warns of a connection that found no place, or lost it.
func (s *Server) tell(message string, conn *net.TCPConn, err error) {
	if count, report := s.refused.Add(); report {
		s.log.Warn(message, zap.Stringer("peer", conn.RemoteAddr()), zap.Int("limit", s.options.MaxConnections),
			zap.Int("connections closed since the last such message", count), zap.Error(err))
	}
}

// serve answers a connection in a goroutine of its own, which gives its place back.
func (s *Server) serve(c *served) {
	if !s.keep(c.TCPConn) {
		shut.Close(c.TCPConn)
		s.door.Leave(c.place)
		return
	}
	s.ended.Add(1)
	go func() {
		defer s.ended.Done()
		defer s.leave(c)
		var over stream
		err := status.Guard(func() (err error) {
			over, err = s.answer(c)
			return err
		})
		if err != nil {
			s.report(c.TCPConn, err)
			return
		}
		c.answered.Store(true)
		c.place.SetRank(fair.Idle)
		_ = status.Guard(func() error { return s.awaitClose(c.TCPConn, over) })
	}()
}

// keep notes a connection for Close. It returns false when the server is closed already.
func (s *Server) keep(conn *net.TCPConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

// leave closes a connection and gives its place back.
func (s *Server) leave(c *served) {
	s.drop(c.TCPConn)
	s.door.Leave(c.place)
}

func (s *Server) drop(conn *net.TCPConn) {
	shut.Close(conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// report logs why a connection was closed without an answer. Port scanners and health checks send nothing, and close or
// reset the connection; these and connections that Close ends are logged at the level debug.
func (s *Server) report(conn *net.TCPConn, err error) {
	if errors.Is(err, errNoFrame) || errors.Is(err, errNothingSent) || errors.Is(err, net.ErrClosed) {
		s.log.Debug("a connection without a handshake", zap.Stringer("peer", conn.RemoteAddr()), zap.Error(err))
		return
	}
	s.counts.failed.Add(1)
	s.log.Warn("handshake failed", zap.Stringer("peer", conn.RemoteAddr()), zap.Error(err))
}

// awaitClose returns when the peer has closed the connection, or when its time is over. A peer that finds the reply altered says
// so.
func (s *Server) awaitClose(conn *net.TCPConn, over stream) error {
	if err := conn.SetReadDeadline(time.Now().Add(s.options.StepTimeout)); err != nil {
		return err
	}
	_, err := over.Read(make([]byte, 1))
	if security.IsOfTLS(err) {
		s.log.Warn("a peer has not believed the answer to its handshake", zap.Stringer("peer", conn.RemoteAddr()), zap.Error(err))
	}
	return err
}
