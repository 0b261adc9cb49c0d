package address

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"kvferry/core/status"

	"golang.org/x/sys/unix"
)

// resolveTimeout bounds how long ListenHost waits for the resolver.
const resolveTimeout = 2 * time.Second

// ListenHost is the address to listen on for an engine whose name has this host: an IP address of this machine, or ""
// for all addresses. It takes at most about two seconds.
//
// An IP address of this machine is returned as it is. "localhost" gives the loopback address. Any other name gives
// its address when it resolves to exactly one, which is this machine's and not a loopback address: with several, one
// listener could not serve them all, and a machine's own name is often 127.0.1.1 in its own /etc/hosts, and another address for
// peers. In every other case the engine listens on all addresses.
func ListenHost(host string) string {
	local := localAddresses()
	if ip, err := netip.ParseAddr(host); err == nil {
		if local.has(ip) {
			return host
		}
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	// An error counts as no addresses.
	found, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if isLocalhost(host) {
		return pickLoopback(found)
	}
	return pickLocal(found, local)
}

// Published is the first address of an interface that is up, running and not the loopback one: an IPv6 address or an
// IPv4 one. Link-local addresses are skipped: other machines cannot use them. "" if there is none.
func Published(ipv6 bool) string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for _, i := range interfaces {
		const wanted = net.FlagUp | net.FlagRunning
		if i.Flags&wanted != wanted || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if ip := p.Addr(); err == nil && ip.Is6() == ipv6 && ip.IsGlobalUnicast() {
				return ip.String()
			}
		}
	}
	return ""
}

// pickLoopback prefers IPv4, the family that Mooncake peers resolve names to unless told otherwise.
func pickLoopback(found []netip.Addr) string {
	chosen := "127.0.0.1"
	for _, ip := range found {
		if ip = ip.Unmap(); !ip.IsLoopback() {
			continue
		} else if ip.Is4() {
			return ip.String()
		}
		chosen = ip.String()
	}
	return chosen
}

// pickLocal is the only address that a name resolved to, if the engine can listen on it.
func pickLocal(found []netip.Addr, local prefixes) string {
	if len(found) != 1 {
		return ""
	}
	ip := found[0].Unmap()
	if ip.IsLoopback() || !local.has(ip) {
		return ""
	}
	return ip.String()
}

// IsElsewhere reports whether a host means the same on every machine: it is not a loopback address, 0.0.0.0 or ::.
func IsElsewhere(host string) bool {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return !isLocalhost(host)
	}
	ip = ip.Unmap()
	return !ip.IsLoopback() && !ip.IsUnspecified()
}

// isLocalhost reports whether a name means this machine wherever it is resolved.
func isLocalhost(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// prefixes are the addresses of this machine's interfaces with their networks.
type prefixes []netip.Prefix

func localAddresses() prefixes {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var local prefixes
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			local = append(local, p)
		}
	}
	return local
}

// has reports whether ip is an address of this machine: that of an interface, or any address in the network of a loopback address,
// as 127.0.0.2. A link-local address without its scope cannot be bound, and does not count.
func (local prefixes) has(ip netip.Addr) bool {
	ip = ip.Unmap()
	if ip.Is6() && ip.IsLinkLocalUnicast() && ip.Zone() == "" {
		return false
	}
	ip = ip.WithZone("")
	for _, p := range local {
		if p.Addr() == ip || p.Addr().IsLoopback() && p.Contains(ip) {
			return true
		}
	}
	return false
}

// Listen opens a listener on a random port in [minPort, maxPort], both included. Busy and privileged ports are skipped. It fails if
// no port is free, or for a reason that holds for every port. The error carries status.Socket, and names the range and the last
// system error. An empty host means every address, IPv4 and
// IPv6. backlog is the number of connections that the kernel keeps until they are accepted; below 1 it is the
// system's default. The caller closes the listener.
func Listen(ctx context.Context, host string, minPort, maxPort, backlog int) (*net.TCPListener, error) {
	if minPort < 0 || maxPort > 1<<16-1 || minPort > maxPort {
		return nil, status.Errorf(status.InvalidArgument, "port range %d-%d is not within 0-65535", minPort, maxPort)
	}
	var last error
	for port := range shuffled(minPort, maxPort) {
		l, err := listen(ctx, host, port, backlog)
		if err == nil {
			return l, nil
		}
		last = err
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EACCES) {
			break
		}
	}
	where := host
	if where == "" {
		where = "all addresses"
	}
	return nil, status.Errorf(status.Socket, "cannot listen on %s with a port of %d-%d: %w%s", where, minPort, maxPort, last, hint(last))
}

// listen opens a listener on one port.
func listen(ctx context.Context, host string, port, backlog int) (*net.TCPListener, error) {
	var config net.ListenConfig
	// Peers do not use multipath TCP, and the data path uses socket options that exist for plain TCP only.
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	tcp := l.(*net.TCPListener)
	if err := setBacklog(tcp, backlog); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	return tcp, nil
}

// setBacklog calls listen(2) once more, which changes the backlog of a listening socket.
func setBacklog(l *net.TCPListener, backlog int) error {
	if backlog < 1 {
		return nil
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = os.NewSyscallError("listen", unix.Listen(int(fd), backlog))
	})
	return errors.Join(err, failed)
}

// hint explains a system error beyond its text.
func hint(err error) string {
	switch {
	case errors.Is(err, unix.EMFILE):
		return " (EMFILE: this process is out of file descriptors, see ulimit -n)"
	case errors.Is(err, unix.ENFILE):
		return " (ENFILE: this machine is out of file descriptors)"
	case errors.Is(err, unix.EACCES):
		return " (EACCES: this process may not bind that port)"
	case errors.Is(err, unix.EADDRINUSE):
		return " (EADDRINUSE: every port of the range is taken)"
	}
	return ""
}
