package client

import (
	"context"
	"errors"
	"net"

	"kvferry/core/address"
	"kvferry/core/clock"
	"kvferry/core/metadata"
	"kvferry/core/security"
	"kvferry/core/status"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"go.uber.org/zap"
)

// The way to a connection with a peer:
//
//  1. dial takes the cached descriptor. Where a connection was lost before, or nothing proves that the owner lives, it is
//     fetched again first (current); once more when the data port cannot be reached.
//  2. dialData connects to the Unix-domain socket of an engine on this host, if that gave the descriptor (gaveDescriptor), or else to the data port: at the host that the
//     descriptor names, and at that of the handshake port (hosts.go).
//  3. An engine with an identity is greeted (greet.go). A descriptor without one, Mooncake's, must have been confirmed.

// errOwnAddress is why a descriptor is of no use that leads back to the engine that has fetched it.
var errOwnAddress = errors.New("its descriptor names the address of this engine's own data port")

// dial connects to the peer's data port.
func (p *peer) dial(ctx context.Context) (*connection, error) {
	d, err := p.current(ctx)
	if err != nil {
		return nil, err
	}
	s, err := p.dialData(ctx, d, 0)
	if err == nil || ctx.Err() != nil {
		return s, err
	}
	p.segment.MarkUnverified()
	if !isAbsence(err) {
		p.segment.NoteUnreachable()
	}
	fresh, refreshErr := p.refresh(ctx, d)
	if refreshErr != nil {
		return nil, status.Errorf(status.Socket, "%w; and its descriptor cannot be fetched again: %w", err, refreshErr)
	}
	s, err = p.dialData(ctx, fresh, 0)
	if err != nil {
		p.segment.MarkUnverified()
	}
	return s, err
}

// current is the descriptor to connect by. An unconfirmed one is fetched again. Where that fails, an engine with an
// identity is tried all the same, since it has to prove who it is; any other is not.
func (p *peer) current(ctx context.Context) (*metadata.Descriptor, error) {
	d := p.segment.Descriptor()
	p.mu.Lock()
	unconfirmed := p.unconfirmed || d.Identity == "" && !p.segment.Verified()
	p.mu.Unlock()
	if !unconfirmed {
		return d, nil
	}
	fresh, err := p.refresh(ctx, d)
	if err != nil && d.Identity == "" {
		return nil, status.Errorf(status.Socket,
			"segment %q: nothing proves that its owner is still the one at port %d, and its descriptor cannot be fetched again: %w",
			p.segment.Name, d.DataPort, err)
	}
	if err != nil {
		return d, nil
	}
	p.mu.Lock()
	p.unconfirmed = false
	p.mu.Unlock()
	return fresh, nil
}

// refresh fetches the descriptor again, and gives up where a transfer that makes no progress would be.
func (p *peer) refresh(ctx context.Context, stale *metadata.Descriptor) (*metadata.Descriptor, error) {
	ctx, done := context.WithTimeout(ctx, p.config.ProgressTimeout)
	defer done()
	return p.segment.Refresh(ctx, stale)
}

// newConnection is a connection with the engine of a descriptor. h and answer are zero where there was no hello.
func (p *peer) newConnection(s *sockio.Socket, l *link, d *metadata.Descriptor, h wire.Hello, answer wire.Answer) *connection {
	return &connection{
		Socket: s, peer: p, owner: d, target: targetKey(d, s.Remote.String()), acknowledged: p.acknowledges(d),
		number: h.Number, there: clock.SinceBoot() - answer.Age, proven: l.peer, strided: answer.Flags&wire.AnswerStrided != 0,
		trace: p.client.Trace.Connection(p.segment.Name, h.Origin, h.Number),
	}
}

// dialSameHost connects to the socket of an engine on this host, and finds its process; nil where there is no such engine,
// or its process is out of reach.
func (p *peer) dialSameHost(ctx context.Context, d *metadata.Descriptor) (*net.UnixConn, *samehost.Process) {
	if d.SameHostSocket == "" || d.Identity == "" || !p.client.SameHost || !p.pipelined(d) {
		return nil, nil
	}
	var dialer net.Dialer
	dialed, err := dialer.DialContext(ctx, "unix", samehost.Address(d.SameHostSocket).Name)
	if err != nil {
		return nil, nil // it is on another host, most likely
	}
	conn := dialed.(*net.UnixConn)
	owner, err := samehost.ProcessBehind(conn)
	if err != nil {
		_ = conn.Close()
		return nil, nil
	}
	if !p.gaveDescriptor(ctx, owner, d) {
		p.client.Log.Info("the descriptor of a peer names the socket of another engine of this host, which is not used",
			zap.String("segment", p.segment.Name), zap.Stringer("owner of the socket", owner))
		_ = errors.Join(conn.Close(), owner.Close())
		return nil, nil
	}
	return conn, owner
}

// gaveDescriptor reports whether a process on this host is the one that was asked for a descriptor, and not one that somebody else
// has named: it listens at the port that was asked, and the host that was asked is this one. Under TLS, and in a store, engines
// vouch for their descriptors in other ways.
func (p *peer) gaveDescriptor(ctx context.Context, owner *samehost.Process, d *metadata.Descriptor) bool {
	host, port, asked := p.segment.AskedAt(ctx)
	if !asked || d.TLS > 0 && p.client.Security.Mode() != security.Off {
		return true
	}
	if last := p.onHost.Load(); last != nil && *last == d.Identity {
		return true
	}
	listens, known := owner.ListensOn(port)
	if known && !listens || host != p.client.Host && !address.IsHere(ctx, host) {
		return false
	}
	p.onHost.Store(&d.Identity)
	return true
}

// meetOnHost greets an engine on this host, whose process is owner, and gives it the permit to copy from this process. Where
// the system makes no permits, the connection carries payload.
func (p *peer) meetOnHost(ctx context.Context, conn *net.UnixConn, owner *samehost.Process, d *metadata.Descriptor, ends uint64) (*connection, error) {
	h := p.client.hello(d, ends)
	permit, file, err := samehost.NewPermit()
	if err != nil {
		p.client.Log.Debug("payload for peers on this host passes through the socket", zap.Error(err))
	} else {
		h.PermitAt = uint64(permit.At)
	}
	answer := wire.Answer{}
	l, err := p.secure(ctx, conn, d)
	if err == nil {
		answer, err = p.greet(ctx, l, d, h, file)
	}
	if file >= 0 {
		sockio.CloseFile(file)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close(), owner.Close(), permit.Close())
	}
	made, err := l.socket(p.client.Processors)
	if err != nil {
		return nil, errors.Join(status.Errorf(status.Socket, "segment %q: %w", p.segment.Name, err), owner.Close(), permit.Close())
	}
	s := p.newConnection(made, l, d, h, answer)
	s.process = owner
	if answer.Flags&wire.AnswerPermit != 0 {
		s.permit = permit
	} else {
		_ = permit.Close()
	}
	return s, nil
}
