package security

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"

	"kvferry/core/status"
)

// protocol is what is spoken inside of TLS, by ALPN: a connection that was meant for another service of the cluster, or for
// a later kvferry, does not get past the handshake.
const protocol = "kvferry/1"

// Version is what an engine's descriptor announces: TLS 1.3 with that protocol, on both ports.
const Version = 1

// Server is for connections that were accepted. The handshake fails unless the client proves to be a peer.
func (p *Policy) Server() *tls.Config { return p.server(new(Peer)) }

// Client is for a connection to an engine. The handshake fails unless the server proves to be a peer, and with a secret to be
// the engine of that identity, where it is not "". When the client's handshake is over, the server may still refuse it: what
// the client reads next says so, see Explain.
//
// With certificates from files TLS does not prove which engine answers: see Peer.Identity.
func (p *Policy) Client(identity string) *tls.Config { return p.client(identity, new(Peer)) }

// server is Server, and has the handshake say who the client is.
func (p *Policy) server(client *Peer) *tls.Config {
	c := p.config(x509.ExtKeyUsageClientAuth, "", client)
	c.ClientAuth = tls.RequireAnyClientCert // VerifyConnection checks it
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.own() }
	return c
}

// client is Client, and has the handshake say who the server is.
func (p *Policy) client(identity string, server *Peer) *tls.Config {
	c := p.config(x509.ExtKeyUsageServerAuth, identity, server)
	// crypto/tls would compare a host name with the certificate. An engine can choose its name freely, and TLS would send it
	// in the clear. VerifyConnection checks all that is to be checked.
	c.InsecureSkipVerify = true
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.own() }
	return c
}

// config has what both sides have in common. Nothing is resumed: each connection proves who is at its ends, by the secrets
// that are accepted when it begins.
func (p *Policy) config(peersUse x509.ExtKeyUsage, identity string, peer *Peer) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, MaxVersion: tls.VersionTLS13,
		NextProtos:                  []string{protocol},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			found, err := p.check(state, peersUse, identity)
			if err != nil {
				p.refused.Add(1)
				return err
			}
			if found.Older {
				p.older.Add(1)
			}
			*peer = found
			return nil
		},
	}
}

func (p *Policy) own() (*tls.Certificate, error) {
	if p.files == nil {
		return nil, errOff
	}
	return p.files.Current().own(), nil
}

// ErrOtherEngine is in the error of a connection whose server is another engine than the one that was meant.
var ErrOtherEngine = errors.New("another engine answered")

// errOtherProtocol is in the error of a connection whose server is no engine.
var errOtherProtocol = errors.New("another protocol is spoken inside of TLS")

var errOff = status.Errorf(status.NotSupportedTransport, "security is off: there is nothing to prove who this engine is")

// check says who is at the other end of a connection.
func (p *Policy) check(state tls.ConnectionState, peersUse x509.ExtKeyUsage, identity string) (Peer, error) {
	if p.files == nil {
		return Peer{}, errOff
	}
	if state.NegotiatedProtocol != protocol {
		return Peer{}, refuse(OtherProtocol, errOtherProtocol, "speaks TLS, but is no kvferry engine: it does not offer the protocol %q", protocol)
	}
	peer, err := p.files.Current().check(state.PeerCertificates, peersUse)
	if err != nil {
		return Peer{}, err
	}
	if identity != "" && peer.Identity != "" && peer.Identity != identity {
		return Peer{}, refuse(OtherEngine, ErrOtherEngine, "is engine %s, and the connection is meant for engine %s", peer.Identity, identity)
	}
	return peer, nil
}

// RecheckInterval is how often the owners of long connections ask for Generation and IsCurrent.
const RecheckInterval = 2 * time.Second

// IsCurrent reports whether a connection with a peer began by the files that were in force at the last Generation, and the peer's
// certificate has not expired since. Otherwise a new connection may be refused.
func (p *Policy) IsCurrent(peer Peer) bool {
	return peer.generation == p.files.Changes() && (peer.until.IsZero() || time.Now().Before(peer.until))
}

// Recheck says who is at the other end of a connection that is up, by the secrets or certificates that are in force by now. An error
// is why the connection would be refused if it began now.
func (p *Policy) Recheck(state tls.ConnectionState) (Peer, error) {
	generation := p.files.Changes()
	peer, err := p.check(state, x509.ExtKeyUsageAny, "")
	peer.generation = generation
	return peer, err
}

func (p *Policy) generation() uint64 {
	if p.files == nil {
		return 0
	}
	return p.files.Changes()
}

// Accept runs the server's side of the handshake. ctx bounds it. When it fails the caller closes conn, and the error names
// the peer.
func (p *Policy) Accept(ctx context.Context, conn net.Conn) (*tls.Conn, Peer, error) {
	client, generation := Peer{}, p.generation()
	c := tls.Server(conn, p.server(&client))
	if err := c.HandshakeContext(ctx); err != nil {
		p.countFailed(conn.RemoteAddr(), err)
		return nil, Peer{}, Explain(conn.RemoteAddr(), err)
	}
	client.generation = generation
	return c, client, nil
}

// Connect runs the client's side of the handshake, as Client says. Otherwise it is as Accept.
func (p *Policy) Connect(ctx context.Context, conn net.Conn, identity string) (*tls.Conn, Peer, error) {
	server, generation := Peer{}, p.generation()
	c := tls.Client(conn, p.client(identity, &server))
	if err := c.HandshakeContext(ctx); err != nil {
		p.countFailed(conn.RemoteAddr(), err)
		return nil, Peer{}, Explain(conn.RemoteAddr(), err)
	}
	server.generation = generation
	return c, server, nil
}
