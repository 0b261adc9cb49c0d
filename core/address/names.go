package address

import (
	"net/netip"
	"strings"

	"kvferry/core/status"
)

// Names are names by which peers may ask for an engine: "host:port", "host" for every port, and "*" for every name.
type Names []string

// maxNames is how many names a list may have.
const maxNames = 64

// ParseNames reads names that are joined by commas; no text gives none. An error carries status.InvalidArgument.
func ParseNames(text string) (Names, error) {
	if text == "" {
		return nil, nil
	}
	var names Names
	for entry := range strings.SplitSeq(text, ",") {
		entry = strings.TrimSpace(entry)
		if entry != "*" {
			if _, err := Parse(entry, 0); err != nil {
				return nil, err
			}
		}
		names = append(names, entry)
	}
	if len(names) > maxNames {
		return nil, status.Errorf(status.InvalidArgument, "there are %d names, more than %d", len(names), maxNames)
	}
	return names, nil
}

// Has reports whether a name is one of these. Names are compared as they are: nothing is resolved. An entry that cannot be parsed is
// no name, and neither is 0.0.0.0 or ::, which every machine has.
func (n Names) Has(asked Name) bool {
	for _, entry := range n {
		if entry == "*" {
			return true
		}
		name, err := Parse(entry, 0)
		if err == nil && !IsUnspecified(name.Host) && (name.Port == 0 || name.Port == asked.Port) && sameHost(name.Host, asked.Host) {
			return true
		}
	}
	return false
}

// sameHost compares two hosts: IP addresses by value, without the scope, which belongs to the machine that names them. All names of
// the machine itself are the same.
func sameHost(a, b string) bool {
	if meansThisMachine(a) && meansThisMachine(b) {
		return true
	}
	ipA, errA := netip.ParseAddr(a)
	ipB, errB := netip.ParseAddr(b)
	if errA == nil && errB == nil {
		return ipA.Unmap().WithZone("") == ipB.Unmap().WithZone("")
	}
	return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
}

// meansThisMachine reports whether a host is the first loopback address, or what connects to it.
func meansThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return isLocalhost(host)
	}
	ip = ip.Unmap()
	return ip.IsUnspecified() || ip == netip.IPv6Loopback() || ip == netip.AddrFrom4([4]byte{127, 0, 0, 1})
}
