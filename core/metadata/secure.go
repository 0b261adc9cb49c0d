package metadata

import (
	"context"
	"errors"
	"io"
	"net"

	"kvferry/core/address"
	"kvferry/core/security"
	"kvferry/core/status"
)

// The handshake port under TLS:
//
//  1. A client whose policy is not off begins TLS, and then asks as it would without (Client.secure).
//  2. A server whose policy is not off looks at the first bytes of a connection (Server.secure). With the mode require it answers a
//     peer that does not begin TLS with a refusal that Mooncake's engines understand (Server.refuse).
//  3. With the mode prefer a client asks a peer that does not speak TLS once more, without. The policy remembers the peers that
//     have spoken TLS: these are never asked without again. Nor are those whose descriptor announces TLS (Client.SpeaksTLS): with
//     central metadata it is signed, and the address that is asked is not.

// stream is what frames pass through: a connection, or TLS over one.
type stream interface {
	io.Reader
	io.Writer
	CloseWrite() error
}

// quietConn is a connection that raises no SIGPIPE.
type quietConn struct{ *net.TCPConn }

func (c quietConn) Write(b []byte) (int, error) {
	if err := sendAll(c.TCPConn, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// isSecure reports whether a stream is TLS.
func isSecure(over stream) bool {
	_, plain := over.(quietConn)
	return !plain
}

// secure runs the handshake of TLS as a client, unless the request goes without.
func (c Client) secure(ctx context.Context, conn *net.TCPConn, plain bool) (stream, security.Peer, error) {
	if plain {
		return quietConn{conn}, security.Peer{}, nil
	}
	ctx, done := context.WithTimeout(ctx, orDefault(c.ReplyTimeout, DefaultReplyTimeout))
	defer done()
	over, from, err := c.Security.Connect(ctx, quietConn{conn}, c.Identity)
	if security.IsNotTLS(err) {
		err = status.Errorf(status.Of(err, status.Socket), "%w: %w", errNotTLS, err)
	}
	if err != nil {
		return nil, from, err
	}
	return over, from, nil
}

// errNotTLS is in the error of a request to a peer that does not speak TLS.
var errNotTLS = errors.New("this engine requires TLS (KVFERRY_SECURITY)")

// mayAskPlainly reports whether a request that has failed may be made again without TLS. A probe tells nothing, and nothing is
// believed for its answer.
func (c Client) mayAskPlainly(peer string, kind frameKind) bool {
	return kind == kindProbe || c.Security.Mode() == security.Prefer && !c.SpeaksTLS && !c.Security.Knows(peer)
}

// checkAnswer refuses a descriptor that does not fit what the peer has proven.
func checkAnswer(d *Descriptor, from security.Peer, proven bool) error {
	switch {
	case !proven:
		return nil
	case d.TLS == 0:
		return status.Errorf(status.RejectHandshake, "its descriptor announces no TLS, which it speaks")
	case from.Identity != "" && from.Identity != d.Identity:
		return status.Errorf(status.RejectHandshake, "it is engine %s, and its descriptor is that of engine %s", from.Identity, d.Identity)
	}
	return nil
}

// checkName refuses the descriptor of an engine that does not go by the name that was asked for. Names and addresses lead to an
// engine by DNS and by routes, which an attacker may change, to another engine of the same cluster.
func checkName(asked address.Name, d *Descriptor) error {
	if append(address.Names{d.Name}, d.Names...).Has(asked) {
		return nil
	}
	return status.Errorf(status.RejectHandshake, "%w: the name asked for is %s, and the engine that answers is %.300q and does not go by that "+
		"name; if it is the right one, KVFERRY_NAMES there must list the name", security.ErrOtherEngine, asked.HostPort(), d.Name)
}

// secure looks at the first bytes of a connection, and runs the handshake of TLS where they begin it. refuse says that the peer
// has not begun TLS and has to.
func (s *Server) secure(ctx context.Context, conn *net.TCPConn) (over stream, refuse bool, err error) {
	mode := s.options.Security.Mode()
	if mode == security.Off {
		return quietConn{conn}, false, nil
	}
	begins, err := security.BeginsTLS(conn)
	switch {
	case err != nil:
		return nil, false, status.Errorf(status.Socket, "%w: %w", errNothingSent, err)
	case !begins:
		return quietConn{conn}, mode == security.Require, nil
	}
	ctx, done := context.WithTimeout(ctx, s.options.StepTimeout)
	defer done()
	over, _, err = s.options.Security.Accept(ctx, quietConn{conn})
	return over, false, err
}

// refuse reads a request's body, and gives the JSON of a refusal. The protocol of the descriptor is no engine's: Mooncake's say that
// they do not support it, and log it.
func (s *Server) refuse(request frame) ([]byte, error) {
	if err := request.discardBody(); err != nil {
		return nil, err
	}
	reason := security.ErrPlain.Error()
	switch request.kind {
	case kindMetadata:
		return mustEncode(map[string]string{"name": "", "protocol": reason}), nil
	case kindNotify:
		return refusedNotification(security.ErrPlain), nil
	case kindProbe:
		return mustEncode(probeBody{Status: reason}), nil
	}
	return mustEncode(connectionBody{QPNumbers: []int{}, ReplyMessage: reason}), nil
}
