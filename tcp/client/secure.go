package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"

	"kvferry/core/metadata"
	"kvferry/core/security"
	"kvferry/core/status"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"golang.org/x/sys/unix"
)

// Connections under TLS:
//
//  1. checkSecurity refuses a descriptor that announces no TLS where the mode demands it.
//  2. secure runs the handshake on a new connection where the descriptor announces TLS. The engine at the other end has to be that
//     of the descriptor.
//  3. The hello and everything after it go through TLS (exchangeHello, socket).
//
// Where the mode is prefer, a peer that announces no TLS is connected to without. An attacker who can change descriptors could have
// an engine do that, so core/metadata believes the absence of TLS only of a peer that could not prove anything (see
// metadata.Descriptor.TLS).

// checkSecurity refuses to connect by a descriptor without TLS where the mode is require.
func (p *peer) checkSecurity(d *metadata.Descriptor) error {
	if d.TLS > 0 || p.client.Security.Mode() != security.Require {
		return nil
	}
	who := "it is Mooncake's"
	if d.IsKvferry {
		who = "that engine has no secret and no certificate"
	}
	return status.Errorf(status.RejectHandshake, "segment %q: its descriptor announces no TLS, which KVFERRY_SECURITY=require demands here: %s",
		p.segment.Name, who)
}

// link is a connection that has just been made, with TLS over it or without.
type link struct {
	sockio.Conn
	inner *sockio.Inner // nil without TLS
	tls   *tls.Conn
	peer  security.Peer
}

// secure runs the TLS handshake, where the descriptor and the mode ask for one. When it fails the caller closes the connection.
func (p *peer) secure(ctx context.Context, conn sockio.Conn, d *metadata.Descriptor) (*link, error) {
	l := &link{Conn: conn}
	if d.TLS == 0 || p.client.Security.Mode() == security.Off {
		return l, nil
	}
	limit := answerLimit(p.config)
	ctx, done := context.WithTimeout(ctx, limit.after)
	defer done()
	l.inner = sockio.NewInner(conn)
	l.inner.LimitRecords(cmp.Or(p.client.MaxRecords, sockio.MaxRecords))
	err := status.Guard(func() (err error) {
		l.tls, l.peer, err = p.client.Security.Connect(ctx, l.inner, d.Identity)
		return err
	})
	if errors.Is(err, security.ErrOtherEngine) {
		err = fmt.Errorf("%w: %w", errOtherEngine, err)
	}
	if err != nil {
		return nil, status.Errorf(status.Of(err, status.Socket), "segment %q (%v): %w", p.segment.Name, conn.RemoteAddr(), err)
	}
	return l, nil
}

// socket makes a Socket of the connection.
func (l *link) socket(p *sockio.Processors) (*sockio.Socket, error) {
	if l.tls == nil {
		return sockio.New(l.Conn, p)
	}
	return sockio.NewSecure(l.inner, l.tls, p)
}

// exchangeHello sends the hello, and with it the file of the permit, and receives the answer.
func (l *link) exchangeHello(h wire.Hello, permitFile int) (wire.Answer, error) {
	var stream io.ReadWriter = l.Conn
	var err error
	switch local, ok := l.Conn.(*net.UnixConn); {
	case l.tls != nil:
		stream = l.tls
		if h.PermitAt != 0 {
			l.inner.OfferFile(permitFile)
		}
		_, err = stream.Write(h.Encode())
	case ok && h.PermitAt != 0:
		_, _, err = local.WriteMsgUnix(h.Encode(), unix.UnixRights(permitFile), nil)
	default:
		_, err = stream.Write(h.Encode())
	}
	var a wire.Answer
	if err == nil {
		a, err = wire.ReadAnswer(stream)
	}
	if err != nil && l.tls != nil { // the target may refuse the certificate only now
		err = security.ExplainAnswer(l.RemoteAddr(), err)
	}
	return a, err
}
