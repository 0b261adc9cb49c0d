package server

import (
	"context"
	"errors"
	"fmt"

	"kvferry/core/clock"
	"kvferry/core/security"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"go.uber.org/zap"
)

// What a session does before the first request:
//
//  1. greet receives the first bytes. A peer that sends no hello is Mooncake, or an engine without the extension. The session
//     serves it, but copies nothing from its memory.
//  2. accept checks that the hello is for this engine, and lists the session under the initiator's origin and number.
//  3. Where the hello asks for the end of a former connection, endSession ends the session of that connection, and waits until
//     it applies nothing any more.
//  4. The answer says what came of it.

// greet serves the hello, if the connection begins with one.
func (s *session) greet() error {
	if err := s.fillTo(wire.HeaderSize); err != nil {
		return err
	}
	if security.IsClientHello(s.ahead[s.parsed:]) && !s.conn.IsSecure() {
		return security.ErrUnexpectedTLS
	}
	if !wire.IsHello(s.ahead[s.parsed:]) {
		_ = s.process.Close() // nobody uses it
		s.process = nil
		return nil
	}
	rest, err := wire.HelloRest(s.ahead[s.parsed:])
	if err != nil {
		return err
	}
	if err := s.fillTo(wire.HeaderSize + rest); err != nil {
		return err
	}
	h, err := wire.ParseHello(s.ahead[s.parsed+wire.HeaderSize:])
	if err != nil {
		return err
	}
	s.parsed += wire.HeaderSize + rest
	return s.accept(h)
}

// accept answers a hello. The session ends after an answer that refuses it.
func (s *session) accept(h wire.Hello) error {
	answer := wire.Answer{Target: s.server.options.Identity, Age: clock.SinceBoot() - s.server.began}
	var refusal error
	if h.Target == answer.Target {
		if err := s.prove(); err != nil {
			return err
		}
		s.greeted = true
		s.trace.Greeted(h.Origin, h.Number)
	}
	switch {
	case s.refusesPlain():
		answer = wire.Answer{Code: wire.StatusDemandsTLS, Target: h.Target}
		s.server.options.Security.CountPlain(s.conn.Remote)
		refusal = security.ErrPlain
	case h.Target != s.server.options.Identity:
		answer.Code = wire.StatusOtherEngine
		refusal = fmt.Errorf("a connection for engine %v: this is engine %v", h.Target, s.server.options.Identity)
	case !s.server.list(s, connectionKey{s.identity, h.Origin, h.Number}):
		answer.Code = wire.StatusRejected
		refusal = fmt.Errorf("a second connection with the number %d of one initiator", h.Number)
	case h.Ends != 0 && !s.endFormer(connectionKey{s.identity, h.Origin, h.Ends}):
		answer.Code = wire.StatusNotEnded
		refusal = fmt.Errorf("the session of the connection %d has not ended yet", h.Ends)
	}
	if refusal == nil {
		answer.Flags = wire.AnswerStrided
	}
	if refusal == nil && s.takePermit(h.PermitAt) {
		answer.Flags |= wire.AnswerPermit
	}
	b := answer.Encode()
	if err := s.send([]sockio.Vector{sockio.VectorOf(b)}, &s.waiting, false); err != nil {
		return err
	}
	return refusal
}

// endFormer ends the session of a former connection of the same initiator, and reports whether it has ended within the
// progress timeout.
func (s *session) endFormer(key connectionKey) bool {
	ctx, done := context.WithTimeout(s.server.ctx, s.server.options.ProgressTimeout)
	defer done()
	return s.server.endSession(ctx, s, key)
}

// takePermit maps the permit that came with the hello, and reports whether the session copies by it.
func (s *session) takePermit(at uint64) bool {
	file, came := s.conn.TakeFile()
	if !came {
		return false
	}
	permit, err := samehost.OpenPermit(file, uintptr(at))
	sockio.CloseFile(file)
	if err == nil && (s.process == nil || !permit.IsOf(s.process)) {
		err = errors.Join(fmt.Errorf("the memory of %v cannot be read from here", s.process), permit.Close())
	}
	if err != nil {
		s.server.log.Debug("the payload of a peer on this host passes through the socket", zap.Error(err))
		return false
	}
	s.permit = permit
	return true
}

// connectionKey names a connection of an initiator. Nobody can name one of another engine whose identity is proven.
type connectionKey struct {
	identity string // as session.identity
	origin   wire.Identity
	number   uint64
}

// list lists a session under its connection. It returns false when there is one already.
func (v *Server) list(s *session, key connectionKey) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.numbered[key] != nil {
		return false
	}
	v.numbered[key] = s
	s.key = key
	return true
}

// unlist undoes list. The lock is held.
func (v *Server) unlist(s *session) {
	if s.key.number != 0 {
		delete(v.numbered, s.key)
	}
}

// endSession ends the session of a connection for a session that waits for that, and returns true when it has ended, or never was.
// It returns false when the session that waits is ended itself: hellos may name each other's connections, and their own.
func (v *Server) endSession(ctx context.Context, waiting *session, key connectionKey) bool {
	v.mu.Lock()
	former := v.numbered[key]
	v.mu.Unlock()
	if former == nil {
		return true
	}
	former.end(fmt.Errorf("its initiator has given it up"))
	select {
	case <-former.over:
		return true
	case <-waiting.ending:
		return false
	case <-ctx.Done():
		return false
	}
}
