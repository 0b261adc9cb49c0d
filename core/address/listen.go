package address

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"kvferry/core/status"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// resolveTimeout bounds how long Inspect waits for the resolver.
const resolveTimeout = 2 * time.Second

// Inspect finds the address to listen on for an engine whose name has this host: an IP address of this machine, or ""
// for all addresses. doubt says why peers cannot reach the engine by that host, as far as this machine can tell, or is "". It
// takes at most about two seconds.
//
// An IP address of this machine is returned as it is. "localhost" gives the loopback address. Any other name gives
// its address when it resolves to exactly one, which is this machine's and not a loopback address: with several, peers may
// use any of them, and a machine's own name is often 127.0.1.1 in its own /etc/hosts, and another address for
// peers. In every other case the engine listens on all addresses.
func Inspect(host string) (listen, doubt string) {
	local := localAddresses()
	if ip, err := netip.ParseAddr(host); err == nil {
		if local.has(ip) {
			return host, ""
		}
		return "", doubtOf(ip)
	}
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if isLocalhost(host) {
		return pickLoopback(found), ""
	}
	return pickLocal(found, local), doubtOfName(host, found, err, local)
}

// doubtOf says why peers cannot connect to an address that is none of this machine's.
func doubtOf(ip netip.Addr) string {
	if ip.Unmap().IsUnspecified() {
		return ip.String() + " is the address of no machine"
	}
	return cmp.Or(doubtOfInterface(ip), ip.String()+" is no address of this machine")
}

// doubtOfInterface says what is wrong with the interface in a link-local address, or is "".
func doubtOfInterface(ip netip.Addr) string {
	if !ip.Is6() || !ip.IsLinkLocalUnicast() {
		return ""
	}
	zone := ip.Zone()
	if zone == "" {
		return ip.String() + " is a link-local address without its interface, as in " + ip.String() + "%eth0"
	}
	_, unknown := net.InterfaceByName(zone)
	if _, err := strconv.ParseUint(zone, 10, 32); unknown != nil && err != nil {
		return fmt.Sprintf("this machine has no interface %.40q", zone)
	}
	return ""
}

// DoubtOfHost says why the kernel refuses to connect to an address with EINVAL, or to listen on it; "" if that is not known.
func DoubtOfHost(host string) string {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return ""
	}
	return doubtOfInterface(ip)
}

// doubtOfName says why peers cannot connect by a name that resolves to these addresses. A loopback address raises no doubt:
// many machines resolve their own name to it, and their peers resolve it to another address.
func doubtOfName(host string, found []netip.Addr, err error, local prefixes) string {
	switch {
	case len(found) == 0:
		return fmt.Sprintf("%.300s does not resolve to an address here (%v)", host, err)
	case slices.ContainsFunc(found, local.has):
		return ""
	}
	return fmt.Sprintf("%.300s resolves to %v, which is no address of this machine", host, found[0].Unmap())
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

// prefixes are the addresses of this machine's interfaces with their networks. None: they are not known.
type prefixes []netip.Prefix

// interfaceAddrs fails where the process is out of descriptors, or may have no sockets of AF_NETLINK, as under systemd's
// RestrictAddressFamilies.
var interfaceAddrs = net.InterfaceAddrs

func localAddresses() prefixes {
	addrs, err := interfaceAddrs()
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
	if len(local) == 0 {
		return mayBind(ip)
	}
	ip = ip.WithZone("")
	for _, p := range local {
		if p.Addr() == ip || p.Addr().IsLoopback() && p.Contains(ip) {
			return true
		}
	}
	return false
}

// mayBind finds out by the kernel whether ip is an address of this machine. Where that fails, too, it counts as one: the engine
// then listens there or not at all, and not on all addresses.
func mayBind(ip netip.Addr) bool {
	if ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return false // the kernel binds to these
	}
	family, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: ip.As16()})
	if ip.Is4() {
		family, at = unix.AF_INET, &unix.SockaddrInet4{Addr: ip.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err != unix.EAFNOSUPPORT
	}
	defer unix.Close(fd)
	return unix.Bind(fd, at) != unix.EADDRNOTAVAIL
}

