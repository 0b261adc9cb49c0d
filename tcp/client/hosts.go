package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"kvferry/core/address"
	"kvferry/core/metadata"
	"kvferry/core/status"
	"kvferry/tcp/wire"
)

// hostErrors is why the data port was found at none of several hosts.
type hostErrors []error

func (h hostErrors) Error() string {
	texts := make([]string, len(h))
	for i, err := range h {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (h hostErrors) Unwrap() []error { return h }

// isAbsence reports whether the engine is not where it was looked for: nobody listens there, or another engine answers. With
// several hosts it is at none of them.
func isAbsence(err error) bool {
	var all hostErrors
	if errors.As(err, &all) {
		return !slices.ContainsFunc(all, func(one error) bool { return !isAbsence(one) })
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, errOtherEngine)
}

// dialData connects by a descriptor. ends is the number of a former connection that is to be over first; 0 for none.
func (p *peer) dialData(ctx context.Context, d *metadata.Descriptor, ends uint64) (*connection, error) {
	if err := p.checkSecurity(d); err != nil {
		return nil, err
	}
	if conn, owner := p.dialSameHost(ctx, d); conn != nil {
		return p.meetOnHost(ctx, conn, owner, d, ends)
	}
	hosts, err := p.segment.DataHosts(ctx, d)
	if err != nil {
		return nil, err
	}
	if last := p.lastHost.Load(); last != nil && slices.Contains(hosts, *last) {
		hosts = append([]string{*last}, slices.DeleteFunc(hosts, func(host string) bool { return host == *last })...)
	}
	var failures hostErrors
	for i, host := range hosts {
		s, elsewhere, err := p.dialHost(ctx, d, host, ends, i < len(hosts)-1)
		if err == nil {
			p.lastHost.Store(&host)
			return s, nil
		}
		failures = append(failures, err)
		if !elsewhere || ctx.Err() != nil {
			break
		}
	}
	if len(failures) == 1 {
		return nil, failures[0]
	}
	return nil, status.Errorf(status.Socket, "%w", failures)
}

// shortConnectTimeout is how long to try to connect to a host when there is another one: as long as a lost packet or two take.
const shortConnectTimeout = 2 * time.Second

// dialHost connects to the data port at a host. more says that there is another host to try; elsewhere, that the engine may
// be there.
func (p *peer) dialHost(ctx context.Context, d *metadata.Descriptor, host string, ends uint64, more bool) (s *connection, elsewhere bool, err error) {
	dialer := net.Dialer{Timeout: p.config.HandshakeConnectTimeout, Control: func(network, at string, socket syscall.RawConn) error {
		if err := p.checkWhere(ctx, host, at); err != nil {
			return err
		}
		return p.client.Congestion.Control(network, at, socket)
	}}
	if more {
		dialer.Timeout = min(dialer.Timeout, shortConnectTimeout)
	}
	dialed, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(d.DataPort)))
	if err != nil {
		return nil, true, status.Errorf(status.Socket, "segment %q: data port: %w%s", p.segment.Name, err, address.HintAtConnect(err))
	}
	conn := dialed.(*net.TCPConn)
	var h wire.Hello
	var answer wire.Answer
	l, err := p.secure(ctx, conn, d)
	if err != nil {
		_ = conn.Close()
		return nil, true, err
	}
	if d.Identity != "" {
		h = p.client.hello(d, ends)
		answer, err = p.greet(ctx, l, d, h, -1)
	} else if p.client.isOwn(conn) {
		err = status.Errorf(status.Socket, "segment %q (%v): %w", p.segment.Name, conn.RemoteAddr(), errOwnAddress)
	}
	if err != nil {
		_ = conn.Close()
		return nil, !errors.Is(err, errNotEnded) && !errors.Is(err, os.ErrDeadlineExceeded), err
	}
	made, err := l.socket(p.client.Processors)
	if err != nil {
		return nil, false, status.Errorf(status.Socket, "segment %q: data connection to %v: %w", p.segment.Name, conn.RemoteAddr(), err)
	}
	return p.newConnection(made, l, d, h, answer), false, nil
}

// checkWhere refuses to connect to an address of a host that is neither the one that was asked for the descriptor nor in
// KVFERRY_ALLOW, if that is set: a peer could have this engine send bytes to whatever it likes.
func (p *peer) checkWhere(ctx context.Context, host, at string) error {
	if len(p.client.Allow) == 0 {
		return nil
	}
	asked, _, ok := p.segment.AskedAt(ctx)
	if !ok || host == asked {
		return nil
	}
	to, err := netip.ParseAddrPort(at)
	if err != nil || !p.client.Allow.Contain(to.Addr()) {
		return fmt.Errorf("its descriptor leads to %s, which is neither where it was asked for nor in KVFERRY_ALLOW", at)
	}
	return nil
}
