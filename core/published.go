package core

import (
	"context"
	"net"
	"strconv"
	"strings"
	"time"

	"kvferry/core/address"
	"kvferry/core/metadata"
	"kvferry/core/security"
	"kvferry/core/status"
)

// How peers find an engine:
//
//  1. listen starts the handshake server. From then on the engine's name and address are known.
//  2. publish writes the descriptor, which lists the registered memory, to a central metadata store. It is called whenever the
//     descriptor changes. In P2P mode the handshake server answers with the descriptor instead.
//  3. Withdraw removes from the store what publish has written.

// listen starts the handshake server. In P2P mode its port gives the engine its public name.
func (e *Engine) listen(name address.Name) (err error) {
	if e.site, err = siteOf(name, e.central, &e.config); err != nil {
		return err
	}
	listener, err := e.Listen(e.site.minPort, e.site.maxPort, e.config.HandshakeBacklog)
	if err != nil {
		return err
	}
	e.port = listener.Addr().(*net.TCPAddr).Port
	handlers := metadata.Handlers{Descriptor: e.Descriptor, Notify: e.inbox.receive}
	if e.central {
		handlers.Descriptor = func() *metadata.Descriptor { return nil }
	} else {
		e.name = e.Address()
	}
	handlers.Name, handlers.Names = e.name, e.site.further(e.port)
	e.site.warn(e.name, e.policy.Mode(), e.log)
	e.server = metadata.Serve(listener, handlers,
		metadata.HandshakeOptions{Security: e.policy, MaxLength: e.config.HandshakeMaxLength, MaxConnections: e.config.MaxHandshakes, MaxReceiving: int64(e.config.MaxNotifyBytes), Log: e.log})
	return nil
}

// Name is what peers open: in P2P mode Address, with central metadata the local name as it was given.
func (e *Engine) Name() string { return e.name }

// Address is where peers reach the handshake server: host:port, IPv6 hosts in brackets.
func (e *Engine) Address() string { return net.JoinHostPort(e.site.host, strconv.Itoa(e.port)) }

// Identity distinguishes this incarnation of the engine from every other: 16 random bytes in hexadecimal digits. The engine's
// descriptor has it.
func (e *Engine) Identity() string { return e.identity }

// ListenHost is the addresses that both ports listen on, joined by commas: those of KVFERRY_LISTEN, or the one that peers connect
// to if it belongs to this machine. "" is all addresses.
func (e *Engine) ListenHost() string { return strings.Join(e.site.listen, ",") }

// HandshakePort is the port of the handshake server.
func (e *Engine) HandshakePort() int { return e.port }

// publish writes the engine's current descriptor to the metadata store.
func (e *Engine) publish() error {
	if err := e.store.Publish(e.ctx, e.Address(), e.Descriptor); err != nil {
		return status.Errorf(status.Metadata, "publishing the descriptor of %s: %w", e.name, err)
	}
	return nil
}

// Descriptor describes the engine's own segment as it is now.
func (e *Engine) Descriptor() *metadata.Descriptor {
	d := &metadata.Descriptor{Name: e.name, Protocol: "tcp", DataHost: e.site.host, IsKvferry: true}
	for _, t := range e.installed() {
		endpoint := t.Endpoint()
		d.DataPort, d.ProtoVersion, d.SameHostSocket = endpoint.Port, endpoint.ProtoVersion, endpoint.SameHostSocket
		if endpoint.Hello > 0 {
			d.Identity, d.Hello = e.identity, endpoint.Hello
			if e.policy.Mode() != security.Off {
				d.TLS = security.Version
			}
		}
	}
	e.memory.Each(func(r *Region) bool {
		if r.Access != NoAccess {
			d.Buffers = append(d.Buffers, metadata.Buffer{
				Name: r.Location, Addr: uint64(r.Addr), Length: r.Length, Access: r.Access.published(),
			})
		}
		return true
	})
	return d
}

// Withdraw removes from the metadata store what peers find the engine by. Transfers go on.
func (e *Engine) Withdraw() error {
	const limit = 2 * time.Second // for a store that does not answer
	ctx, done := context.WithTimeout(context.Background(), limit)
	defer done()
	return e.store.Withdraw(ctx)
}
