package tcp

import (
	"context"
	"net"
	"strconv"

	"kvferry/core/metadata"
	"kvferry/core/status"
)

// dial connects to the peer's data port. The descriptor is fetched again first when a connection was lost before, and
// once when the port does not answer.
func (p *peer) dial(ctx context.Context) (*stream, *metadata.Descriptor, error) {
	d := p.segment.Descriptor()
	p.mu.Lock()
	suspect := p.suspect
	p.suspect = false
	p.mu.Unlock()
	if suspect {
		if fresh, err := p.refresh(ctx, d); err == nil {
			d = fresh
		}
	}
	s, err := p.dialData(ctx, d)
	if err == nil || ctx.Err() != nil {
		return s, d, err
	}
	fresh, refreshErr := p.refresh(ctx, d)
	if refreshErr != nil {
		return nil, nil, status.Errorf(status.Socket, "%w; and its descriptor cannot be fetched again: %w", err, refreshErr)
	}
	s, err = p.dialData(ctx, fresh)
	return s, fresh, err
}

// refresh fetches the descriptor again, and gives up where a transfer that makes no progress would be.
func (p *peer) refresh(ctx context.Context, stale *metadata.Descriptor) (*metadata.Descriptor, error) {
	ctx, done := context.WithTimeout(ctx, p.transport.config.ProgressTimeout)
	defer done()
	return p.segment.Refresh(ctx, stale)
}

func (p *peer) dialData(ctx context.Context, d *metadata.Descriptor) (*stream, error) {
	if s := p.dialNeighbour(ctx, d); s != nil {
		return s, nil
	}
	host, err := p.segment.DataHost(ctx, d)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: p.transport.config.HandshakeConnectTimeout, Control: p.transport.dialing.control}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(d.DataPort)))
	if err != nil {
		return nil, status.Errorf(status.Socket, "segment %q: data port: %w", p.segment.Name, err)
	}
	s, err := newStream(conn.(*net.TCPConn))
	if err != nil {
		return nil, status.Errorf(status.Socket, "segment %q: data connection to %v: %w", p.segment.Name, conn.RemoteAddr(), err)
	}
	return s, nil
}
