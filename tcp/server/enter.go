package server

import (
	"context"
	"errors"

	"kvferry/core/security"
	"kvferry/core/shut"
	"kvferry/core/status"
	"kvferry/tcp/sockio"

	"go.uber.org/zap"
)

// What happens to a connection before it has a session:
//
//  1. Where security is off, the connection is served as it is.
//  2. enter looks at the first bytes. Where they begin TLS, the handshake follows: the peer proves that it belongs to the cluster,
//     within the time for a first request. A connection gives way meanwhile, as one that is silent.
//  3. A connection that begins without TLS has a session, too. Where the mode is require, that session refuses the first request
//     or hello, so that the peer learns why (greet, serve).

// enter makes the stream of a connection, and says who the peer has proven to be. When it fails it has closed the connection.
func (v *Server) enter(conn sockio.Conn, p *place) (*sockio.Socket, proven, error) {
	if v.options.Security.Mode() == security.Off {
		s, err := sockio.New(conn, v.options.Processors)
		return s, proven{}, err
	}
	ctx, done := context.WithTimeout(p.entering, min(v.options.FirstRequest, v.options.ProgressTimeout))
	defer done()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(sockio.Past) })
	begins, err := security.BeginsTLS(conn)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, proven{}, errors.Join(err, shut.Abandon(conn))
	}
	if !begins {
		s, err := sockio.New(conn, v.options.Processors)
		return s, proven{}, err
	}
	inner := sockio.NewInner(conn)
	inner.ExpectFile()
	secure, peer, err := v.options.Security.Accept(ctx, inner)
	if err != nil {
		inner.Abandon()
		return nil, proven{}, err
	}
	s, err := sockio.NewSecure(inner, secure, v.options.Processors)
	return s, proven{conn: secure, peer: peer}, err
}

// refusesPlain reports whether the session is to refuse whatever its peer asks for, because it comes without TLS.
func (s *session) refusesPlain() bool {
	return s.server.options.Security.Mode() == security.Require && !s.conn.IsSecure()
}

// reportRefused logs why a connection has no session.
func (v *Server) reportRefused(conn sockio.Conn, err error) {
	v.counts.failed.Add(1)
	log := v.log.Info
	if status.Of(err, status.OK) == status.RejectHandshake || security.IsOfTLS(err) {
		log = v.log.Warn
	}
	log("a data connection failed before its session began", zap.Stringer("peer", conn.RemoteAddr()), zap.Error(err))
}
