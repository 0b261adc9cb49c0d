package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"kvferry/core/clock"
	"kvferry/core/metadata"
	"kvferry/core/status"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// errOtherEngine is why a connection is of no use whose target is not the engine that it was made for.
var errOtherEngine = errors.New("another engine answered")

// errNotEnded is why a former connection is not known to be over.
var errNotEnded = errors.New("the target has not ended the former connection yet")

// greet says hello on a connection that has just been made, and returns the answer. permit, which may be nil, goes along by
// the file descriptor given with it. It gives up at the end of the context, and when the target does not answer for as long
// as it would be waited for with a request.
func (p *peer) greet(ctx context.Context, conn *link, d *metadata.Descriptor, h wire.Hello, permitFile int) (wire.Answer, error) {
	limit := answerLimit(p.config)
	_ = conn.SetDeadline(time.Now().Add(limit.after))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(sockio.Past) })
	asked := clock.SinceBoot()
	a, err := conn.exchangeHello(h, permitFile)
	answered := clock.SinceBoot()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	_ = conn.SetDeadline(time.Time{})
	var late net.Error
	switch {
	case errors.As(err, &late) && late.Timeout() && ctx.Err() == nil:
		err = fmt.Errorf("no answer to the hello within %v: %w", limit, err)
	case err != nil:
		err = fmt.Errorf("engine %s was expected, and did not answer the hello: %w", d.Identity, err)
	case a.Target != h.Target:
		err = fmt.Errorf("engine %s was expected: %w, %s", d.Identity, errOtherEngine, p.client.nameOf(a.Target))
	case a.Code == wire.StatusDemandsTLS:
		err = fmt.Errorf("engine %s demands TLS (KVFERRY_SECURITY=require there), and security is off here, or was off there when its descriptor was fetched", d.Identity)
	case a.Code == wire.StatusNotEnded:
		err = errNotEnded
	case a.Code != wire.StatusOK:
		err = fmt.Errorf("engine %s refused the hello with status %d", d.Identity, a.Code)
	default:
		p.client.Trace.Met(p.segment.Name, d.Identity, asked, answered, a.Age)
		return a, nil
	}
	return a, status.Errorf(status.Socket, "segment %q (%v): %w", p.segment.Name, conn.RemoteAddr(), err)
}
