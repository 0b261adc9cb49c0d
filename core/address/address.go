// Package address parses engine names and picks listening addresses and ports.
package address

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"kvferry/core/status"
)

// MaxHostLength is the longest host that is accepted, in bytes; DNS knows no longer name.
const MaxHostLength = 255

// NoDevice is the device of a name that gives none.
const NoDevice = -1

// NoPort is a default port for Parse that no name can give.
const NoPort = -1

// Name is the parsed name of an engine.
type Name struct {
	Host   string // host name or IP address, without brackets, an IPv6 scope kept
	Port   int    // 0 to 65535
	Device int    // N of a trailing ":npu_N", or NoDevice
}

// Parse parses a name. The forms are host, host:port and host:port:npu_N. The host may be an IPv6 address, with or without a scope
// and brackets. Without brackets, a name that is not an IPv6 address as a whole is split at the last colon: "fd00::2:15858" and
// "fe80::1%eth0:12001" have a port. A name that is an address as a whole, "fd00::2:1585", has none: see MayMeanPort. A name
// without a port gets defaultPort. Port 0 is accepted: the port of a local name is not used in P2P mode.
// Errors carry status.InvalidArgument.
func Parse(s string, defaultPort int) (Name, error) {
	if strings.Contains(s, "://") {
		return Name{}, status.Errorf(status.InvalidArgument, "name %.80q is a URL; an engine's name is host:port, or a host", withoutUser(s))
	}
	host, rest, err := splitHost(s)
	if err != nil {
		return Name{}, err
	}
	if err := CheckHost(host); err != nil {
		return Name{}, status.Errorf(status.InvalidArgument, "name %.80q: %w", s, err)
	}
	name := Name{Host: host, Port: defaultPort, Device: NoDevice}
	if rest == "" {
		return name, nil
	}
	port, device, hasDevice := strings.Cut(rest[1:], ":")
	if name.Port, err = parseNumber(port, 1<<16-1); err != nil {
		return Name{}, status.Errorf(status.InvalidArgument, "name %.80q: port %.20q is not a number from 0 to 65535", s, port)
	}
	if !hasDevice {
		return name, nil
	}
	number, isNPU := strings.CutPrefix(device, "npu_")
	if name.Device, err = parseNumber(number, 1<<31-1); err != nil || !isNPU {
		return Name{}, status.Errorf(status.InvalidArgument, "name %.80q: device %.20q is not of the form npu_N", s, device)
	}
	return name, nil
}

// withoutUser is a URL as an error may show it: without user, password and query.
func withoutUser(url string) string {
	scheme, rest, _ := strings.Cut(url, "://")
	rest = rest[strings.LastIndexByte(rest, '@')+1:]
	server, _, _ := strings.Cut(rest, "?")
	return scheme + "://" + server
}

// splitHost splits a name into its host and the rest, which is empty or starts with a colon.
func splitHost(s string) (host, rest string, err error) {
	if s == "" {
		return "", "", status.Errorf(status.InvalidArgument, "the name is empty")
	}
	if s[0] == '[' {
		return splitBrackets(s)
	}
	address, _, scoped := strings.Cut(s, "%")
	named, _, _ := strings.Cut(s, ":npu_")
	switch {
	case isIPv6(address) && scoped:
		scope, _, _ := strings.Cut(s[len(address):], ":")
		host = address + scope
	case isIPv6(named):
		host = named
	case isIPv6(beforeLastColon(named)):
		host = beforeLastColon(named)
	default:
		host, _, _ = strings.Cut(s, ":")
	}
	return host, s[len(host):], nil
}

func beforeLastColon(s string) string { return s[:max(0, strings.LastIndexByte(s, ':'))] }

// MayMeanPort reports whether Parse takes a name for an IPv6 address without a port, although its end could be a port:
// "fd00::2:1585".
func MayMeanPort(s string) bool {
	_, err := parseNumber(s[len(beforeLastColon(s)):][min(1, len(s)):], 1<<16-1)
	return err == nil && isIPv6(s) && isIPv6(beforeLastColon(s)) && !strings.Contains(s, "%")
}

// Canonical is one spelling for all names of the same host and port: "host:port", with an IPv6 address in brackets and as netip
// writes it. A name that Parse refuses is returned as it is.
func Canonical(s string, defaultPort int) string {
	name, err := Parse(s, defaultPort)
	if err != nil {
		return s
	}
	if ip, err := netip.ParseAddr(name.Host); err == nil {
		name.Host = ip.String()
	}
	return name.HostPort()
}

// splitBrackets is splitHost for a name that starts with a bracket.
func splitBrackets(s string) (host, rest string, err error) {
	host, rest, closed := strings.Cut(s[1:], "]")
	if !closed || !isIPv6(host) {
		return "", "", status.Errorf(status.InvalidArgument, "name %.80q: the text in brackets is not an IPv6 address", s)
	}
	if rest != "" && rest[0] != ':' {
		return "", "", status.Errorf(status.InvalidArgument, "name %.80q: %.20q follows the brackets", s, rest)
	}
	return host, rest, nil
}

// BareHost is a host without the brackets that an IPv6 address may be in, checked as CheckHost does.
func BareHost(host string) (string, error) {
	if inner, isOpen := strings.CutPrefix(host, "["); isOpen {
		if inner, isClosed := strings.CutSuffix(inner, "]"); isClosed {
			host = inner
		}
	}
	return host, CheckHost(host)
}

// CheckHost says what is wrong with a host name or IP address without brackets; nil if it is valid. It checks the text alone, and
// does not resolve names.
func CheckHost(host string) error {
	if host == "" {
		return status.Errorf(status.InvalidArgument, "the host is empty")
	}
	if len(host) > MaxHostLength {
		return status.Errorf(status.InvalidArgument, "host %.40q... has %d bytes, over the limit of %d", host, len(host), MaxHostLength)
	}
	if !utf8.ValidString(host) {
		return status.Errorf(status.InvalidArgument, "host %q is not valid UTF-8", host)
	}
	for _, r := range host {
		if unicode.IsControl(r) || unicode.IsSpace(r) || strings.ContainsRune("[]/", r) {
			return status.Errorf(status.InvalidArgument, "host %q must not contain %q", host, r)
		}
	}
	address, scope, _ := strings.Cut(host, "%")
	if strings.Contains(address, ":") && !isIPv6(host) || strings.Contains(scope, ":") {
		return status.Errorf(status.InvalidArgument, "host %q has a colon but is not an IPv6 address", host)
	}
	return nil
}

// HostPort is "host:port", with an IPv6 host in brackets: what net.Dial takes.
func (n Name) HostPort() string {
	return net.JoinHostPort(n.Host, strconv.Itoa(n.Port))
}

// String is HostPort followed by the device where there is one; Parse of it gives the name back.
func (n Name) String() string {
	if n.Device == NoDevice {
		return n.HostPort()
	}
	return n.HostPort() + ":npu_" + strconv.Itoa(n.Device)
}

func isIPv6(s string) bool {
	ip, err := netip.ParseAddr(s)
	return err == nil && ip.Is6()
}

// parseNumber parses decimal digits, without a sign.
func parseNumber(s string, largest uint64) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n > largest {
		err = strconv.ErrRange
	}
	return int(n), err
}
