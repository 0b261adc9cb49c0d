package server

import (
	"errors"
	"fmt"
	"io"
	"time"

	"kvferry/core"
	"kvferry/core/security"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// How a session ends: end, called by another goroutine, makes it stop soon. finish closes the connection, in good order or by
// a reset, and report logs why.
const (
	// A peer that was rejected while it was sending needs time to get to the status. Until then its bytes are thrown away. To
	// close at once would reset the connection, and the status might be lost.
	rejectedTime  = time.Second
	rejectedBytes = 16 << 20
)

// rejection ends a session: its peer asked for memory that it may not have, or a request went wrong.
type rejection struct {
	wire.Header
	code    uint32 // for the peer
	started bool   // the answer to the READ has been sent in part, so that no status can follow
	reason  error
	region  *core.Region // whose memory is inaccessible; nil otherwise
	first   bool         // this was the first fault of the region for a while
}

func (r *rejection) Error() string {
	return fmt.Sprintf("rejected a %v of %d bytes at %#x with status %d: %v", r.Op, r.Length, r.Addr, r.code, r.reason)
}

func (r *rejection) Unwrap() error { return r.reason }

// end makes the session end soon. Any goroutine may call it. It does not wait.
func (s *session) end(cause error) {
	s.mu.Lock()
	if s.cause == nil {
		s.cause = cause
		close(s.ending)
	}
	if s.staged != nil {
		s.staged.cancel()
	}
	s.mu.Unlock()
	_ = s.conn.SetDeadline(sockio.Past) // fails on a connection that is closed already
}

// ended is why another goroutine ended the session, or nil.
func (s *session) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// finish closes the connection, and returns why it ended. It returns nil when the peer ended it in good order, and when the
// engine is being closed. A peer that sent a WRITE of version 1 takes an orderly close for success. So only a connection
// on which nothing was left undone is closed in order, and any other is reset. While the peer goes on sending nobody knows what
// was left undone, because a WRITE may just have arrived.
func (s *session) finish(err error) error {
	var rejected *rejection
	orderly := false
	cause := s.ended()
	if err == errGaveWay {
		cause = errGaveWay
	}
	switch {
	case err == io.EOF:
		orderly, err = true, nil
	case errors.As(err, &rejected):
		orderly = s.refuse(rejected)
	case cause != nil:
		orderly, err = err != errEnded && s.v2 && s.between(), whatEnded(cause, err)
	}
	if orderly {
		_ = s.conn.Close()
	} else {
		s.conn.Reset()
	}
	if err == errClosed {
		err = nil
	}
	s.report(err)
	if err == errGaveWay {
		err = nil
	}
	return err
}

// whatEnded is why a session ended that another goroutine ended, and how much was missing of a WRITE under way.
func whatEnded(cause, err error) error {
	if cause != errClosed && cause != errGaveWay && errors.Is(err, errCutShort) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return cause
}

// refuse sends what is owed for the requests before the rejected one and, where the peer understands it, the reason.
// It reports whether the peer has read all that and closed its side.
func (s *session) refuse(r *rejection) bool {
	s.serving = nil
	answer := r.V2 && !r.started
	if answer {
		s.turn.oweStatus(r.code)
	}
	if s.flush() != nil || !answer || s.conn.CloseWrite() != nil {
		return false
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(rejectedTime))
	if s.ended() != nil { // by a deadline that has just been overwritten
		return false
	}
	return s.conn.Discard(s.ahead, rejectedBytes) == io.EOF
}

// between reports whether the session is between two requests with nothing owed.
func (s *session) between() bool {
	return s.serving == nil && s.parsed == s.filled && s.turn.vectors == 0 && (s.staged == nil || s.staged.failure == nil)
}

// report logs why the session ended.
func (s *session) report(err error) {
	log := s.server.log.With(zap.String("peer", s.peer))
	var rejected *rejection
	switch {
	case err == nil:
		log.Debug("data connection closed")
	case err == errGaveWay:
		log.Info("data connection closed to make room for another one")
	case errors.As(err, &rejected):
		level, message := zapcore.InfoLevel, "data request rejected"
		switch {
		case rejected.code == wire.StatusFailed:
			level, message = zapcore.WarnLevel, "data request failed"
		case rejected.first:
			level, message = zapcore.WarnLevel, "data request failed"
			log = log.With(zap.Stringer("region", rejected.region.Range))
		}
		log.Log(level, message, zap.Stringer("operation", rejected.Op),
			zap.String("address", fmt.Sprintf("%#x", rejected.Addr)), zap.Uint64("length", rejected.Length),
			zap.NamedError("reason", rejected.reason))
	case errors.Is(err, errNotAccepted):
		log.Warn("data connection ended", zap.Error(err))
	case errors.Is(err, errInaccessible):
		log.Warn("data request failed", zap.Error(err))
	case errors.Is(err, errCutShort) && s.server.shouldWarn(s.host), security.IsOfTLS(err):
		log.Warn("data connection lost", zap.Error(err))
	default:
		log.Info("data connection lost", zap.Error(err))
	}
}