// Options say what Listen opens.
type Options struct {
	Hosts            []string    // IP addresses of this machine; none: all addresses, IPv4 and IPv6
	MinPort, MaxPort int         // both included
	Backlog          int         // connections that the kernel keeps until they are accepted; below 1: the system's default
	Allow            Networks    // the networks that may connect
	Log              *zap.Logger // nil: none

	Refused *atomic.Uint64 // counts connections from other networks; nil: the listener has a counter of its own
}

// Listen opens a listener on a random port, the same on all addresses. Busy and privileged ports are skipped. It fails if
// no port is free, or for a reason that holds for every port. The error carries status.Socket, and names the range and the last
// system error. The caller closes the listener.
func Listen(ctx context.Context, o Options) (*Listener, error) {
	if o.MinPort < 0 || o.MaxPort > 1<<16-1 || o.MinPort > o.MaxPort {
		return nil, status.Errorf(status.InvalidArgument, "port range %d-%d is not within 0-65535", o.MinPort, o.MaxPort)
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	hosts, where := o.Hosts, strings.Join(o.Hosts, ", ")
	if len(hosts) == 0 {
		hosts, where = []string{""}, "all addresses"
	}
	var last error
	for port := range shuffled(o.MinPort, o.MaxPort) {
		sockets, err := listenOnAll(ctx, hosts, port, o.Backlog)
		if err == nil {
			return newListener(sockets, o.Allow, o.Log, cmp.Or(o.Refused, new(atomic.Uint64))), nil
		}
		last = err
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EACCES) {
			break
		}
	}
	return nil, status.Errorf(status.Socket, "cannot listen on %s with a port of %d-%d: %w%s", where, o.MinPort, o.MaxPort, last, hint(last, hosts))
}

// listenOnAll listens on one port of each address, or of none if that fails. Port 0 leaves the choice to the first address.
func listenOnAll(ctx context.Context, hosts []string, port, backlog int) ([]*net.TCPListener, error) {
	var sockets []*net.TCPListener
	for _, host := range hosts {
		socket, err := listen(ctx, host, port, backlog)
		if err != nil {
			for _, open := range sockets {
				err = errors.Join(err, open.Close())
			}
			return nil, err
		}
		sockets = append(sockets, socket)
		port = socket.Addr().(*net.TCPAddr).Port
	}
	return sockets, nil
}

// listen listens on one port of one address. 0.0.0.0 is all IPv4 addresses, and :: or "" all addresses.
func listen(ctx context.Context, host string, port, backlog int) (*net.TCPListener, error) {
	var config net.ListenConfig
	// Peers do not use multipath TCP, and the data path uses socket options that exist for plain TCP only.
	config.SetMultipathTCP(false)
	config.KeepAlive = -1 // those who use a connection bound their waits, or ask for keep-alive messages themselves
	network := "tcp"
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		network = "tcp4" // for "tcp" 0.0.0.0 is all addresses, too
	}
	l, err := config.Listen(ctx, network, net.JoinHostPort(host, strconv.Itoa(port)))
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
func hint(err error, hosts []string) string {
	switch {
	case errors.Is(err, unix.EINVAL):
		for _, host := range hosts {
			if doubt := DoubtOfHost(host); doubt != "" {
				return " (" + doubt + ")"
			}
		}
	case errors.Is(err, unix.EACCES):
		return " (EACCES: this process may not bind that port)"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return " (EADDRNOTAVAIL: this machine does not have that address)"
	case errors.Is(err, unix.EADDRINUSE):
		return " (EADDRINUSE: every port of the range is taken; an engine takes two)"
	}
	return hintAtDescriptors(err)
}

func hintAtDescriptors(err error) string {
	switch {
	case errors.Is(err, unix.EMFILE):
		return " (EMFILE: this process is out of file descriptors, see ulimit -n)"
	case errors.Is(err, unix.ENFILE):
		return " (ENFILE: this machine is out of file descriptors)"
	}
	return ""
}

// HintAtConnect explains a system error of connect(2) beyond its text; "" where there is nothing to add.
func HintAtConnect(err error) string {
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return " (EADDRNOTAVAIL: this machine has no address, or no free port, to connect from, see net.ipv4.ip_local_port_range)"
	}
	return hintAtDescriptors(err)
}
